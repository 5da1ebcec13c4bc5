"""TokenGrid: sizes, counts, text form, and the errors that guard its birth."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jenga_compile.errors import InvalidGrid, OptionOutOfRange, UnreadableGrid
from jenga_compile.grid import BLOCK, TokenGrid

GRIDS = st.builds(TokenGrid, *[st.integers(1, 1000)] * 3)


@given(GRIDS, st.integers(1, 5000))
def test_blocks_cover_the_tokens_and_only_the_last_is_partial(grid: TokenGrid, block: int) -> None:
    full = (grid.blocks(block) - 1) * block
    assert 1 <= grid.last_block_tokens(block) <= block
    assert full + grid.last_block_tokens(block) == grid.tokens == grid.t * grid.h * grid.w


@given(GRIDS)
def test_parse_reads_what_str_writes(grid: TokenGrid) -> None:
    assert TokenGrid.parse(str(grid)) == grid
    assert hash(TokenGrid.parse(str(grid))) == hash(grid)


def test_hunyuan_720p() -> None:
    grid = TokenGrid(32, 45, 80)
    assert str(grid) == "32x45x80"
    assert grid.shape == (32, 45, 80)
    assert grid.tokens == 115_200
    assert (grid.blocks(), grid.last_block_tokens()) == (900, BLOCK)


def test_wan_480p_has_a_partial_last_block() -> None:
    assert (TokenGrid(21, 30, 52).blocks(), TokenGrid(21, 30, 52).last_block_tokens()) == (256, 120)


def test_a_grid_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenGrid(1, 2, 3).t = 4  # type: ignore[misc]


@pytest.mark.parametrize("sizes", [(0, 4, 4), (4, -1, 4), (4, 4, 2.0), (4, "4", 4), (True, 4, 4), (None, 4, 4)])
def test_invalid_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidGrid) as raised:
        TokenGrid(*sizes)
    assert str(sizes) in str(raised.value)
    assert "(32, 45, 80)" in str(raised.value)


def test_sizes_are_integers_of_any_library() -> None:
    grid = TokenGrid(*np.array([3, 8, 6]))
    assert grid == TokenGrid(3, 8, 6)
    assert str(grid) == "3x8x6"
    assert {type(size) for size in grid.shape} == {int}


@pytest.mark.parametrize(
    "text", ["", "32x45", "32x45x80x2", "32X45X80", "32 x 45 x 80", "-1x2x3", "1.0x2x3", "1x2x3\n"]
)
def test_unreadable_text_is_refused(text: str) -> None:
    with pytest.raises(UnreadableGrid) as raised:
        TokenGrid.parse(text)
    assert repr(text) in str(raised.value)
    assert "'32x45x80'" in str(raised.value)


def test_readable_text_of_an_invalid_grid_is_refused_as_a_grid() -> None:
    with pytest.raises(InvalidGrid, match=r"\(0, 4, 4\)"):
        TokenGrid.parse("0x4x4")


@pytest.mark.parametrize("block", [0, -128])
def test_a_block_holds_at_least_one_token(block: int) -> None:
    with pytest.raises(OptionOutOfRange, match=rf"block={block} is outside \[1, inf\)\. The kernels use {BLOCK}"):
        TokenGrid(4, 4, 4).blocks(block)
    with pytest.raises(OptionOutOfRange):
        TokenGrid(4, 4, 4).last_block_tokens(block)
