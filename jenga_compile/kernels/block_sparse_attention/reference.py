"""Definition of `jenga::block_sparse_attention`, one query row at a time; the contract is in `op.py`."""

from __future__ import annotations

import torch

_BLOCK = 128


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    batch, heads, length, _ = q.shape
    rows = -(-video // _BLOCK)
    bias = torch.zeros(length, dtype=_precise(q.dtype), device=q.device)
    bias[video:] = float(knobs[2])
    out = q.new_empty((batch, length, heads, v.shape[-1])).transpose(1, 2)
    for b in range(batch):
        valid = torch.ones(length, dtype=torch.bool, device=q.device) if key_mask is None else key_mask[b]
        for h in range(heads):
            for r in range(rows):
                listed = torch.zeros(length, dtype=torch.bool, device=q.device)
                for block in indices[b, h, r, : counts[b, h, r]].tolist():
                    if block < rows:
                        listed[_BLOCK * block : min(_BLOCK * (block + 1), video)] = True
                    else:
                        listed[video + _BLOCK * (block - rows) : video + _BLOCK * (block - rows + 1)] = True
                span = slice(_BLOCK * r, min(_BLOCK * (r + 1), video))
                out[b, h, span] = _attend(q[b, h, span], k[b, h], v[b, h], listed & valid, bias, scale)
            text = slice(video, length)
            out[b, h, text] = _attend(q[b, h, text], k[b, h], v[b, h], valid, torch.zeros_like(bias), scale)
    return out


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """softmax(q k^T * scale + bias) v over the allowed keys; q [n, D], k [L, D], v [L, Dv], allowed and bias [L]."""
    if not allowed.any():
        return q.new_zeros(q.shape[0], v.shape[-1])
    dtype = _precise(q.dtype)
    logits = q.to(dtype) @ k[allowed].to(dtype).T * scale + bias[allowed]
    return (logits.softmax(-1) @ v[allowed].to(dtype)).to(q.dtype)
