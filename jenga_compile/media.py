"""Videos to files and back to numbers. A file appears whole or not at all.

Frames are uint8 [T, H, W, 3], RGB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jenga_compile.errors import UnknownVideoFormat, VideoNotWritten
from jenga_compile.files import all_or_none, check_writable

Frames = npt.NDArray[np.uint8]

FORMATS = (".mp4", ".gif", ".png")
"""What `write_video` can write: H.264, an animation, a contact sheet."""


def check_output(path: Path) -> None:
    """Raise before any work starts if `path` cannot be written as a video.

    Raises:
        UnknownVideoFormat: the suffix is none of `FORMATS`.
        OutputUnusable, OutputIsFolder, OutputFolderMissing: as `check_writable`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UnknownVideoFormat(path=str(path), found=path.suffix or "no suffix", formats=", ".join(FORMATS))
    check_writable(path)


def write_video(path: Path, frames: Frames, *, fps: int = 12, scale: int = 1) -> None:
    """Write frames as the format that the suffix of `path` names, each pixel enlarged to `scale` x `scale`.

    Raises:
        UnknownVideoFormat, OutputUnusable, OutputIsFolder, OutputFolderMissing: as `check_output`.
        OSError: the disk took less than all of it; `path` is then as it was.
    """
    check_output(path)
    with all_or_none([path]) as (partial,):
        encode(partial, frames, fps=fps, scale=scale)


def encode(path: Path, frames: Frames, *, fps: int, scale: int) -> None:
    """`write_video` without its promise that `path` appears whole: for a file that `all_or_none` gave."""
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    match path.suffix.lower():
        case ".mp4":
            _write_mp4(path, large, fps)
        case ".gif":
            _write_gif(path, large, fps)
        case ".png":
            write_image(path, contact_sheet([large]))


def contact_sheet(
    videos: Sequence[Frames], *, captions: Sequence[str] = (), columns: int = 8, gap: int = 4
) -> npt.NDArray[np.uint8]:
    """One row a video, `columns` frames of it at equal distances, on white, its caption below: uint8 [H, W, 3]."""
    rows = []
    for frames, text in zip(videos, captions or [""] * len(videos), strict=True):
        picks = np.linspace(0, len(frames) - 1, num=min(columns, len(frames))).round().astype(int)
        row = _join([frames[pick] for pick in picks], gap, axis=1)
        rows.append(_join([row, _caption(text, row.shape[1])], 0, axis=0) if text else row)
    return _join(rows, gap, axis=0)


def _caption(text: str, width: int, height: int = 15) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((2, 1), text, fill="black")
    return np.asarray(strip)


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    from PIL import Image

    Image.fromarray(image).save(path, format="PNG")


def psnr(frames: Frames, reference: Frames) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, peak 255; infinite for equal videos."""
    error = np.square(frames.astype(np.float64) - reference.astype(np.float64)).mean()
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def _join(images: Sequence[npt.NDArray[np.uint8]], gap: int, axis: int) -> npt.NDArray[np.uint8]:
    shape = list(images[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, np.uint8)
    parts = [part for image in images for part in (white, image)][1:]
    return np.concatenate(parts, axis=axis)


def _write_mp4(path: Path, frames: Frames, fps: int) -> None:
    import imageio.v2 as imageio
    import imageio_ffmpeg

    # yuv420p plays everywhere; it needs even sizes, which macro_block_size=2 ensures.
    imageio.mimwrite(
        path,
        list(frames),
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        quality=9,
        macro_block_size=2,
        pixelformat="yuv420p",
    )
    # ffmpeg's failures do not reach its caller.
    try:
        found = imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    except RuntimeError:
        found = 0
    if found != len(frames):
        raise VideoNotWritten(path=path.name, found=found, expected=len(frames))


def _write_gif(path: Path, frames: Frames, fps: int) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(frame).quantize(128) for frame in frames]
    # GIF counts in hundredths of a second: what rounding takes from one frame the next gives back.
    marks = [round(100 * frame / fps) for frame in range(len(frames) + 1)]
    durations = [10 * (later - earlier) for earlier, later in itertools.pairwise(marks)]
    options: dict[str, Any] = {"format": "GIF", "save_all": True, "append_images": rest, "loop": 0}
    first.save(path, duration=durations, **options)
