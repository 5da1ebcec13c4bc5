"""Adjacency of blocks: pinned by golden digests, and equal to its brute-force definition."""

import hashlib
import json
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from jenga_compile import curve
from jenga_compile.block_mask import adjacency, neighbours
from jenga_compile.curve import curve_order
from jenga_compile.errors import OptionOutOfRange
from jenga_compile.grid import CurveKind, TokenGrid

GOLDEN = json.loads((Path(__file__).parent / "golden" / "curves.json").read_text())
KINDS = st.sampled_from(get_args(CurveKind))
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8])
GRIDS = st.builds(TokenGrid, SIZES, SIZES, SIZES)
LAW = settings(max_examples=100, deadline=None, derandomize=True)


def adjacency_by_definition(grid: TokenGrid, kind: CurveKind, block: int) -> torch.Tensor:
    """Every pair of tokens, then any over the pairs of two blocks: O(tokens^2)."""
    tokens = torch.stack(torch.unravel_index(curve_order(grid, kind), grid.shape), dim=1)
    near = (tokens[:, None] - tokens[None]).abs().amax(2) <= 1
    members = [slice(start, start + block) for start in range(0, grid.tokens, block)]
    return torch.tensor([[bool(near[i, j].any()) for j in members] for i in members])


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['kind']}-{g['t']}x{g['h']}x{g['w']}")
def test_golden(golden: dict) -> None:
    touches = adjacency(TokenGrid(golden["t"], golden["h"], golden["w"]), golden["kind"], golden["block"])
    packed = np.packbits(touches.numpy().reshape(-1))
    assert int(touches.sum()) == golden["adjacency_nnz"]
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == golden["adjacency_sha"]


@LAW
@given(GRIDS, KINDS, st.data())
def test_equals_the_definition(grid: TokenGrid, kind: CurveKind, data: st.DataObject) -> None:
    block = data.draw(st.integers(max(1, grid.tokens // 24), grid.tokens + 1), label="block")
    assert torch.equal(adjacency(grid, kind, block), adjacency_by_definition(grid, kind, block))


@LAW
@given(GRIDS, KINDS, st.integers(1, 130))
def test_is_a_square_symmetric_mask_with_a_true_diagonal(grid: TokenGrid, kind: CurveKind, block: int) -> None:
    touches = adjacency(grid, kind, block)
    assert touches.dtype == torch.bool
    assert touches.shape == (grid.blocks(block), grid.blocks(block))
    assert torch.equal(touches, touches.T)
    assert touches.diagonal().all()


@LAW
@given(GRIDS, st.integers(1, 130))
def test_blocks_next_on_the_sliced_curve_touch(grid: TokenGrid, block: int) -> None:
    assert adjacency(grid, "sliced", block).diagonal(1).all()


def test_nothing_wraps_around_the_grid() -> None:
    row = adjacency(TokenGrid(1, 1, 6), "linear", block=1)
    assert torch.equal(row, torch.ones(6, 6).tril(1).triu(-1).bool())
    # Token 3 ends one row and token 4 begins the next: linear neighbours, three columns apart.
    assert not adjacency(TokenGrid(1, 2, 4), "linear", block=1)[3, 4]


def test_a_partial_last_block_takes_part() -> None:
    touches = adjacency(TokenGrid(1, 1, 9), "linear", block=4)
    assert touches.int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


def test_a_caller_cannot_write_into_the_cache() -> None:
    grid = TokenGrid(4, 4, 4)
    adjacency(grid, block=8).zero_()
    assert adjacency(grid, block=8).all()


def test_a_first_call_under_a_mode_leaves_nothing_of_the_mode() -> None:
    neighbours.adjacency_array.cache_clear()
    curve.order_arrays.cache_clear()
    with FakeTensorMode(), torch.device("meta"), torch.inference_mode():
        adjacency(TokenGrid(4, 4, 4), block=8)
    touches = adjacency(TokenGrid(4, 4, 4), block=8)
    assert type(touches) is torch.Tensor
    assert not touches.is_inference()


def test_a_bad_block_or_curve_is_refused() -> None:
    with pytest.raises(OptionOutOfRange, match=r"block=0 is outside \[1, inf\)"):
        adjacency(TokenGrid(2, 2, 2), block=0)
    with pytest.raises(OptionOutOfRange, match=r"curve='hilbert'.*gilbert"):
        adjacency(TokenGrid(2, 2, 2), "hilbert")  # type: ignore[arg-type]


def test_720p_order_and_adjacency_in_under_a_second_cold() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        neighbours.adjacency_array.cache_clear()
        curve.order_arrays.cache_clear()
        start = time.process_time()
        curve_order(TokenGrid(32, 45, 80))
        adjacency(TokenGrid(32, 45, 80))
        assert time.process_time() - start < 1.0
    finally:
        torch.set_num_threads(threads)
