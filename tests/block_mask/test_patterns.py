"""Each pattern equals its definition over tokens, and is as monotone and as symmetric as it says."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from jenga_compile.block_mask import Adjacency, Mask, Own, Spatial, Temporal, Tile, Window, adjacency, patterns, reach
from jenga_compile.errors import OptionOutOfRange, OutOfRange
from jenga_compile.grid import CurveKind, TokenGrid
from tests.block_mask.strategies import (
    BLOCKS,
    GRIDS,
    KINDS,
    LAW,
    PATTERNS,
    RADII,
    SPATIALS,
    TEMPORALS,
    TILES,
    WINDOWS,
    by_definition,
)


@pytest.mark.parametrize("masks", [WINDOWS, TILES, SPATIALS, TEMPORALS, PATTERNS])
def test_a_pattern_equals_its_definition(masks: st.SearchStrategy[Mask]) -> None:
    @LAW
    @given(masks, GRIDS, KINDS, BLOCKS)
    def law(mask: Mask, grid: TokenGrid, kind: CurveKind, block: int) -> None:
        block = max(block, grid.tokens // 24)
        assert torch.equal(mask.dense(grid, kind, block), by_definition(mask, grid, kind, block))

    law()


@LAW
@given(PATTERNS, GRIDS, KINDS, BLOCKS)
def test_a_block_sees_itself_and_the_mask_is_the_callers_own(
    mask: Mask, grid: TokenGrid, kind: CurveKind, block: int
) -> None:
    seen = mask.dense(grid, kind, block)
    assert seen.dtype == torch.bool
    assert seen.shape == (grid.blocks(block), grid.blocks(block))
    assert seen.diagonal().all()
    kept = seen.clone()
    seen.zero_()
    assert torch.equal(mask.dense(grid, kind, block), kept)


@LAW
@given(WINDOWS | st.builds(Spatial, st.integers(0, 3), st.just(False)), GRIDS, KINDS, BLOCKS)
def test_windows_and_frames_are_symmetric(mask: Mask, grid: TokenGrid, kind: CurveKind, block: int) -> None:
    seen = mask.dense(grid, kind, block)
    assert torch.equal(seen, seen.T)


def test_a_tile_at_the_border_sees_as_much_as_any_so_tiles_are_not_symmetric() -> None:
    seen = Tile((1, 1, 1), (1, 1, 3)).dense(TokenGrid(1, 1, 6), "linear", block=1)
    assert seen.sum(1).tolist() == [3] * 6
    assert seen[0, 2]
    assert not seen[2, 0]


@LAW
@given(RADII, RADII, st.integers(0, 3), st.integers(0, 3), GRIDS, KINDS, BLOCKS)
def test_a_larger_window_sees_more(
    small: float, large: float, few: int, many: int, grid: TokenGrid, kind: CurveKind, block: int
) -> None:
    small, large, few, many = *sorted((small, large)), *sorted((few, many))
    pairs = [
        (Window(small), Window(large)),
        (Window(small, few), Window(large, many)),
        (Spatial(few), Spatial(many)),
        (Temporal(small), Temporal(large)),
        (Temporal(small, first_frame=False), Temporal(large)),
        (Tile((1, 2, 2), (1 + 2 * few,) * 3), Tile((1, 2, 2), (1 + 2 * many,) * 3)),
    ]
    for less, more in pairs:
        assert not (less.dense(grid, kind, block) & ~more.dense(grid, kind, block)).any()


@LAW
@given(GRIDS, KINDS, BLOCKS)
def test_the_values_at_the_edge_are_known_masks(grid: TokenGrid, kind: CurveKind, block: int) -> None:
    touching = adjacency(grid, kind, block)
    assert torch.equal(Adjacency().dense(grid, kind, block), touching)
    assert torch.equal(Window(3**0.5 + 1e-9).dense(grid, kind, block), touching)
    assert torch.equal(Window(0.5).dense(grid, kind, block), Own().dense(grid, kind, block))
    assert Window(1e9).dense(grid, kind, block).all()
    assert Window(1e9, frames=10**9).dense(grid, kind, block).all()
    assert Spatial(10**9).dense(grid, kind, block).all()
    assert Tile((99, 99, 99), (1, 1, 1)).dense(grid, kind, block).all()
    assert Tile((1, 1, 1), (99, 99, 99)).dense(grid, kind, block).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Window(0), "Window.radius 0 is outside (0, inf)"),
        (lambda: Window(float("nan")), "Window.radius nan"),
        (lambda: Window(True), "Window.radius True"),
        (lambda: Window(1, frames=-1), "Window.frames -1"),
        (lambda: Window(1, frames=1.0), "Window.frames 1.0"),
        (lambda: Tile((1, 2, 3), (3, 2, 3)), "Tile.window (3, 2, 3) is outside three odd"),
        (lambda: Tile((1, 0, 3), (3, 3, 3)), "Tile.tile (1, 0, 3)"),
        (lambda: Tile((1, 3), (3, 3, 3)), "Tile.tile (1, 3)"),
        (lambda: Tile([1, 2, 3], (3, 3, 3)), "Tile.tile [1, 2, 3]"),
        (lambda: Spatial(-1), "Spatial.frames -1"),
        (lambda: Spatial(first_frame=1), "Spatial.first_frame 1"),
        (lambda: Temporal(-0.5), "Temporal.radius -0.5"),
        (lambda: Temporal(first_frame=None), "Temporal.first_frame None"),
    ],
)
def test_a_bad_field_is_refused_at_birth(make: object, text: str) -> None:
    with pytest.raises(OutOfRange) as caught:
        make()  # type: ignore[operator]
    assert text in str(caught.value)


def test_a_bad_block_or_curve_is_refused() -> None:
    for mask in (Own(), Window(1), Own() | Window(2)):
        with pytest.raises(OptionOutOfRange, match="block=0"):
            mask.dense(TokenGrid(2, 2, 2), block=0)
    with pytest.raises(OptionOutOfRange, match="curve='hilbert'"):
        Window(1).dense(TokenGrid(2, 2, 2), "hilbert")  # type: ignore[arg-type]


def test_masks_are_frozen_and_one_value_has_one_text() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Window(2).radius = 3  # type: ignore[misc]
    assert {Window(2), Window(2.0)} == {Window(2)}
    assert repr(Window(2)) == repr(Window(2.0))


def test_a_first_call_under_a_mode_leaves_nothing_of_the_mode() -> None:
    patterns._video.cache_clear()
    with FakeTensorMode(), torch.device("meta"), torch.inference_mode():
        Window(2).dense(TokenGrid(4, 4, 4), block=8)
    seen = Window(2).dense(TokenGrid(4, 4, 4), block=8)
    assert type(seen) is torch.Tensor
    assert not seen.is_inference()


@pytest.mark.parametrize(
    "mask",
    [
        Window(12),
        Window(30),
        Window(16, 2),
        Tile((6, 8, 8), (3, 3, 3)),
        Tile((1, 1, 1), (5, 9, 9)),
        Spatial(),
        Temporal(30),
    ],
    ids=repr,
)
def test_720p_in_under_two_seconds_cold(mask: Mask) -> None:
    patterns._video.cache_clear()
    reach.boxes_of_blocks.cache_clear()
    start = time.process_time()
    mask.dense(TokenGrid(32, 45, 80))
    assert time.process_time() - start < 2.0
