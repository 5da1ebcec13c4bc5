"""Grids, masks and the definition of each pattern, token by token."""

from __future__ import annotations

from typing import get_args

import torch
from hypothesis import settings
from hypothesis import strategies as st

from jenga_compile.block_mask import (
    Adjacency,
    Condition,
    Everything,
    Importance,
    Mask,
    Nothing,
    Own,
    PerHead,
    Spatial,
    Temporal,
    Tile,
    Window,
)
from jenga_compile.curve import curve_order
from jenga_compile.grid import CurveKind, TokenGrid

LAW = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = st.sampled_from(get_args(CurveKind))
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8])
GRIDS = st.builds(TokenGrid, SIZES, SIZES, SIZES)
BLOCKS = st.integers(3, 40)
RADII = st.sampled_from([0.5, 1, 2**0.5, 2, 2.5, 3, 5, 20])
ODD = st.sampled_from([1, 3, 5, 9])

WINDOWS = st.builds(Window, RADII, st.none() | st.integers(0, 4))
TILES = st.builds(Tile, st.tuples(*[st.integers(1, 4)] * 3), st.tuples(ODD, ODD, ODD))
SPATIALS = st.builds(Spatial, st.integers(0, 3), st.booleans())
TEMPORALS = st.builds(Temporal, st.just(0.0) | RADII, st.booleans())
PATTERNS = st.one_of(st.just(Own()), st.just(Adjacency()), WINDOWS, TILES, SPATIALS, TEMPORALS)

SAMPLE: tuple[Mask, ...] = (
    Own(),
    Adjacency(),
    Window(2.5),
    Window(3, frames=1),
    Tile((2, 2, 2), (1, 3, 3)),
    Spatial(),
    Temporal(1.5),
    Condition(),
    Everything(),
    Nothing(),
)
"""A few of each; the laws of the algebra are over these."""


def _composed(children: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
    pairs = st.tuples(children, children)
    return pairs.map(lambda pair: pair[0] | pair[1]) | pairs.map(lambda pair: pair[0] & pair[1])


def composed(leaves: tuple[Mask, ...]) -> st.SearchStrategy[Mask]:
    """Expressions over leaves."""
    return st.recursive(st.sampled_from(leaves), _composed, max_leaves=6)


STATIC = composed(SAMPLE)
PER_HEAD = st.lists(STATIC, min_size=1, max_size=3).map(lambda masks: PerHead(tuple(masks)))
ANY_STATIC = STATIC | PER_HEAD
IMPORTANCE = Importance(0.4, 0.2)
DYNAMIC = composed((*SAMPLE, IMPORTANCE, IMPORTANCE, IMPORTANCE))
ANY = DYNAMIC | st.lists(DYNAMIC, min_size=1, max_size=3).map(lambda masks: PerHead(tuple(masks)))


def positions(grid: TokenGrid, kind: CurveKind) -> torch.Tensor:
    """(t, h, w) of the token at each curve position, [L, 3]."""
    return torch.stack(torch.unravel_index(curve_order(grid, kind), grid.shape), dim=1)


def sees(mask: Mask, grid: TokenGrid, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Whether a token sees a token, by the definition of the pattern: positions [L, 1, 3] and [1, L, 3] -> [L, L]."""
    far = (query - key).abs()
    first = key[..., 0] == 0
    match mask:
        case Own():
            return (far == 0).all(-1)
        case Adjacency():
            return far.amax(-1) <= 1
        case Window(radius=radius, frames=None):
            return far.square().sum(-1) <= radius**2
        case Window(radius=radius, frames=frames):
            return (far[..., 1:].square().sum(-1) <= radius**2) & (far[..., 0] <= frames)
        case Spatial(frames=frames, first_frame=sink):
            return (far[..., 0] <= frames) | (first & sink)
        case Temporal(radius=radius, first_frame=sink):
            return (far[..., 1:].square().sum(-1) <= radius**2) | (first & sink)
        case Tile(tile=tile, window=window):
            return _in_sliding_window(grid, tile, window, query, key)
    raise AssertionError(mask)


def _in_sliding_window(
    grid: TokenGrid, tile: tuple[int, ...], window: tuple[int, ...], query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """The middle of the window is the query's tile, moved so far that the window lies inside."""
    inside = torch.ones(query.shape[0], key.shape[1], dtype=torch.bool)
    for axis in range(3):
        tiles = -(-grid.shape[axis] // tile[axis])
        half = window[axis] // 2
        if window[axis] < tiles:
            middle = (query[..., axis] // tile[axis]).clamp(half, tiles - 1 - half)
            inside &= (middle - key[..., axis] // tile[axis]).abs() <= half
    return inside


def by_definition(mask: Mask, grid: TokenGrid, kind: CurveKind, block: int) -> torch.Tensor:
    """Every pair of tokens, then any over the pairs of two blocks."""
    at = positions(grid, kind)
    near = sees(mask, grid, at[:, None], at[None])
    members = [slice(start, start + block) for start in range(0, grid.tokens, block)]
    return torch.tensor([[bool(near[i, j].any()) for j in members] for i in members])
