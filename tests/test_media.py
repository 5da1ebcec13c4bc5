"""Files appear whole or not at all, and hold the frames they were given."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jenga_compile import errors, files, media

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", media.FORMATS)
def test_every_format_is_written_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    media.write_video(path, FRAMES, scale=2)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size > 1000


def test_a_gif_has_all_frames_at_the_enlarged_size(tmp_path: Path) -> None:
    media.write_video(tmp_path / "clip.gif", FRAMES, scale=3)
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.n_frames, image.size) == (5, (72, 48))  # type: ignore[attr-defined]


@pytest.mark.parametrize("fps", [12, 30, 50])
def test_a_gif_keeps_its_pace(tmp_path: Path, fps: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (fps, 8, 8, 3), dtype=np.uint8)
    media.write_video(tmp_path / "clip.gif", frames, fps=fps)
    with Image.open(tmp_path / "clip.gif") as image:
        durations = [(image.seek(frame), image.info["duration"])[1] for frame in range(fps)]
    assert sum(durations) == 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves its pipes open
def test_an_mp4_reads_back_close_to_what_was_written(tmp_path: Path) -> None:
    import imageio.v3 as imageio

    smooth = np.stack([np.full((32, 48, 3), 40 * index, np.uint8) for index in range(5)])
    media.write_video(tmp_path / "clip.mp4", smooth)
    back = imageio.imread(tmp_path / "clip.mp4", plugin="FFMPEG")
    assert back.shape == smooth.shape
    assert media.psnr(back, smooth) > 35


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from jenga_compile import errors, files, media\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)\n"
        "try:\n    media.write_video(Path(sys.argv[1]), frames)\n"
        "except OSError as error:\n    print(type(error).__name__)\n"
    )
    for name in ("clip.mp4", "clip.gif", "clip.png"):
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == ("VideoNotWritten" if name == "clip.mp4" else "OSError"), name
    assert list(tmp_path.iterdir()) == []


def test_several_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]

    def fail() -> None:
        with files.all_or_none(paths) as partials:
            partials[0].write_text("a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with files.all_or_none(paths) as partials:
        for partial in partials:
            partial.write_text("whole")
    assert sorted(tmp_path.iterdir()) == paths


def test_a_link_is_followed_and_permissions_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "clip.gif", tmp_path / "clip.gif"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    media.write_video(link, FRAMES)
    assert link.is_symlink()
    assert target.read_bytes() != b"old"
    assert target.stat().st_mode & 0o777 == 0o640
    before = os.umask(0o027)
    try:
        media.write_video(tmp_path / "new.gif", FRAMES)
    finally:
        os.umask(before)
    assert (tmp_path / "new.gif").stat().st_mode & 0o777 == 0o640


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.gif"
    path.write_bytes(b"old")

    def half_way(partial: Path, frames: media.Frames, fps: int) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "_write_gif", half_way)
    with pytest.raises(KeyboardInterrupt):
        media.write_video(path, FRAMES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.gif"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["clip", "clip.avi", "clip.mp4.txt"])
def test_an_unknown_format_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.UnknownVideoFormat, match=r"Use one of \.mp4, \.gif, \.png"):
        media.write_video(tmp_path / name, FRAMES)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.OutputFolderMissing, match="no folder that can be written to"):
        media.write_video(tmp_path / "nowhere" / "clip.gif", FRAMES)


def test_psnr_of_equal_and_of_known_error() -> None:
    assert media.psnr(FRAMES, FRAMES) == math.inf
    off = np.full_like(FRAMES, 100)
    assert media.psnr(off, off + 5) == pytest.approx(10 * math.log10(255**2 / 25))


def test_a_contact_sheet_has_a_row_a_video() -> None:
    sheet = media.contact_sheet([FRAMES, FRAMES], columns=4, gap=2)
    assert sheet.shape == (2 * 16 + 2, 4 * 24 + 3 * 2, 3)
    assert np.array_equal(sheet[:16, :24], FRAMES[0])
    assert np.array_equal(sheet[-16:, -24:], FRAMES[-1])
