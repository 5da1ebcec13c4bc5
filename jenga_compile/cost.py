"""What carved attention costs, counted before it runs: how many blocks it is expected to see."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from jenga_compile.block_mask import Condition, Mask, Own, Split
from jenga_compile.config import Carving
from jenga_compile.curve import AnyCurve
from jenga_compile.grid import BLOCK, TokenGrid

_ITSELF = Own() | Condition()
"""What every query block sees. It is taken to be among those that importance chooses."""


def expected_keep(grid: TokenGrid, curve: AnyCurve, carving: Carving) -> float:
    """Share of the video blocks that a query block sees, in the mean over the query blocks.

    What `keep` chooses is joined with the blocks that are always seen, as if the two were independent. They are not
    quite: where a query block's most important blocks are its neighbours, it is less. The cutoff can only add to it.
    """
    parts = carving.split()
    kept = _kept(_keep(parts, carving), grid.blocks())
    return kept if parts.always == _ITSELF else _joined(grid, curve, kept, parts)


def _keep(parts: Split, carving: Carving) -> float:
    """Least share of the video blocks that importance chooses."""
    if parts.importance is None:
        return 0.0
    return parts.importance.keep if carving.knobs is None else carving.knobs.keep


def _kept(keep: float, blocks: int) -> float:
    return math.ceil(keep * blocks - 1e-3) / blocks


@functools.lru_cache(maxsize=64)
def _joined(grid: TokenGrid, curve: AnyCurve, kept: float, parts: Split) -> float:
    def share(head: int) -> npt.NDArray[np.float64]:
        always, allowed = (_matrix(mask, head, grid, curve) for mask in (parts.always, parts.allowed))
        return np.where(always, 1.0, np.where(allowed, kept, 0.0))

    shares = [share(head) for head in range(parts.heads)]
    return float(np.mean(shares))


def _matrix(mask: Mask, head: int, grid: TokenGrid, curve: AnyCurve) -> npt.NDArray[np.bool_]:
    """The mask of one head, [R, R]. No tensor, which would be fake while a graph is compiled."""
    return mask.head(head % mask.heads).array(grid, curve, 0, BLOCK)
