"""softmax(q k^T * scale + mask) v in the ways that models write it, and the masks that they pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.configuration import ADDITIVE, Configuration


def build_mask(c: Configuration, valid: Tensor, queries: int, around: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The mask of a configuration's kind, from which text is real.

    Args:
        valid: bool [B, S].
        queries: Q.
        around: keys before and after the text, all of them real.

    Returns:
        [B, 1, 1 or Q, K], bool or of `dtype`.
    """
    key = key_mask(valid, around)
    wide = key[:, None, None, :]
    if c.mask == "key":
        return wide
    if c.mask == "stretched":
        return wide.expand(-1, -1, queries, -1)
    if c.mask == "key_query":
        return wide & key[:, None, :, None]
    if c.mask == "minus_inf":
        return torch.zeros(wide.shape, dtype=dtype).masked_fill(~wide, -math.inf)
    if c.mask == "minus_1e4":
        return ((1.0 - key.to(dtype)) * -10000.0)[:, None, None, :]
    assert c.mask == "lowest"
    return torch.where(wide, torch.zeros((), dtype=dtype), torch.full((), torch.finfo(dtype).min, dtype=dtype))


def key_mask(valid: Tensor, around: tuple[int, int]) -> Tensor:
    """bool [B, K] of bool [B, S]."""
    before, after = (valid.new_ones(valid.shape[0], count) for count in around)
    return torch.cat([before, valid, after], dim=1)


def attend(c: Configuration, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as the configuration spells it; q [B, H, L, D], k and v [B, H, S, D] -> [B, L, H * D]."""
    if c.spelling == "sdpa":
        out = F.scaled_dot_product_attention(q, k, v, mask)
    elif c.spelling == "sdpa_keyword":
        out = F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, dropout_p=0.0, is_causal=False)
    elif c.spelling == "sdpa_scale":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.8 / math.sqrt(c.head_dim))
    else:
        out = _written(c, q, k, v, mask)
    return out.transpose(1, 2).flatten(2)


def scale_of(c: Configuration) -> float:
    """The factor on the logits that `attend` applies."""
    return (0.8 if c.spelling == "sdpa_scale" else 1.0) / math.sqrt(c.head_dim)


def _written(c: Configuration, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scale = c.head_dim**-0.5
    if c.spelling == "matmul":
        return _weights(c, q @ k.transpose(-2, -1) * scale, v, mask) @ v
    if c.spelling == "scaled_queries":
        scores = torch.matmul(q / math.sqrt(c.head_dim), k.mT)
        return torch.matmul(_weights(c, scores, v, mask), v)
    if c.spelling == "einsum":
        weights = _weights(c, torch.einsum("bhld,bhsd->bhls", q, k) * scale, v, mask)
        return torch.einsum("bhls,bhsd->bhld", weights, v)
    if c.spelling == "einsum_tokens_first":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        weights = _weights(c, torch.einsum("blhd,bshd->bhls", q * scale, k), v, mask)
        return torch.einsum("bhls,bshd->blhd", weights, v).transpose(1, 2)
    return _merged(c, q, k, v, mask, scale)


def _merged(c: Configuration, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Samples and heads in one dimension."""
    batch, heads = q.shape[:2]
    q, k, v = (x.reshape(batch * heads, x.shape[2], x.shape[3]) for x in (q, k, v))
    if c.spelling == "bmm":
        scores = torch.bmm(q, k.transpose(1, 2)) * scale
    else:
        empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
        scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=scale)
    if mask is None:
        weights = _weights(c, scores, v, None)
    else:
        split = scores.view(batch, heads, scores.shape[1], scores.shape[2])
        weights = _weights(c, split, v, mask).flatten(0, 1)
    return torch.bmm(weights, v).unflatten(0, (batch, heads))


def _weights(c: Configuration, scores: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and c.mask in ADDITIVE:
        scores = scores + mask
    elif mask is not None and c.fill == "masked_fill":
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = torch.where(mask, scores, -math.inf)
    if c.precise_softmax:
        precise = torch.promote_types(v.dtype, torch.float32)
        return F.softmax(scores.to(precise), dim=-1).to(v.dtype)
    return scores.softmax(-1)
