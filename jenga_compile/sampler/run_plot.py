"""A run as a picture: noise, tokens, density and time of every step. Needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jenga_compile.errors import ExtraMissing, UnknownVideoFormat
from jenga_compile.files import check_writable
from jenga_compile.media import write_image

if TYPE_CHECKING:
    from jenga_compile.sampler.run_report import RunReport, StepReport

_WIDTH, _BAND, _GAP, _LEFT, _RIGHT, _TOP = 1040, 120, 34, 96, 24, 62
_INK, _FAINT, _PAPER, _GRID = (28, 32, 40), (110, 118, 130), (255, 255, 255), (226, 230, 236)
_COMPUTED, _SKIPPED = (38, 92, 168), (240, 128, 30)


def draw(report: RunReport, path: Path) -> None:
    """Draw `report` to a PNG file; errors as `RunReport.plot` says."""
    if path.suffix.lower() != ".png":
        raise UnknownVideoFormat(path=str(path), found=path.suffix or "no suffix", formats=".png")
    check_writable(path)
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as missing:
        raise ExtraMissing(module=missing.name, extra="diffusers") from missing
    bands = [band for band in _bands(report.steps) if any(value is not None for value in band[1])]
    height = _TOP + len(bands) * (_BAND + _GAP) + 16
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_LEFT, 14), report.title, fill=_INK)
    pen.text((_LEFT, 32), report._sums()[0], fill=_FAINT)
    for row, (name, values) in enumerate(bands):
        _band(pen, name, values, report.steps, _TOP + row * (_BAND + _GAP))
    write_image(path, np.asarray(image))


def _bands(steps: Sequence[StepReport]) -> list[tuple[str, list[float | None]]]:
    return [
        ("noise, sigma", [step.sigma for step in steps]),
        ("video tokens", [None if step.grid is None else float(step.grid.tokens) for step in steps]),
        ("density", [step.density for step in steps]),
        ("seconds", [step.seconds for step in steps]),
        ("FLOP", [step.flops for step in steps]),
    ]


def _band(pen: Any, name: str, values: Sequence[float | None], steps: Sequence[StepReport], top: int) -> None:
    """Bars of one quantity, computed steps in one colour and skipped ones in the other."""
    highest = max((value for value in values if value is not None), default=0.0) or 1.0
    bottom = top + _BAND
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (_BAND - 14)
        pen.line((_LEFT, y, _WIDTH - _RIGHT, y), fill=_GRID)
        pen.text((12, y - 6), f"{share * highest:.3g}", fill=_FAINT)
    pen.text((_LEFT, top - 12), name, fill=_INK)
    wide = (_WIDTH - _LEFT - _RIGHT) / len(steps)
    for place, (step, value) in enumerate(zip(steps, values, strict=True)):
        left = _LEFT + place * wide
        if value is not None:
            box = (left + 1, bottom - value / highest * (_BAND - 14), left + max(wide - 1, 2), bottom)
            pen.rectangle(box, fill=_COMPUTED if step.computed else _SKIPPED)
        if place % max(1, round(len(steps) / 10)) == 0:
            pen.text((left, bottom + 3), str(step.index), fill=_FAINT)
