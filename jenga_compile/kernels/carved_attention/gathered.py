"""`jenga::carved_attention` as gather, select, attend and gather back; the contract is in `op.py`."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from jenga_compile.curve import CutCurve
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels.block_select import block_select
from jenga_compile.kernels.block_sparse_attention import block_sparse_attention
from jenga_compile.kernels.curve_index.op import cached_index
from jenga_compile.kernels.static_masks import StaticMasks, cached_tensors


def carved_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    grid: TokenGrid,
    video_start: int,
    curve: CutCurve,
    masks: StaticMasks,
    knobs: torch.Tensor,
    scale: float | None,
    reordered: bool,
    provider: str,
    meter: torch.Tensor | None = None,
) -> torch.Tensor:
    length, video = q.shape[2], grid.tokens
    order = None
    if not reordered or video_start:
        order = _order(grid, curve, video_start, length, reordered, q.device)
        q, k, v = (_take(x, order) for x in (q, k, v))
        key_mask = None if key_mask is None else key_mask.index_select(1, order)
    always, allowed = cached_tensors(masks, grid, curve, q.device)
    indices, counts = block_select(q, k, always, knobs, video, key_mask, allowed_mask=allowed)
    if meter is not None:
        meter[0] += counts.sum()
        meter[1] += indices.numel()
    out = block_sparse_attention(q, k, v, indices, counts, knobs, video, key_mask, scale, provider)
    if order is None:
        carved: torch.Tensor = out
        return carved
    return _take(out, _inverse(grid, curve, video_start, length, reordered, q.device))


def attend_to_all(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Dense attention, for which the order of the tokens does not matter."""
    mask = None if key_mask is None else key_mask[:, None, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _order(
    grid: TokenGrid, curve: CutCurve, start: int, length: int, reordered: bool, device: torch.device
) -> torch.Tensor:
    """Where each token of [video in curve order, text before, text after] is in the input, int64 [L]."""
    video = _video(grid, curve, False, reordered, device)
    before = torch.arange(start, device=device)
    after = torch.arange(start + grid.tokens, length, device=device)
    return torch.cat((video + start, before, after))


def _inverse(
    grid: TokenGrid, curve: CutCurve, start: int, length: int, reordered: bool, device: torch.device
) -> torch.Tensor:
    """Where each token of the input is in [video in curve order, text before, text after], int64 [L]."""
    video = _video(grid, curve, True, reordered, device)
    text = torch.arange(grid.tokens, length, device=device)
    return torch.cat((text[:start], video, text[start:]))


def _video(grid: TokenGrid, curve: CutCurve, inverse: bool, reordered: bool, device: torch.device) -> torch.Tensor:
    if reordered:
        return torch.arange(grid.tokens, device=device)
    return cached_index(grid, curve, inverse, 0, 0, device)


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[:, :, index] with BSHD storage; measured 5 times faster than `index_select` along dimension 2."""
    return x.transpose(1, 2).index_select(1, index).transpose(1, 2)
