"""scaled_dot_product_attention(q, k, v, ...)  ->  jenga::attention(q, k, v, mask, scale, site).   [EXACT]

Before   out: [B, H, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=mask)   any call form
After    out: [B, H, L, D] = jenga::attention(q, k, v, mask, scale, 7)               entered in the ledger as site 7

Legal because the operator is the same function on the same arguments; it only stays visible below AOTAutograd. What
autocast would cast is cast in the graph, and the output keeps the memory format that later views rely on.
Fires on   self-attention in shape: as many keys as queries, four dimensions; under any mask.
Leaves     cross-attention, a part of the queries, causal, grouped-query, broadcast, dropout, gradients, transformed
           functions, sizes but the number of tokens that depend on data; each is entered with its reason.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from jenga_compile.config import Carving
from jenga_compile.passes.add_heads import check as check_heads
from jenga_compile.passes.call import arguments_of, not_plain
from jenga_compile.passes.eligibility import UNKNOWN_SIZES
from jenga_compile.passes.graph import graphs_of, module_path, sizes_of, tensor_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION
from jenga_compile.passes.sizes import hint_of
from jenga_compile.passes.written.parts import whole_of
from jenga_compile.sites import Site


def mark_attention(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        for node in graph_module.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
            call = arguments_of(node)
            rejection = check(node, call, ledger.options.carving)
            number = ledger.enter(_site(node, call, rejection, ledger))
            if rejection is None:
                _rewrite(graph_module, node, call, number)
        graph_module.recompile()


def _site(node: Node, call: dict[str, Any], rejection: str | None, ledger: Ledger) -> Site:
    query, key = (sizes_of(call[name]) for name in ("query", "key"))
    asked = whole_of(call["query"], -2, tensor_of(call["key"]).shape[-2])
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
        intended=ledger.options.carving.is_meant(hint_of(asked), key[-2]),
    )


def check(node: Node, call: dict[str, Any], carving: Carving) -> str | None:
    """Why a call cannot be carved, as far as the call itself shows; None if it may be."""
    rejection = not_plain(node, call)
    if rejection is None and tensor_of(call["query"]).dim() == 3:
        return check_heads(node, call, carving) or UNKNOWN_SIZES
    return rejection


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
