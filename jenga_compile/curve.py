"""Space-filling orders of a token grid: neighbours in the video become neighbours in the sequence.

An order is a permutation of the row-major linear indices of `TokenGrid`; blocks of attention are runs of consecutive
positions on it.

    gilbert   3D generalized Hilbert curve over the whole video (the paper's order)
    sliced    the 2D curve a frame, each frame starting in the corner nearest to the previous frame's end
    linear    raster, the order the model itself uses

Source of the curve: the "gilbert" algorithm, https://github.com/jakubcerveny/gilbert (BSD-2-Clause); implemented here
from its construction rules. Every box of the recursion depends only on its three edges, so it is built once and
reused wherever the same box recurs.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

from jenga_compile.errors import OptionOutOfRange
from jenga_compile.grid import CurveKind, TokenGrid

Order: TypeAlias = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class CutCurve:
    """A curve that starts anew at some frames, so that the frames between two cuts stay together.

    Raises:
        OptionOutOfRange: the cuts are not ascending frame numbers above 0.
    """

    kind: CurveKind

    cuts: tuple[int, ...]
    """First frames of the parts, but for the first part; a cut at or past the last frame cuts nothing."""

    def __post_init__(self) -> None:
        if not all(low < high for low, high in pairwise((0, *self.cuts))):
            way_out = "Name frames above 0 once each, in ascending order."
            raise OptionOutOfRange(name="cuts", value=self.cuts, expected="ascending frames", way_out=way_out)


AnyCurve: TypeAlias = CurveKind | CutCurve


def curve_order(grid: TokenGrid, kind: AnyCurve = "gilbert") -> torch.Tensor:
    """The linear index of the token at each curve position; `tokens[:, curve_order(grid)]` puts tokens on the curve.

    Args:
        grid: the latent grid.
        kind: which curve, see the module's docstring.

    Returns:
        int64 on the CPU, shape [t*h*w]: the caller's own copy of a cached array.

    Raises:
        OptionOutOfRange: `kind` is not a curve.
    """
    return torch.from_numpy(order_arrays(grid, kind)[0].copy())


def inverse_order(grid: TokenGrid, kind: AnyCurve = "gilbert") -> torch.Tensor:
    """The curve position of the token at each linear index; `tokens[:, inverse_order(grid)]` undoes `curve_order`.

    Args:
        grid: the latent grid.
        kind: which curve, see the module's docstring.

    Returns:
        int64 on the CPU, shape [t*h*w]: the caller's own copy of a cached array.

    Raises:
        OptionOutOfRange: `kind` is not a curve.
    """
    return torch.from_numpy(order_arrays(grid, kind)[1].copy())


@lru_cache(maxsize=64)
def order_arrays(grid: TokenGrid, kind: AnyCurve) -> tuple[Order, Order]:
    """`curve_order` and `inverse_order` as read-only numpy arrays, built once a grid and shared.

    What is cached is numpy, because a tensor belongs to the mode it was made in: one made while a graph is traced is
    fake, one made in inference mode cannot be saved for a backward.

    Raises:
        OptionOutOfRange: `kind` is not a curve.
    """
    if isinstance(kind, CutCurve):
        order = _cut(grid, kind)
    elif kind == "gilbert":
        order = _gilbert(grid)
    elif kind == "sliced":
        order = _sliced(grid)
    elif kind == "linear":
        order = np.arange(grid.tokens, dtype=np.int64)
    else:
        raise OptionOutOfRange(name="curve", value=kind, expected=str(get_args(CurveKind)), way_out="Pick one of them.")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(grid.tokens)
    order.setflags(write=False)
    inverse.setflags(write=False)
    return order, inverse


class _Edge(NamedTuple):
    """One edge of a box, seen from the corner where the curve enters it."""

    length: int  # tokens
    stride: int  # linear index from one token to the next, negative where the edge runs against its axis

    @property
    def last(self) -> int:
        """Linear index from the first token of the edge to the last."""
        return (self.length - 1) * self.stride

    def reverse(self) -> _Edge:
        return _Edge(self.length, -self.stride)

    def split(self) -> tuple[_Edge, _Edge]:
        """Two halves; the first is of even length wherever the edge has more than two tokens."""
        # The algorithm floors signed vectors: against its axis, an odd edge has the longer half first.
        half = self.length // 2 if self.stride > 0 else (self.length + 1) // 2
        if half % 2 and self.length > 2:
            half += 1
        return _Edge(half, self.stride), _Edge(self.length - half, self.stride)


_Box: TypeAlias = tuple[_Edge, _Edge, _Edge]
"""The curve enters at the corner the edges start from and leaves at the far end of the first one."""


def _gilbert(grid: TokenGrid) -> Order:
    """The curve over the whole grid, along its longest edge; a tie goes to w, then h, then t.

    It starts at token 0 and ends at the far end of that edge, whatever the sizes. Steps are unit steps when all sizes
    are even. With one odd size a step is at most 2 (Chebyshev and Manhattan), with more at most 3 and 4; these two
    bounds are observed over 100,000 grids, not proven.
    A grid of one frame has at most one diagonal step: where the longer side is odd and the shorter even.
    """
    w, h, t = _Edge(grid.w, 1), _Edge(grid.h, grid.w), _Edge(grid.t, grid.h * grid.w)
    major = max(w, h, t, key=lambda edge: edge.length)
    first, second, third = (major, *(edge for edge in (w, h, t) if edge is not major))
    return _walk((first, second, third), {})


def _walk(box: _Box, known: dict[_Box, Order]) -> Order:
    """Linear index, relative to the entry corner, of each token of the box in curve order."""
    if box not in known:
        shortest, middle, longest = sorted(box)
        if shortest.length == 0:
            path = np.empty(0, np.int64)
        elif middle.length == 1:
            path = np.arange(longest.length, dtype=np.int64) * longest.stride
        else:
            path = np.concatenate([start + _walk(part, known) for start, part in _parts(*box)])
        known[box] = path
    return known[box]


def _parts(a: _Edge, b: _Edge, c: _Edge) -> list[tuple[int, _Box]]:
    """The boxes that the curve crosses one after the other, each with the linear index of its entry corner.

    The first half of `a` is crossed on the way out, the second on the way back, and the boxes in between carry the
    curve across; which of `b` and `c` are split depends on which of them is long.
    """
    a1, a2 = a.split()
    b1, b2 = b.split()
    c1, c2 = c.split()
    after_a1, after_b1, after_c1 = (edge.length * edge.stride for edge in (a1, b1, c1))

    if 2 * a.length > 3 * max(b.length, c.length):
        return [(0, (a1, b, c)), (after_a1, (a2, b, c))]
    if 3 * b.length > 4 * c.length:
        return [
            (0, (b1, c, a1)),
            (after_b1, (a, b2, c)),
            (a.last + b1.last, (b1.reverse(), c, a2.reverse())),
        ]
    if 3 * c.length > 4 * b.length:
        return [
            (0, (c1, a1, b)),
            (after_c1, (a, b, c2)),
            (a.last + c1.last, (c1.reverse(), a2.reverse(), b)),
        ]
    return [
        (0, (b1, c1, a1)),
        (after_b1, (c, a1, b2)),
        (b1.last + c.last, (a, b1.reverse(), c2.reverse())),
        (a.last + after_b1 + c.last, (c.reverse(), a2.reverse(), b2)),
        (a.last + b1.last, (b1.reverse(), c1, a2.reverse())),
    ]


def _sliced(grid: TokenGrid) -> Order:
    """Frame after frame; the frame's curve is mirrored so that it starts nearest to where the last one ended.

    The curve of a frame ends in a corner, so that the step into the next frame is always a unit step along t.
    """
    h, w = grid.h, grid.w
    y, x = np.divmod(_gilbert(TokenGrid(1, h, w)), w)
    frames = []
    end_y, end_x = 0, 0
    for z in range(grid.t):
        rows = y if 2 * end_y < h else h - 1 - y
        columns = x if 2 * end_x < w else w - 1 - x
        frames.append((z * h + rows) * w + columns)
        end_y, end_x = int(rows[-1]), int(columns[-1])
    return np.concatenate(frames)


def _cut(grid: TokenGrid, curve: CutCurve) -> Order:
    """The orders of the parts, one after the other."""
    bounds = (0, *(cut for cut in curve.cuts if cut < grid.t), grid.t)
    frame = grid.h * grid.w
    parts = [(first, TokenGrid(last - first, grid.h, grid.w)) for first, last in pairwise(bounds)]
    return np.concatenate([first * frame + order_arrays(part, curve.kind)[0] for first, part in parts])
