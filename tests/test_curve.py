"""Orders of a grid: pinned by golden digests, and by the laws that hold at any size."""

import hashlib
import json
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from jenga_compile import curve
from jenga_compile.curve import curve_order, inverse_order
from jenga_compile.errors import OptionOutOfRange
from jenga_compile.grid import CurveKind, TokenGrid

GOLDEN = json.loads((Path(__file__).parent / "golden" / "curves.json").read_text())
KINDS = st.sampled_from(get_args(CurveKind))
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 16, 17, 19, 23])
EVEN_SIZES = st.integers(1, 12).map(lambda half: 2 * half)
LAW = settings(max_examples=100, deadline=None, derandomize=True)


def grids(sizes: st.SearchStrategy[int] = SIZES) -> st.SearchStrategy[TokenGrid]:
    return st.builds(TokenGrid, sizes, sizes, sizes)


def tokens_on(grid: TokenGrid, kind: CurveKind) -> torch.Tensor:
    """(z, y, x) of the token at each curve position, shape [t*h*w, 3]."""
    return torch.stack(torch.unravel_index(curve_order(grid, kind), grid.shape), dim=1)


def steps_on(grid: TokenGrid, kind: CurveKind) -> torch.Tensor:
    """|dz|, |dy|, |dx| from each curve position to the next, shape [t*h*w - 1, 3]."""
    return tokens_on(grid, kind).diff(dim=0).abs()


def digest(order: torch.Tensor) -> str:
    return hashlib.sha256(order.numpy().astype("<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['kind']}-{g['t']}x{g['h']}x{g['w']}")
def test_golden(golden: dict) -> None:
    grid = TokenGrid(golden["t"], golden["h"], golden["w"])
    assert digest(curve_order(grid, golden["kind"])) == golden["order_sha"]
    assert digest(inverse_order(grid, golden["kind"])) == golden["inverse_sha"]


def test_a_small_curve_can_be_read() -> None:
    head = [0, 16, 17, 1, 5, 21, 20, 4, 8, 9, 13, 12, 28, 29, 25, 24]
    assert curve_order(TokenGrid(4, 4, 4)).tolist()[:16] == head


@LAW
@given(grids(), KINDS)
def test_an_order_is_a_permutation_and_its_inverse_undoes_it(grid: TokenGrid, kind: CurveKind) -> None:
    order, inverse, raster = curve_order(grid, kind), inverse_order(grid, kind), torch.arange(grid.tokens)
    assert order.dtype == inverse.dtype == torch.int64
    assert torch.equal(order.sort().values, raster)
    assert torch.equal(order[inverse], raster)
    assert torch.equal(inverse[order], raster)


@LAW
@given(grids())
def test_linear_is_raster(grid: TokenGrid) -> None:
    assert torch.equal(curve_order(grid, "linear"), torch.arange(grid.tokens))


@LAW
@given(grids())
def test_gilbert_runs_along_the_longest_edge_width_first(grid: TokenGrid) -> None:
    tokens = tokens_on(grid, "gilbert")
    far = [0, 0, 0]
    axis = max((2, 1, 0), key=lambda i: grid.shape[i])
    far[axis] = grid.shape[axis] - 1
    assert tokens[0].tolist() == [0, 0, 0]
    assert tokens[-1].tolist() == far


@LAW
@given(grids(EVEN_SIZES))
def test_gilbert_takes_unit_steps_on_even_sizes(grid: TokenGrid) -> None:
    assert (steps_on(grid, "gilbert").sum(1) == 1).all()


@LAW
@given(grids())
@example(TokenGrid(5, 5, 5))
@example(TokenGrid(5, 5, 6))
@example(TokenGrid(32, 45, 80))
def test_gilbert_steps_are_bounded_on_any_size(grid: TokenGrid) -> None:
    if grid.tokens > 1:
        steps = steps_on(grid, "gilbert")
        odd = sum(size % 2 for size in grid.shape)
        assert steps.amax() <= (1, 2, 3, 3)[odd]
        assert steps.sum(1).amax() <= (1, 2, 4, 4)[odd]


@LAW
@given(grids())
def test_sliced_keeps_frames_contiguous_and_steps_straight_into_the_next(grid: TokenGrid) -> None:
    tokens, frame = tokens_on(grid, "sliced"), grid.h * grid.w
    assert torch.equal(tokens[:, 0], torch.arange(grid.t).repeat_interleave(frame))
    assert torch.equal(tokens[frame::frame, 1:], tokens[frame - 1 : -1 : frame, 1:])


@LAW
@given(grids())
def test_sliced_has_one_diagonal_a_frame_where_parity_forces_it(grid: TokenGrid) -> None:
    if grid.tokens > 1:
        steps = steps_on(grid, "sliced")
        forced = max(grid.h, grid.w) % 2 == 1 and min(grid.h, grid.w) % 2 == 0
        assert steps.amax() == 1
        assert int((steps.sum(1) > 1).sum()) == (grid.t if forced else 0)


@LAW
@given(SIZES, SIZES)
def test_one_frame_is_the_same_sliced_or_not(h: int, w: int) -> None:
    grid = TokenGrid(1, h, w)
    assert torch.equal(curve_order(grid, "sliced"), curve_order(grid, "gilbert"))


def test_a_caller_cannot_write_into_the_cache() -> None:
    grid = TokenGrid(3, 4, 5)
    before = curve_order(grid)
    curve_order(grid).zero_()
    inverse_order(grid).zero_()
    assert torch.equal(curve_order(grid), before)
    assert torch.equal(curve_order(grid)[inverse_order(grid)], torch.arange(grid.tokens))


def test_a_first_call_under_a_mode_leaves_nothing_of_the_mode() -> None:
    curve.order_arrays.cache_clear()
    with FakeTensorMode(), torch.device("meta"):
        curve_order(TokenGrid(3, 4, 5))
    with torch.inference_mode():
        curve_order(TokenGrid(5, 4, 3))
    for grid in (TokenGrid(3, 4, 5), TokenGrid(5, 4, 3)):
        assert type(curve_order(grid)) is torch.Tensor
        assert not curve_order(grid).is_inference()


@pytest.mark.parametrize("ordered", [curve_order, inverse_order])
def test_an_unknown_curve_is_refused(ordered) -> None:
    with pytest.raises(OptionOutOfRange) as raised:
        ordered(TokenGrid(2, 2, 2), "hilbert")
    assert "curve='hilbert'" in str(raised.value)
    assert all(kind in str(raised.value) for kind in get_args(CurveKind))


@pytest.mark.parametrize("kind", get_args(CurveKind))
def test_720p_is_ordered_in_under_half_a_second_cold(kind: CurveKind) -> None:
    curve.order_arrays.cache_clear()
    start = time.process_time()
    curve_order(TokenGrid(32, 45, 80), kind)
    assert time.process_time() - start < 0.5
