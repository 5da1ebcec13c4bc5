"""scaled_dot_product_attention(q, k, v, ...)  ->  jenga::attention(q, k, v, mask, scale, site).   [EXACT]

Before   out: [B, H, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=mask)   any call form
After    out: [B, H, L, D] = jenga::attention(q, k, v, mask, scale, 7)               entered in the ledger as site 7

Legal because the operator is the same function on the same arguments; it only stays visible below AOTAutograd.
Fires on   self-attention in shape: as many keys as queries, four dimensions.
Leaves     cross-attention, causal, grouped-query, dropout, gradients; each is entered with its reason.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from jenga_compile.config import BLOCK
from jenga_compile.passes.graph import module_path
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
    for node in gm.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
        call = _arguments(node)
        rejection = check(call)
        query, key = (_example(call[name]).shape for name in ("query", "key"))
        site = Site(
            path=module_path(node),
            decision="left",
            reason=rejection or "the compiler removed the call",
            batch=int(query[0]) if len(query) == 4 else 1,
            heads=int(query[-3]) if len(query) >= 3 else 1,
            queries=int(query[-2]),
            keys=int(key[-2]),
            head_dim=int(query[-1]),
            masked=call["attn_mask"] is not None,
            intended=query[-2] == key[-2] and query[-2] >= ledger.options.carving.min_blocks * BLOCK,
        )
        number = ledger.enter(site)
        if rejection is None:
            _rewrite(gm, node, call, number)
    gm.recompile()


def check(call: dict[str, Any]) -> str | None:
    """Why a call cannot be carved, as far as the call itself shows; None if it may be."""
    query, key, value = (_example(call[name]) for name in ("query", "key", "value"))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        return "gradients required: carving is inference only, run the model under torch.no_grad()"
    if query.dim() != 4:
        return f"{query.dim()} dimensions: expected [batch, heads, tokens, head_dim]"
    if call["is_causal"]:
        return "causal attention"
    if call["dropout_p"]:
        return f"dropout {call['dropout_p']}"
    if query.shape[1] != key.shape[1]:
        return f"grouped-query attention: {int(query.shape[1])} query heads, {int(key.shape[1])} key heads"
    if query.shape[2] != key.shape[2]:
        return f"cross-attention: {int(query.shape[2])} queries, {int(key.shape[2])} keys"
    return None


def _rewrite(gm: GraphModule, node: Node, call: dict[str, Any], number: int) -> None:
    names = ("query", "key", "value", "attn_mask", "scale")
    arguments = (*(call[name] for name in names), number)
    with gm.graph.inserting_before(node):
        marked = gm.graph.call_function(ATTENTION, arguments)
    marked.meta = dict(node.meta)
    query, value = _example(call["query"]), _example(call["value"])
    marked.meta["example_value"] = query.new_empty(
        query.shape[0], query.shape[2], query.shape[1], value.shape[3]
    ).transpose(1, 2)
    node.replace_all_uses_with(marked)
    gm.graph.erase_node(node)


def _arguments(node: Node) -> dict[str, Any]:
    given = dict(zip(_POSITIONAL, node.args, strict=False))
    return {**_DEFAULTS, **given, **node.kwargs}


def _example(node: Node) -> torch.Tensor:
    value = node.meta["example_value"]
    assert isinstance(value, torch.Tensor)
    return value
