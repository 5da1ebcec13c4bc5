"""scaled_dot_product_attention on [N, L, D]  ->  the same on [N, 1, L, D].   [ROUNDING]

Before   out: [N, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=mask)    N = B*H, mask [L, L] or [N, L, L]
After    stacked: [N, 1, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=mask), q, k, v [N, 1, L, D]
         out: [N, L, D] = stacked.squeeze(1)                                       mask [L, L] or [N, 1, L, L]

Legal because a sample of one head is the same matrices; PyTorch may take another kernel for four dimensions than for
three, which rounds in other places. The output's memory format stays as it was.
Fires on   large self-attention whose heads are merged with the batch, or that has none; under a mask of two or three
           dimensions.
Leaves     other masks, what depends on data, and all that `mark_attention` leaves, which says why.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node

from jenga_compile.config import Carving
from jenga_compile.passes.call import arguments_of, not_plain
from jenga_compile.passes.eligibility import not_meant, not_rewritable
from jenga_compile.passes.graph import graphs_of, is_tensor, tensor_of
from jenga_compile.passes.ledger import Ledger


def add_heads(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        for node in graph_module.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
            call = arguments_of(node)
            is_merged = tensor_of(call["query"]).dim() == 3
            if is_merged and (not_plain(node, call) or check(node, call, ledger.options.carving)) is None:
                _rewrite(graph_module.graph, node, call)
        graph_module.recompile()


def check(node: Node, call: dict[str, Any], carving: Carving) -> str | None:
    """Why plain self-attention of three dimensions is not given a fourth; None if it is."""
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    if mask is not None and tensor_of(mask).dim() not in (2, 3):
        return f"{tensor_of(mask).dim()}-dimensional mask for 3-dimensional queries"
    rejection = not_rewritable((query, key, value), tensor_of(node))
    return rejection or not_meant(query, -2, tensor_of(key).shape[-2], carving)


def _rewrite(graph: Graph, node: Node, call: dict[str, Any]) -> None:
    out = tensor_of(node)
    with graph.inserting_before(node):
        stacked = {name: _unsqueezed(graph, value) for name, value in call.items()}
        made = graph.call_function(F.scaled_dot_product_attention, (), stacked)
        made.meta = {**node.meta, "example_value": out.unsqueeze(1)}
        result = graph.call_method("squeeze", (made, 1))
        result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _unsqueezed(graph: Graph, value: Any) -> Any:
    """An argument of three dimensions with a fourth, that of the heads; any other as it is."""
    if not is_tensor(value) or tensor_of(value).dim() != 3:
        return value
    made = graph.call_method("unsqueeze", (value, 1))
    made.meta = {**value.meta, "example_value": tensor_of(value).unsqueeze(1)}
    return made
