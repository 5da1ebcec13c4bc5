"""Pictures have a colour a block, agree with the mask, and are written whole."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from jenga_compile.block_mask import (
    Adjacency,
    Everything,
    Fixed,
    Importance,
    Mask,
    Nothing,
    Own,
    PerHead,
    Spatial,
    Temporal,
    Window,
    draw,
    draw_row,
    drawing,
)
from jenga_compile.curve import inverse_order
from jenga_compile.errors import ExtraMissing, ImportancesDiffer, OutOfRange
from jenga_compile.grid import TokenGrid

pytest.importorskip("PIL", reason="pictures need Pillow")

GRID = TokenGrid(4, 16, 24)
MASKS = [Adjacency(), Importance() & Window(8) | Own(), Spatial(0) & Nothing(), Everything()]


def pixels(picture: np.ndarray, level: int) -> int:
    return int((picture == drawing._PALETTE[level]).all(-1).sum())


def squares(mask: Mask, level: int, *, row: int | None = None) -> float:
    """Squares of a colour, in pixels of one square."""
    picture = draw(mask, GRID) if row is None else draw_row(mask, GRID, row=row)
    side = drawing._MATRIX_SIDE // GRID.blocks() if row is None else drawing._FRAME_WIDTH // GRID.w
    found, legend = pixels(picture, level), 12 * 12
    return (found - legend) / (side - 1) ** 2 if found else 0


@pytest.mark.parametrize("mask", [Adjacency(), Window(8), Spatial(0) | Own()], ids=repr)
def test_a_matrix_has_a_square_for_each_pair(mask: Mask) -> None:
    seen = mask.dense(GRID)
    assert squares(mask, drawing._SEEN) == int(seen.sum()) - GRID.blocks()
    assert squares(mask, drawing._OWN) == GRID.blocks()
    assert squares(mask, drawing._HIDDEN) == int((~seen).sum())


@pytest.mark.parametrize("row", [0, 5, 11])
def test_a_row_has_a_square_for_each_token(row: int) -> None:
    mask = Adjacency()
    blocks = inverse_order(GRID) // 128
    seen = mask.dense(GRID)[row][blocks]
    assert squares(mask, drawing._OWN, row=row) == int((blocks == row).sum()) == 128
    assert squares(mask, drawing._SEEN, row=row) == int(seen.sum()) - 128
    assert squares(mask, drawing._HIDDEN, row=row) == int((~seen).sum())


def test_what_may_be_seen_and_what_is_hidden_of_its_own_is_told_apart() -> None:
    assert squares(Importance(), drawing._OWN_MAY) == GRID.blocks()
    assert squares(Importance() | Own(), drawing._MAY) == GRID.blocks() ** 2 - GRID.blocks()
    assert squares(Nothing(), drawing._OWN_HIDDEN) == GRID.blocks()
    assert not pixels(draw(Adjacency(), GRID), drawing._MAY)


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_the_file_holds_the_picture(mask: Mask, tmp_path: Path) -> None:
    from PIL import Image

    for name, picture in (
        ("matrix.png", draw(mask, GRID, path=tmp_path / "matrix.png")),
        ("row.png", draw_row(mask, GRID, "sliced", 3, tmp_path / "row.png")),
    ):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        with Image.open(tmp_path / name) as written:
            assert np.array_equal(np.asarray(written), picture)


def test_heads_stand_side_by_side_and_a_row_is_of_one() -> None:
    heads = PerHead((Spatial(0), Temporal()))
    both, one = draw(heads, GRID), draw(heads.head(0), GRID)
    assert both.shape[1] > one.shape[1]
    assert np.array_equal(draw_row(heads, GRID, row=2, head=1), draw_row(Temporal(), GRID, row=2))
    assert np.array_equal(draw_row(heads, GRID, row=2, head=2), draw_row(Spatial(0), GRID, row=2))


@pytest.mark.parametrize("grid", [TokenGrid(1, 1, 1), TokenGrid(1, 3, 700), TokenGrid(40, 20, 2)], ids=str)
def test_any_grid_and_any_length_of_text_fits_the_page(grid: TokenGrid) -> None:
    blocks = grid.blocks()
    many = Window(2) & Spatial() | Temporal() & Window(3) | Window(5, 1) & Importance() | Temporal(2) & Own()
    assert draw(many, grid).shape[1] >= drawing._NARROWEST
    assert draw_row(many, grid, row=blocks - 1).shape[1] >= drawing._NARROWEST
    assert draw(Fixed.of(Everything().dense(grid)), grid).shape[1] >= drawing._NARROWEST


def test_a_row_or_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(OutOfRange, match=r"row 12 is outside \[0, 12\)"):
        draw_row(Own(), GRID, row=12)
    with pytest.raises(OutOfRange, match="head -1"):
        draw_row(Own(), GRID, head=-1)
    with pytest.raises(ImportancesDiffer):
        draw(Importance(0.2) | Importance(0.3), GRID)


def test_without_pillow_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"PIL": None}), pytest.raises(ExtraMissing, match=r"jenga-compile\[diffusers\]"):
        draw(Own(), GRID, path=tmp_path / "mask.png")
    assert not list(tmp_path.iterdir())
