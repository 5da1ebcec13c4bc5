"""The command as a user types it: what goes wrong is one line and exit code 2, and leaves no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from jenga_compile.cli import BAD_INPUT, INTERRUPTED, main

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
    "size odd": ([PROMPT, "--size", "65"], "height=65 is not a positive multiple of the model's patch"),
    "seed": ([PROMPT, "--seed", "-1"], "seed -1 is outside"),
    "guidance": ([PROMPT, "--guidance", "nan"], "guidance nan is outside"),
    "both": ([PROMPT, "--dense", "--compare"], "Drop --dense: --compare makes both"),
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
    assert exit_code(["generate", *arguments, *output]) == BAD_INPUT
    captured = capsys.readouterr()
    assert text in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


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


def test_a_seed_reproduces_the_file(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for file in files:
        assert exit_code(["generate", PROMPT, "-o", str(file), "--steps", "1", "--size", "32", "--seed", "7"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)
