"""A call of scaled_dot_product_attention: its arguments by name, and why one is no plain self-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.eligibility import HANGS_ON_DATA, not_inference, not_self
from jenga_compile.passes.graph import is_unbacked, tensor_of

_POSITIONAL = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_DEFAULTS: dict[str, Any] = {
    "attn_mask": None,
    "dropout_p": 0.0,
    "is_causal": False,
    "scale": None,
    "enable_gqa": False,
}


def arguments_of(node: Node) -> dict[str, Any]:
    given = dict(zip(_POSITIONAL, node.args, strict=False))
    return {**_DEFAULTS, **given, **node.kwargs}


def not_plain(node: Node, call: dict[str, Any]) -> str | None:
    """Why a call of three or four dimensions is no plain self-attention, as far as it shows; None if it is."""
    query, key, value = (tensor_of(call[name]) for name in ("query", "key", "value"))
    if any(_hangs_on_data(tensor) for tensor in (query, key, value)):
        return HANGS_ON_DATA
    rejection = not_inference(tensor_of(node))
    if rejection is not None:
        return rejection
    if query.dim() not in (3, 4):
        return f"{query.dim()} dimensions: expected [batch, heads, tokens, head_dim]"
    if call["is_causal"]:
        return "causal attention"
    if call["dropout_p"]:
        return f"dropout {call['dropout_p']}"
    broadcast = f"broadcast: keys {list(key.shape)} and values {list(value.shape)} for queries {list(query.shape)}"
    if not query.dim() == key.dim() == value.dim():
        return broadcast
    if (query.dim() == 4 or call["enable_gqa"]) and query.shape[-3] != key.shape[-3]:
        return f"grouped-query attention: {int(query.shape[-3])} query heads, {int(key.shape[-3])} key heads"
    if _is_cross(query, key):
        return not_self(call["query"], -2, key.shape[-2])
    if any(isinstance(size, int) and size == 0 for size in query.shape):
        return f"empty: queries {list(query.shape)}"
    if query.shape[:-1] != key.shape[:-1] or query.shape[:-1] != value.shape[:-1]:
        return broadcast
    return None


def _hangs_on_data(tensor: torch.Tensor) -> bool:
    """Whether a size other than the number of tokens is known only when the graph runs."""
    return any(is_unbacked(size) for dim, size in enumerate(tensor.shape) if dim != tensor.dim() - 2)


def _is_cross(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether keys are other tokens than queries, as far as their number tells; unequal until shown to be equal."""
    if is_unbacked(query.shape[-2]) or is_unbacked(key.shape[-2]):
        return not statically_known_true(query.shape[-2] == key.shape[-2])
    return query.shape[-2] != key.shape[-2]
