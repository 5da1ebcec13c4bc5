"""Which blocks hold two tokens that are near each other, without a matrix of tokens.

A block of tokens is a set of boxes: its runs along w, tens of them instead of 128 tokens. Two blocks see each other
when some box of one is near some box of the other, and most pairs are decided by the boxes around the blocks alone.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from jenga_compile.curve import AnyCurve, order_arrays
from jenga_compile.grid import TokenGrid

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_PAIRS = 1 << 16
"""Pairs of blocks that are looked at together; bounds the memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of R blocks, P each, from corner `low` to corner `high`, both inside; [R, P, 3] int64 in (t, h, w).

    A block of fewer boxes repeats its last one.
    """

    low: Ints
    high: Ints

    def hull(self) -> Boxes:
        """One box around each block, [R, 1, 3]."""
        return Boxes(self.low.min(1, keepdims=True), self.high.max(1, keepdims=True))

    def widen(self, by: tuple[int, int, int]) -> Boxes:
        """Every box larger by so many tokens on both sides of each axis; it may leave the grid."""
        return Boxes(self.low - by, self.high + by)


@lru_cache(maxsize=16)
def boxes_of_blocks(grid: TokenGrid, kind: AnyCurve, block: int) -> Boxes:
    """The runs along w of every block of `block` consecutive curve positions."""
    blocks = grid.blocks(block)
    block_of = order_arrays(grid, kind)[1] // block
    # Stable, so tokens of one block stay in raster order.
    raster = np.argsort(block_of, kind="stable")
    owner = block_of[raster]
    starts = np.ones(grid.tokens, np.bool_)
    starts[1:] = (np.diff(owner) != 0) | (np.diff(raster) != 1) | (raster[1:] % grid.w == 0)
    first = np.flatnonzero(starts)
    last = np.append(first[1:], grid.tokens) - 1

    count = np.bincount(owner[first], minlength=blocks)
    offset = np.cumsum(count) - count
    pick = offset[:, None] + np.minimum(np.arange(count.max()), count[:, None] - 1)
    return Boxes(_corner(grid, raster[first][pick]), _corner(grid, raster[last][pick]))


def reach(query: Boxes, key: Boxes, limit: int, weights: tuple[int, int, int] = (1, 1, 1)) -> Bools:
    """Which key blocks each query block reaches: some two boxes have sum(weight * gap**2) <= limit.

    The gap along an axis is the distance of the nearest tokens of the two boxes, 0 where the boxes overlap on it.

    Args:
        query: R blocks.
        key: N blocks.
        limit: square of the largest distance that still counts.
        weights: of the axes (t, h, w); 0 leaves an axis out.

    Returns:
        bool, shape [R, N].
    """
    around_query, around_key = query.hull(), key.hull()
    low, high = around_key.low[:, 0], around_key.high[:, 0]
    near = _within(around_query, low, high, limit, weights)
    # With the corners swapped, a gap is the distance of the farthest tokens.
    seen = _within(Boxes(around_query.high, around_query.low), high, low, limit, weights).copy()
    rows, columns = np.nonzero(near & ~seen)
    for start in range(0, len(rows), _PAIRS):
        row, column = rows[start : start + _PAIRS], columns[start : start + _PAIRS]
        seen[row, column] = _any_box(query, key, around_key, row, column, limit, weights)
    return seen


def _any_box(
    query: Boxes, key: Boxes, around_key: Boxes, row: Ints, column: Ints, limit: int, weights: tuple[int, int, int]
) -> Bools:
    """For pairs (row, column) of blocks, whether any box of one is near any box of the other."""
    hit = np.zeros(len(row), np.bool_)
    undecided = np.arange(len(row))
    for box in range(query.low.shape[1]):
        low, high = query.low[row[undecided], box], query.high[row[undecided], box]
        hull = _pairs(around_key, column[undecided])
        may = _within(hull, low[:, None], high[:, None], limit, weights)[:, 0]
        asked = undecided[may]
        boxes = _pairs(key, column[asked])
        hit[asked] = _within(boxes, low[may, None], high[may, None], limit, weights).any(1)
        undecided = undecided[~hit[undecided]]
        if not len(undecided):
            break
    return hit


def _pairs(boxes: Boxes, index: Ints) -> Boxes:
    return Boxes(boxes.low[index], boxes.high[index])


def _within(boxes: Boxes, low: Ints, high: Ints, limit: int, weights: tuple[int, int, int]) -> Bools:
    """Whether boxes are near the boxes (low, high); all broadcast, without their last axis."""
    distance: Ints = np.zeros(1, np.int64)
    for axis, weight in enumerate(weights):
        if weight:
            gap = np.maximum(boxes.low[..., axis] - high[..., axis], low[..., axis] - boxes.high[..., axis])
            distance = distance + weight * np.square(np.maximum(gap, 0))
    shape = np.broadcast_shapes(boxes.low.shape[:-1], low.shape[:-1])
    return np.broadcast_to(distance <= limit, shape)


def _corner(grid: TokenGrid, raster: Ints) -> Ints:
    return np.stack(np.unravel_index(raster, grid.shape), axis=-1)
