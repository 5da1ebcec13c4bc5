"""`jenga::carved_attention` as gather, select, attend and gather back; the contract is in `op.py`."""

from __future__ import annotations

from functools import lru_cache

import torch

from jenga_compile.block_mask import adjacency as adjacency_mask
from jenga_compile.config import CurveKind
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels.block_select import block_select
from jenga_compile.kernels.block_sparse_attention import block_sparse_attention
from jenga_compile.kernels.curve_index.op import cached_index


def carved_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    grid: TokenGrid,
    video_start: int,
    curve: CurveKind,
    adjacency: bool,
    knobs: torch.Tensor,
    scale: float | None,
) -> torch.Tensor:
    length, video = q.shape[2], grid.tokens
    order = _order(grid, curve, video_start, length, q.device)
    q, k, v = (_take(x, order) for x in (q, k, v))
    if key_mask is not None:
        key_mask = key_mask.index_select(1, order)
    static_mask = cached_static_mask(grid, curve, adjacency, q.device)
    indices, counts = block_select(q, k, static_mask, knobs, video, key_mask)
    out = block_sparse_attention(q, k, v, indices, counts, knobs, video, key_mask, scale)
    return _take(out, _inverse(grid, curve, video_start, length, q.device))


def _order(grid: TokenGrid, curve: CurveKind, start: int, length: int, device: torch.device) -> torch.Tensor:
    """Model position of each token of [video in curve order, text before, text after], int64 [L]."""
    before = torch.arange(start, device=device)
    after = torch.arange(start + grid.tokens, length, device=device)
    return torch.cat((cached_index(grid, curve, False, device) + start, before, after))


def _inverse(grid: TokenGrid, curve: CurveKind, start: int, length: int, device: torch.device) -> torch.Tensor:
    """Position in [video in curve order, text before, text after] of each token of the model's order, int64 [L]."""
    text = torch.arange(grid.tokens, length, device=device)
    return torch.cat((text[:start], cached_index(grid, curve, True, device), text[start:]))


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[:, :, index] with BSHD storage; measured 5 times faster than `index_select` along dimension 2."""
    return x.transpose(1, 2).index_select(1, index).transpose(1, 2)


@lru_cache(maxsize=64)
def cached_static_mask(grid: TokenGrid, curve: CurveKind, adjacency: bool, device: torch.device) -> torch.Tensor:
    """The blocks that are always kept, bool [R, R]: shared between callers, never write to it.

    Ask once before a CUDA graph is captured: a tensor made inside would live in the graph's memory.
    """
    # The cache outlives the caller's mode.
    with torch.inference_mode(False):
        if adjacency:
            return adjacency_mask(grid, curve).to(device)
        return torch.eye(grid.blocks(), dtype=torch.bool, device=device)
