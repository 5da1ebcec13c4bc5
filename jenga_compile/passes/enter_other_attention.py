"""Attention that is no scaled_dot_product_attention call: entered in the ledger as left, not touched.   [EXACT]

Fires on   calls of other attention functions (FlexAttention, an attention kernel's own operator), PyTorch's layers that
           `open_attention_layers` did not open, and what `recognise_attention` did not rewrite: a softmax between two
           matrix products.
Leaves     a softmax that no matrix product consumes, or whose product has a learned factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from jenga_compile.config import Carving
from jenga_compile.passes.graph import argument, graphs_of, is_tensor, module_path, sizes_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.open_attention_layers import check as check_layer
from jenga_compile.passes.recognise_attention import check
from jenga_compile.passes.site import ATTENTION
from jenga_compile.passes.written.attention import Softmax, read_attention, softmax_of
from jenga_compile.passes.written.layer import read_layer
from jenga_compile.passes.written.mutation import Timeline
from jenga_compile.passes.written.product import is_parameter
from jenga_compile.report import Site

_PRODUCTS = ("matmul", "bmm", "einsum")
_UNKNOWN_SIZES = "its sizes were not known to agree"
"""Why a pass left what it now would take: a size has been specialised since it asked."""

Facts = dict[str, Any]
"""Fields of a `Site`."""


def enter_other_attention(gm: GraphModule, ledger: Ledger) -> None:
    carving = ledger.options.carving
    for graph_module in graphs_of(gm):
        timeline = Timeline(graph_module.graph)
        for node in graph_module.graph.nodes:
            facts = _layer(node, carving) or _other_kernel(node) or _written_out(node, carving, timeline)
            if facts is not None:
                intended = carving.is_meant(facts["queries"], facts["keys"])
                ledger.enter(Site(**{"path": module_path(node), "decision": "left", "intended": intended, **facts}))


def _layer(node: Node, carving: Carving) -> Facts | None:
    """PyTorch's attention layers, which take tokens and project them themselves."""
    layer = read_layer(node)
    if layer is None:
        return None
    return dict(reason=check_layer(layer, carving) or _UNKNOWN_SIZES, **layer.sizes())


def _other_kernel(node: Node) -> Facts | None:
    """Any other function with attention in its name, on q, k and v or the three packed."""
    name = _name(node)
    if node.op != "call_function" or node.target in (F.scaled_dot_product_attention, ATTENTION):
        return None
    if "attention" not in name and "attn" not in name:
        return None
    shapes = [_shape(tensor) for tensor in (*node.args, *node.kwargs.values()) if is_tensor(tensor)]
    query, key = (shapes[0], shapes[1 if len(shapes) > 1 else 0]) if shapes else ((), ())
    if len(query) == 5:  # [B, L, 3, H, D]
        query = key = (*query[:2], *query[3:])
    if len(query) == 3:  # [L, H, D], samples one after the other
        query, key = (1, *query), (1, *key)
    if len(query) != 4 or len(key) != 4:
        return None
    tokens_first = "flash_attn" in name or len(shapes[0]) != 4
    heads, tokens = (2, 1) if tokens_first else (1, 2)
    return dict(
        reason=f"{name}: only torch's scaled_dot_product_attention is carved",
        batch=query[0],
        heads=query[heads],
        queries=query[tokens],
        keys=key[tokens],
        head_dim=query[3],
    )


def _written_out(node: Node, carving: Carving, timeline: Timeline) -> Facts | None:
    """softmax(q k^T) v, in whatever spelling."""
    found = softmax_of(node)
    weights, dim = (node, found.dim) if found else _loose_softmax(node)
    if weights is None or dim % len(_shape(weights)) < len(_shape(weights)) - 2:
        return None
    logits = _product(found.nodes[0] if found else node, lambda place: place.all_input_nodes)
    product = _product(node, lambda place: place.users)
    if logits is None or product is None:
        return None
    *batch, queries, keys = _shape(weights)
    if dim % len(_shape(weights)) == len(_shape(weights)) - 2:
        queries, keys = keys, queries
    return dict(
        path=module_path(product),
        reason=_why(found, carving, timeline),
        batch=batch[0] if batch else 1,
        heads=_size(tuple(batch[1:])),
        queries=queries,
        keys=keys,
        head_dim=_size(_shape(product)) * keys // max(1, _size(_shape(weights))),
    )


def _loose_softmax(node: Node) -> tuple[Node | None, int]:
    """Anything else with softmax in its name."""
    name, dim = _name(node), argument(node, 1, "dim")
    if "softmax" not in name or "log" in name or not is_tensor(node) or not isinstance(dim, int):
        return None, 0
    return (node, dim) if len(_shape(node)) >= 2 else (None, 0)


def _why(found: Softmax | None, carving: Carving, timeline: Timeline) -> str:
    """Why `recognise_attention` did not rewrite it."""
    if found is None:
        return "written out: its softmax is none of torch's"
    written = read_attention(found, timeline)
    if isinstance(written, str):
        return f"written out: {written}"
    return check(written, carving) or f"written out: {_UNKNOWN_SIZES}"


def _product(softmax: Node, neighbours: Callable[[Node], Iterable[Node]]) -> Node | None:
    """The nearest product of two activations before or after `softmax`, past scaling, masks, casts and views.

    A product with a learned factor is a projection, and then there is no attention.
    """
    pending, seen = [softmax], {softmax}
    while pending:
        for node in neighbours(pending.pop()):
            if node in seen or not is_tensor(node):
                continue
            seen.add(node)
            if _is_product(node):
                return node if not any(map(is_parameter, node.all_input_nodes)) else None
            if _size(_shape(node)) == _size(_shape(softmax)):
                pending.append(node)
    return None


def _is_product(node: Node) -> bool:
    return any(product in _name(node) for product in _PRODUCTS)


def _name(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def _shape(value: object) -> tuple[int, ...]:
    assert isinstance(value, Node)
    return sizes_of(value)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
