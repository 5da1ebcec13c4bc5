"""Definition of `jenga::carved_attention`: a permutation around two definitions; the contract is in `op.py`."""

from __future__ import annotations

import torch

from jenga_compile.curve import CutCurve, curve_order
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels.block_select import reference as select
from jenga_compile.kernels.block_sparse_attention import reference as attend
from jenga_compile.kernels.static_masks import StaticMasks


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
) -> torch.Tensor:
    length, video = q.shape[2], grid.tokens
    on_curve = range(video) if reordered else curve_order(grid, curve).tolist()
    text_positions = [p for p in range(length) if not video_start <= p < video_start + video]
    order = [video_start + token for token in on_curve] + text_positions
    mask = None if key_mask is None else key_mask[:, order]
    always, allowed = masks.always.dense(grid, curve), masks.allowed.dense(grid, curve)

    q, k, v = q[:, :, order], k[:, :, order], v[:, :, order]
    indices, counts = select.block_select(q, k, always, knobs, video, mask, False, allowed)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    carved = attend.block_sparse_attention(q, k, v, indices, counts, knobs, video, mask, scale)
    out = torch.empty_like(carved)
    out[:, :, order] = carved
    return out
