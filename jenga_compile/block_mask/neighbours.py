"""Which blocks touch in the video, whatever lies between them on the curve."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from jenga_compile.curve import AnyCurve, order_arrays
from jenga_compile.grid import BLOCK, TokenGrid


def adjacency(grid: TokenGrid, kind: AnyCurve = "gilbert", block: int = BLOCK) -> torch.Tensor:
    """Blocks that touch: some token of one is within Chebyshev distance 1, in (t, h, w), of some token of the other.

    A block touches itself. A partial last block takes part with the tokens it has. Nothing wraps around the grid.

    Args:
        grid: the latent grid.
        kind: the curve that the blocks are cut from.
        block: tokens in a block.

    Returns:
        bool on the CPU, shape [N, N] with N = grid.blocks(block); symmetric, its diagonal true. The
        caller's own copy of a cached array.

    Raises:
        OptionOutOfRange: `kind` is not a curve, or `block` is below 1.

    Source: the paper, section 3.1, and its release (26-neighbourhood of tokens).
    """
    return torch.from_numpy(adjacency_array(grid, kind, block).copy())


# Half of the 26 neighbours, as (dt, dh, dw); the other half are their negatives.
_FORWARD = [offset for offset in product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]


@lru_cache(maxsize=64)
def adjacency_array(grid: TokenGrid, kind: AnyCurve, block: int) -> npt.NDArray[np.bool_]:
    """`adjacency` as a read-only numpy array, built once and shared."""
    n = grid.blocks(block)
    block_of = (order_arrays(grid, kind)[1] // block).reshape(grid.shape)
    touches = np.eye(n, dtype=np.bool_)
    for offset in _FORWARD:
        here = block_of[tuple(slice(max(0, -d), -d if d > 0 else None) for d in offset)]
        there = block_of[tuple(slice(max(0, d), d if d < 0 else None) for d in offset)]
        touches[here, there] = True
    touches |= touches.T
    touches.setflags(write=False)
    return touches
