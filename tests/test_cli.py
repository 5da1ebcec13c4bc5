"""The command as a user types it: what goes wrong is one line and exit code 2, and leaves no file."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from jenga_compile.cli import BAD_INPUT, INTERRUPTED
from tests.command import assert_refused, exit_code

PROMPT = "a fox moving left on a sky blue background"

BAD: dict[str, tuple[list[str], str]] = {
    "empty prompt": ([""], "empty prompt among ['']"),
    "format": ([PROMPT, "-o", "clip.avi"], "Use one of .mp4, .gif, .png"),
    "folder": ([PROMPT, "-o", "nowhere/clip.mp4"], "'nowhere' is no folder"),
    "keep zero": ([PROMPT, "--keep", "0"], "keep=0.0 is outside (0, 1]"),
    "keep large": ([PROMPT, "--keep", "1.5"], "keep=1.5 is outside (0, 1]"),
    "keep text": ([PROMPT, "--keep", "half"], "argument --keep: invalid float value: 'half'"),
    "steps": ([PROMPT, "--steps", "0"], "steps 0 is outside [1, 1000]"),
    "size small": ([PROMPT, "--size", "8"], "size 8 is outside [32, 256]"),
    "output empty": ([PROMPT, "-o", ""], "no suffix is no video format"),
    "size odd": ([PROMPT, "--size", "65"], "size=65 is not a positive multiple of the model's patch"),
    "seed": ([PROMPT, "--seed", "-1"], "seed -1 is outside"),
    "guidance": ([PROMPT, "--guidance", "nan"], "guidance nan is outside"),
    "guidance range": ([PROMPT, "--guidance", "1e30"], "guidance 1e+30 is outside [0, 100]"),
    "file size": ([PROMPT, "--size", "256", "--scale", "32"], "scale 32 is outside 2048 pixels a side. Use at most 8"),
    "gif pace": ([PROMPT, "-o", "clip.gif", "--fps", "60"], "fps 60 is outside [1, 50] for a .gif"),
    "not a file": ([PROMPT, "-o", "/dev/null.gif/x.gif"], "cannot write"),
    "both": ([PROMPT, "--dense", "--compare"], "Drop --dense: --compare makes both"),
    "dense keep": ([PROMPT, "--dense", "--keep", "0.2"], "does nothing beside --dense"),
    "dense preset": ([PROMPT, "--dense", "--preset", "turbo"], "preset='turbo' does nothing beside --dense"),
    "preset": ([PROMPT, "--preset", "turbio"], "no preset 'turbio'; the nearest is 'turbo'"),
    "few steps": ([PROMPT, "--preset", "three_stage", "--steps", "2"], "at least 3 steps"),
    "skip": ([PROMPT, "--preset", "turbo", "--skip", "some"], "skip some is outside ('static', 'adaptive', 'none')"),
    "skip alone": ([PROMPT, "--skip", "static"], "does nothing without --preset"),
    "device": ([PROMPT, "--device", "cuda:99"], "device 'cuda:99' is not available"),
    "device name": ([PROMPT, "--device", "abacus"], "device 'abacus' is not available: not a device name"),
    "flag": ([PROMPT, "--wibble"], "unrecognized arguments: --wibble"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, text = BAD[name]
    output = [] if "-o" in arguments else ["-o", "clip.mp4"]
    assert_refused(["generate", *arguments, *output], text, tmp_path, capsys)


def test_no_verb_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([]) == BAD_INPUT
    assert "VERB" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jenga_compile.generate

    def interrupted(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jenga_compile.generate, "_sample", interrupted)
    assert exit_code(["generate", PROMPT, "-o", str(tmp_path / "clip.mp4")]) == INTERRUPTED
    assert "nothing written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_generate_compares_carved_and_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "clip.gif"
    command = ["generate", PROMPT, "-o", str(output), "--steps", "2", "--compare", "--keep", "0.5"]
    assert exit_code(command) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"clip.gif", "clip.dense.gif", "clip.compare.png"}
    assert "PSNR of carved against dense" in printed
    assert "6 carved" in printed
    assert "joint attention, text after" in printed


def test_generate_by_a_preset_beside_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", PROMPT, "-o", str(tmp_path / "clip.png"), "--steps", "3", "--preset", "turbo", "--compare"]
    assert exit_code(command) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"clip.png", "clip.dense.png", "clip.compare.png"}
    assert "PSNR of turbo against dense" in printed
    assert "3 steps: the transformer ran in 3 (NFE), 0 skipped" in printed
    assert "48x48" in printed
    assert "64x64" in printed


def test_one_step_has_no_pace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", PROMPT, "-o", str(tmp_path / "clip.gif"), "--steps", "1", "--size", "32", "--compare"]
    assert exit_code(command) == 0
    printed = capsys.readouterr().out
    assert "s a step" not in printed
    assert "nothing was carved, for the reasons above" in printed
    assert "PSNR of carved against dense: inf dB" in printed


def test_every_file_of_a_run_is_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "clip.gif")
    assert exit_code(["generate", PROMPT, "-o", str(tmp_path / "clip.gif")]) == BAD_INPUT
    assert "it is no regular file" in capsys.readouterr().err
    (tmp_path / "clip.gif").unlink()
    (tmp_path / "clip.gif").symlink_to(tmp_path / "clip.gif")
    assert exit_code(["generate", PROMPT, "-o", str(tmp_path / "clip.gif")]) == BAD_INPUT
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "clip.gif").unlink()
    (tmp_path / "clip.dense.gif").mkdir()
    assert exit_code(["generate", PROMPT, "-o", str(tmp_path / "clip.gif"), "--compare"]) == BAD_INPUT
    assert "clip.dense.gif': it is a folder" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = PROMPT + " and then a very long story about it" * 5
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert exit_code(["generate", long, "-o", str(tmp_path / "a.png"), "--steps", "1", "--size", "32"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("jenga: warning: the prompt is too long for the model: 'story about it and")


def test_a_failing_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jenga_compile.generate

    def full(request: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jenga_compile.generate, "generate", full)
    assert exit_code(["generate", PROMPT, "-o", str(tmp_path / "clip.mp4")]) == BAD_INPUT
    assert capsys.readouterr().err == "jenga: error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("redirect", "code", "said"), [(">&-", 0, ""), (">/dev/full", BAD_INPUT, "their report is not")]
)
def test_a_report_that_cannot_be_printed(redirect: str, code: int, said: str) -> None:
    program = (
        "import sys, jenga_compile.generate as g; g.generate = lambda request: 'x'\n"
        "from jenga_compile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = f'"{sys.executable}" -c "$PROGRAM" generate "{PROMPT}" -o clip.gif {redirect}'
    done = subprocess.run(
        command, shell=True, env={**os.environ, "PROGRAM": program}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == (1 if said else 0)


def test_being_told_to_terminate_cleans_up(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, jenga_compile.generate as g; from jenga_compile.files import all_or_none\n"
        "def slow(request):\n"
        "    with all_or_none(request.files):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        import time; time.sleep(60)\n"
        "g.generate = slow\n"
        "from jenga_compile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "generate", PROMPT, "-o", str(tmp_path / "clip.gif")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "jenga: interrupted, nothing written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    program = (
        "import sys, jenga_compile.generate as g; g.generate = lambda request: 'x' * 10**6\n"
        "from jenga_compile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "generate", PROMPT, "-o", "clip.gif"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(120) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_seed_reproduces_the_file(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for file in files:
        assert exit_code(["generate", PROMPT, "-o", str(file), "--steps", "1", "--size", "32", "--seed", "7"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
