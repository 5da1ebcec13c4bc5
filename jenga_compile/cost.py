"""What carved attention costs, counted before it runs: floating-point operations, and the density they come from."""

from __future__ import annotations

import math

from jenga_compile.block_mask import adjacency
from jenga_compile.config import Carving, CurveKind
from jenga_compile.grid import TokenGrid
from jenga_compile.report import Site


def expected_keep(grid: TokenGrid, curve: CurveKind, carving: Carving) -> float:
    """Share of the video blocks that a query block sees, in the mean over the query blocks.

    What `keep` chooses is joined with the blocks that touch, as if the two were independent. They are not quite: where
    a query block's most important blocks are its neighbours, it is less. The cutoff can only add to it.
    """
    blocks = grid.blocks()
    kept = math.ceil(carving.keep * blocks - 1e-3)
    touching = adjacency(grid, curve).sum().item() / blocks if carving.adjacency else 0.0
    return (kept + (1 - kept / blocks) * touching) / blocks


def carved_flops(site: Site, share: float) -> int:
    """Floating-point operations of a carved site whose video queries see `share` of the video keys.

    4*B*H*D*(V*(share*V + T) + T*K) with V video queries, T = Q - V condition tokens, Q = K: video rows see all of the
    condition, condition rows see everything.
    """
    start, stop = site.video or (0, 0)
    video = stop - start
    condition = site.queries - video
    pairs = video * (share * video + site.keys - video) + condition * site.keys
    return round(4 * site.batch * site.heads * site.head_dim * pairs)
