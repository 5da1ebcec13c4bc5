"""scaled_dot_product_attention(q, k, v, ...)  ->  jenga::attention(q, k, v, mask, scale, site).   [EXACT]

Before   out: [B, H, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=mask)   any call form
After    out: [B, H, L, D] = jenga::attention(q, k, v, mask, scale, 7)               entered in the ledger as site 7

Legal because the operator is the same function on the same arguments; it only stays visible below AOTAutograd. What
autocast would cast is cast in the graph, and the output keeps the memory format that later views rely on.
Fires on   self-attention in shape: as many keys as queries, four dimensions; under any mask.
Leaves     cross-attention, causal, grouped-query, broadcast, dropout, gradients, transformed functions, sizes but the
           number of tokens that depend on data; each is entered with its reason.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.eligibility import HANGS_ON_DATA, not_inference
from jenga_compile.passes.graph import graphs_of, is_unbacked, module_path, sizes_of, tensor_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION
from jenga_compile.report import Site

_POSITIONAL = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_DEFAULTS: dict[str, Any] = {
    "attn_mask": None,
    "dropout_p": 0.0,
    "is_causal": False,
    "scale": None,
    "enable_gqa": False,
}


def mark_attention(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        for node in graph_module.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
            call = _arguments(node)
            rejection = check(node, call)
            number = ledger.enter(_site(node, call, rejection, ledger))
            if rejection is None:
                _rewrite(graph_module, node, call, number)
        graph_module.recompile()


def _site(node: Node, call: dict[str, Any], rejection: str | None, ledger: Ledger) -> Site:
    query, key = (sizes_of(call[name]) for name in ("query", "key"))
    return Site(
        path=module_path(node),
        decision="left",
        reason=rejection or "the compiler removed the call",  # stands if no later pass meets the call again
        batch=query[0] if len(query) == 4 else 1,
        heads=query[-3] if len(query) >= 3 else 1,
        queries=query[-2],
        keys=key[-2],
        head_dim=query[-1],
        masked=call["attn_mask"] is not None,
        intended=ledger.options.carving.is_meant(query[-2], key[-2]),
    )


def check(node: Node, call: dict[str, Any]) -> str | None:
    """Why a call cannot be carved, as far as the call itself shows; None if it may be."""
    query, key, value = (tensor_of(call[name]) for name in ("query", "key", "value"))
    if any(_hangs_on_data(tensor) for tensor in (query, key, value)):
        return HANGS_ON_DATA
    rejection = not_inference(tensor_of(node))
    if rejection is not None:
        return rejection
    if query.dim() != 4:
        return f"{query.dim()} dimensions: expected [batch, heads, tokens, head_dim]"
    if call["is_causal"]:
        return "causal attention"
    if call["dropout_p"]:
        return f"dropout {call['dropout_p']}"
    if query.shape[1] != key.shape[1]:
        return f"grouped-query attention: {int(query.shape[1])} query heads, {int(key.shape[1])} key heads"
    if _is_cross(query, key):
        queries, keys = (sizes_of(call[name])[2] or "data-dependent" for name in ("query", "key"))
        return f"cross-attention: {queries} queries, {keys} keys"
    if any(isinstance(size, int) and size == 0 for size in query.shape):
        return f"empty: queries {list(query.shape)}"
    if query.shape[:3] != key.shape[:3] or query.shape[:3] != value.shape[:3]:
        return f"broadcast: keys {list(key.shape)} and values {list(value.shape)} for queries {list(query.shape)}"
    return None


def _hangs_on_data(tensor: torch.Tensor) -> bool:
    """Whether a size other than the number of tokens is known only when the graph runs."""
    return any(is_unbacked(size) for dim, size in enumerate(tensor.shape) if dim != tensor.dim() - 2)


def _is_cross(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether keys are other tokens than queries, as far as their number tells; unequal until shown to be equal."""
    if is_unbacked(query.shape[2]) or is_unbacked(key.shape[2]):
        return not statically_known_true(query.shape[2] == key.shape[2])
    return query.shape[2] != key.shape[2]


def _rewrite(gm: GraphModule, node: Node, call: dict[str, Any], number: int) -> None:
    out = tensor_of(node)
    with gm.graph.inserting_before(node):
        tensors = [_cast(gm, call[name], out.dtype) for name in ("query", "key", "value")]
        mask = call["attn_mask"]
        if mask is not None and tensor_of(mask).dtype is not torch.bool:
            mask = _cast(gm, mask, out.dtype)
        marked = gm.graph.call_function(ATTENTION, (*tensors, mask, call["scale"], number))
        batch, heads, queries, width = out.shape
        tokens_major = out.new_empty(batch, queries, heads, width).transpose(1, 2)
        marked.meta = {**node.meta, "example_value": tokens_major}
        result = marked
        if out.is_contiguous() and not tokens_major.is_contiguous():
            result = gm.graph.call_method("contiguous", (marked,))
            result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    gm.graph.erase_node(node)


def _cast(gm: GraphModule, tensor: Node, dtype: torch.dtype) -> Node:
    """What autocast does to an argument of the call."""
    if tensor_of(tensor).dtype == dtype:
        return tensor
    cast = gm.graph.call_method("to", (tensor, dtype))
    cast.meta = {**tensor.meta, "example_value": tensor_of(tensor).to(dtype)}
    return cast


def _arguments(node: Node) -> dict[str, Any]:
    given = dict(zip(_POSITIONAL, node.args, strict=False))
    return {**_DEFAULTS, **given, **node.kwargs}
