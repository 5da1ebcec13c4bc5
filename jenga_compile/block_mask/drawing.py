"""Pictures of block masks: all rows as a matrix, and one row as the tokens it sees in the video.

What importance may choose at run time is drawn pale: a picture knows no q and k. Needs Pillow.
Pictures are uint8 [height, width, 3], RGB.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from jenga_compile.block_mask.algebra import Mask, require
from jenga_compile.block_mask.splitting import split
from jenga_compile.curve import AnyCurve, order_arrays
from jenga_compile.errors import ExtraMissing
from jenga_compile.grid import BLOCK, TokenGrid

if TYPE_CHECKING:
    from PIL import ImageFont

Picture = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int64]

_HIDDEN, _MAY, _SEEN, _OWN, _OWN_MAY, _OWN_HIDDEN = range(6)
_PALETTE = np.array(
    [(233, 236, 241), (176, 203, 236), (38, 92, 168), (240, 128, 30), (250, 190, 135), (226, 205, 190)], np.uint8
)
_NAMES = ("hidden", "if important", "seen", "own", "own, if important", "own, hidden")
_INK, _FAINT, _PAPER = (28, 32, 40), (110, 118, 130), (255, 255, 255)
_MARGIN, _GAP, _LINE = 16, 10, 20
_MATRIX_SIDE, _FRAME_WIDTH = 640, 160
"""Pixels that a matrix and a frame are enlarged to, about."""

_COLUMNS, _NARROWEST, _WIDEST = 8, 560, 1920
"""Matrices or frames side by side at most; pixels of a page, where what it shows allows."""


def draw(mask: Mask, grid: TokenGrid, kind: AnyCurve = "gilbert", path: Path | None = None) -> Picture:
    """The mask as a matrix, query blocks down and key blocks across; one beside the other where heads differ.

    Args:
        mask: any mask.
        grid: the latent grid.
        kind: the curve that the blocks are cut from.
        path: where to write it as PNG, if anywhere.

    Raises:
        ExtraMissing: Pillow is not installed.
        ImportancesDiffer, MaskUnfit: the mask has no picture on this grid.
    """
    blocks = grid.blocks()
    scale = max(1, _MATRIX_SIDE // blocks)
    matrices = [_levels(mask, grid, kind, head) for head in range(mask.heads)]
    labels = [f"head {head}" if mask.heads > 1 else "" for head in range(mask.heads)]
    facts = f"{blocks} x {blocks} blocks of {BLOCK} on {grid}, {kind}; {_density(matrices)}, {_condition(mask)}"
    return _page([mask, facts], [_enlarge(m, scale) for m in matrices], labels, _present(matrices), path)


def draw_row(
    mask: Mask,
    grid: TokenGrid,
    kind: AnyCurve = "gilbert",
    row: int = 0,
    path: Path | None = None,
    *,
    head: int = 0,
) -> Picture:
    """What one query block sees, in the video: the frames side by side, a square a token.

    Args:
        mask, grid, kind, path: as for `draw`.
        row: the query block.
        head: the head, where heads differ.

    Raises:
        OutOfRange: `row` is not a block of the grid, or `head` is negative.
        ExtraMissing, ImportancesDiffer, MaskUnfit: as for `draw`.
    """
    blocks = grid.blocks()
    require(0 <= row < blocks, "row", row, f"[0, {blocks})", f"The grid {grid} has {blocks} blocks.")
    require(head >= 0, "head", head, "[0, inf)", "Pass the number of a head.")
    block_of = (order_arrays(grid, kind)[1] // BLOCK).reshape(grid.shape)
    levels = _levels(mask, grid, kind, head)[row]
    frames = levels[block_of]
    scale = max(1, _FRAME_WIDTH // grid.w)
    labels = [f"frame {z}" for z in range(grid.t)]
    facts = f"query block {row} of {blocks} on {grid}, {kind}; {_density([levels])}, {_condition(mask.head(head))}"
    return _page([mask.head(head), facts], [_enlarge(f, scale) for f in frames], labels, _present([frames]), path)


def _levels(mask: Mask, grid: TokenGrid, kind: AnyCurve, head: int) -> Levels:
    """What each pair of blocks is drawn as, [R, R]."""
    parts = split(mask)
    always = parts.always.head(head).dense(grid, kind).numpy()
    allowed = parts.allowed.head(head).dense(grid, kind).numpy()
    own = np.eye(len(always), dtype=np.bool_)
    others = np.where(always, _SEEN, np.where(allowed, _MAY, _HIDDEN))
    return np.where(own, np.where(always, _OWN, np.where(allowed, _OWN_MAY, _OWN_HIDDEN)), others)


def _density(levels: Sequence[Levels]) -> str:
    every = np.concatenate([part.reshape(-1) for part in levels])
    seen = np.isin(every, (_SEEN, _OWN)).mean()
    may = np.isin(every, (_MAY, _OWN_MAY)).mean()
    return f"{seen:.1%} seen" + (f", {may:.1%} if important" if may else "")


def _condition(mask: Mask) -> str:
    return "condition seen" if mask.sees_condition else "condition hidden"


def _present(levels: Sequence[Levels]) -> list[int]:
    return [level for level in range(len(_NAMES)) if any((part == level).any() for part in levels)]


def _enlarge(levels: Levels, scale: int) -> Picture:
    """A square of `scale` pixels each; a hair of paper between them where there is room."""
    picture = _PALETTE[levels].repeat(scale, axis=0).repeat(scale, axis=1)
    if scale >= 6:
        picture[scale - 1 :: scale] = picture[:, scale - 1 :: scale] = _PAPER
    return picture


def _page(
    title: Sequence[object], tiles: Sequence[Picture], labels: Sequence[str], legend: Sequence[int], path: Path | None
) -> Picture:
    """Title, legend and tiles, labels above them, on paper."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as missing:
        raise ExtraMissing(module="PIL", extra="diffusers") from missing

    font = ImageFont.load_default(size=13)
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), _COLUMNS, max(1, _WIDEST // width))
    step_x, step_y = width + _GAP, height + _GAP + (_LINE if any(labels) else 0)
    page_width = max(_NARROWEST, columns * step_x - _GAP) + 2 * _MARGIN
    heading, *facts = title
    lines = [(line, _INK) for line in _wrap(str(heading), font, page_width - 2 * _MARGIN)]
    lines += [(line, _FAINT) for fact in facts for line in _wrap(str(fact), font, page_width - 2 * _MARGIN)]
    top = _MARGIN + _LINE * (len(lines) + 1) + _GAP
    rows = -(-len(tiles) // columns)

    image = Image.new("RGB", (page_width, top + rows * step_y - _GAP + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(image)
    for number, (line, ink) in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + number * _LINE), line, ink, font)
    left = float(_MARGIN)
    for level in legend:
        y = _MARGIN + len(lines) * _LINE
        pen.rectangle((left, y + 3, left + 11, y + 14), tuple(_PALETTE[level].tolist()))
        pen.text((left + 17, y), _NAMES[level], _INK, font)
        left += 17 + font.getlength(_NAMES[level]) + 18
    for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x, y = _MARGIN + number % columns * step_x, top + number // columns * step_y
        pen.text((x, y), label, _FAINT, font)
        image.paste(Image.fromarray(tile), (x, y + step_y - height - _GAP))
    if path is not None:
        whole = io.BytesIO()
        image.save(whole, format="PNG")
        path.write_bytes(whole.getvalue())
    return np.asarray(image)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """The words of a text in lines of at most `width` pixels, or one word each."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
