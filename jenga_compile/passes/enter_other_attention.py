"""Attention that is no scaled_dot_product_attention call: entered in the ledger as left, not touched.   [EXACT]

Fires on   calls of other attention functions (FlexAttention, an attention kernel's own operator), PyTorch's layers that
           `open_attention_layers` did not open, and what `recognise_attention` did not rewrite: a softmax between two
           matrix products, or exponentials that are summed over the keys; also where the softmax sees further columns.
Leaves     a softmax that no matrix product consumes, or whose product has a learned factor; exponentials that are not
           normalised.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch.fx import GraphModule, Node

from jenga_compile.config import Carving
from jenga_compile.passes.eligibility import UNKNOWN_SIZES
from jenga_compile.passes.graph import graphs_of, is_tensor, module_path, sizes_of, tensor_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.open_attention_layers import check as check_layer
from jenga_compile.passes.recognise_attention import check
from jenga_compile.passes.site import ATTENTION
from jenga_compile.passes.sizes import Size, hint_of
from jenga_compile.passes.written.attention import read_attention
from jenga_compile.passes.written.layer import read_layer
from jenga_compile.passes.written.mutation import Timeline
from jenga_compile.passes.written.normalised import Normalised, all_normalised, count, spelled
from jenga_compile.passes.written.parts import whole_of
from jenga_compile.sites import Site

Facts = dict[str, Any]
"""Fields of a `Site`."""


def enter_other_attention(gm: GraphModule, ledger: Ledger) -> None:
    carving = ledger.options.carving
    for graph_module in graphs_of(gm):
        timeline, normalised = Timeline(graph_module.graph), all_normalised(graph_module.graph)
        for node in graph_module.graph.nodes:
            facts = _layer(node, carving) or _other_kernel(node, carving)
            if facts is None and node in normalised:
                facts = _written_out(normalised[node], carving, timeline)
            if facts is not None:
                ledger.enter(Site(**{"path": module_path(node), "decision": "left", **facts}))


def _layer(node: Node, carving: Carving) -> Facts | None:
    """PyTorch's attention layers, which take tokens and project them themselves."""
    layer = read_layer(node)
    if layer is None:
        return None
    return dict(
        reason=check_layer(layer, carving) or UNKNOWN_SIZES,
        intended=_is_meant(layer.tensors[0], layer.tokens, tensor_of(layer.tensors[1]).shape[layer.tokens], carving),
        **layer.sizes(),
    )


def _other_kernel(node: Node, carving: Carving) -> Facts | None:
    """Any other function with attention in its name, on q, k and v or the three packed."""
    name = spelled(node)
    if node.op != "call_function" or node.target in (F.scaled_dot_product_attention, ATTENTION):
        return None
    if "attention" not in name and "attn" not in name:
        return None
    tensors = [tensor for tensor in (*node.args, *node.kwargs.values()) if is_tensor(tensor)]
    shapes = [sizes_of(tensor) for tensor in tensors]
    query, key = (shapes[0], shapes[1 if len(shapes) > 1 else 0]) if shapes else ((), ())
    if len(query) == 5:  # [B, L, 3, H, D]
        query = key = (*query[:2], *query[3:])
    if len(query) == 3:  # [L, H, D], samples one after the other
        query, key = (1, *query), (1, *key)
    if len(query) != 4 or len(key) != 4:
        return None
    tokens_first = "flash_attn" in name or len(shapes[0]) != 4
    heads, tokens = (2, 1) if tokens_first else (1, 2)
    intended = carving.is_meant(query[tokens], key[tokens])
    if len(shapes[0]) == 4:
        intended = _is_meant(tensors[0], tokens, key[tokens], carving)
    return dict(
        reason=f"{name}: only torch's scaled_dot_product_attention is carved",
        batch=query[0],
        heads=query[heads],
        queries=query[tokens],
        keys=key[tokens],
        head_dim=query[3],
        intended=intended,
    )


def _written_out(found: Normalised, carving: Carving, timeline: Timeline) -> Facts | None:
    """softmax(q k^T) v, in whatever spelling."""
    products = found.products()
    if found.dim < -2 or not found.logits() or not products:
        return None
    sizes, keys = sizes_of(found.weights), found.keys()
    rows = max(1, count(sizes) // max(1, sizes[found.dim]))
    return dict(
        path=module_path(products[0]),
        reason=_why(found, carving, timeline),
        batch=sizes[0] if len(sizes) > 2 else 1,
        heads=count(sizes[1:-2]),
        queries=sizes[-3 - found.dim],
        keys=hint_of(keys),
        head_dim=count(sizes_of(products[0])) // rows,
        intended=_is_meant(found.weights, -3 - found.dim, keys, carving),
    )


def _why(found: Normalised, carving: Carving, timeline: Timeline) -> str:
    """Why `recognise_attention` did not rewrite it."""
    if found.softmax is None:
        return f"written out: {found.unread}"
    written = read_attention(found.softmax, timeline)
    if isinstance(written, str):
        return f"written out: {written}"
    return check(written, carving) or f"written out: {UNKNOWN_SIZES}"


def _is_meant(queries: Node, dim: int, keys: Size, carving: Carving) -> bool:
    return carving.is_meant(hint_of(whole_of(queries, dim, keys)), hint_of(keys))
