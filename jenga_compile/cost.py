"""What carved attention costs, counted before it runs: how many blocks it is expected to see."""

from __future__ import annotations

import functools
import math

import torch

from jenga_compile.block_mask import Adjacency, Everything, Mask, Own, split
from jenga_compile.config import Carving
from jenga_compile.curve import AnyCurve
from jenga_compile.grid import TokenGrid


def expected_keep(grid: TokenGrid, curve: AnyCurve, carving: Carving) -> float:
    """Share of the video blocks that a query block sees, in the mean over the query blocks.

    What `keep` chooses is joined with the blocks that are always seen, as if the two were independent. They are not
    quite: where a query block's most important blocks are its neighbours, it is less. The cutoff can only add to it.
    """
    keep, always, allowed = _parts(carving)
    if always == Own():
        return _kept(keep, grid.blocks())
    return _joined(grid, curve, _kept(keep, grid.blocks()), always, allowed)


def _parts(carving: Carving) -> tuple[float, Mask, Mask]:
    """What importance keeps, what is always seen, and what importance may choose from."""
    keep = carving.keep if carving.knobs is None else carving.knobs.keep
    if carving.blocks is None:
        return keep, Adjacency() if carving.adjacency else Own(), Everything()
    parts = split(carving.blocks)
    if parts.importance is None:
        return 0.0, parts.always, parts.allowed
    return (parts.importance.keep if carving.knobs is None else keep), parts.always, parts.allowed


def _kept(keep: float, blocks: int) -> float:
    return math.ceil(keep * blocks - 1e-3) / blocks


@functools.lru_cache(maxsize=64)
def _joined(grid: TokenGrid, curve: AnyCurve, kept: float, always: Mask, allowed: Mask) -> float:
    seen = always.dense(grid, curve).double()
    free = torch.ones_like(seen) if allowed == Everything() else allowed.dense(grid, curve).double()
    return float((seen + (1 - seen) * free * kept).mean())
