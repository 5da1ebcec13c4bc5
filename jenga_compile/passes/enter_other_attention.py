"""Attention that is no scaled_dot_product_attention call: entered in the ledger as left, not touched.   [EXACT]

Fires on   calls of other attention functions (`multi_head_attention_forward`, FlexAttention, an attention kernel's own
           operator), and a softmax over the last dimension whose weights go into a matrix product.
Leaves     a softmax that no matrix product consumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from jenga_compile.passes.graph import argument, graphs_of, integer, is_tensor, module_path, sizes_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION
from jenga_compile.report import Site

_ENCODER_LAYER = torch._transformer_encoder_layer_fwd
_MULTI_HEAD = (F.multi_head_attention_forward, torch._native_multi_head_attention, _ENCODER_LAYER)
_PRODUCTS = ("matmul", "bmm", "einsum")
_KEEPS_VALUES = ("transpose", "permute", "t", "reshape", "view", "expand", "to", "contiguous", "getitem")

Facts = dict[str, Any]
"""Fields of a `Site`."""


def enter_other_attention(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        for node in graph_module.graph.nodes:
            facts = _multi_head(node) or _other_kernel(node) or _written_out(node)
            if facts is not None:
                intended = ledger.options.carving.is_meant(facts["queries"], facts["keys"])
                ledger.enter(Site(path=module_path(node), decision="left", intended=intended, **facts))


def _multi_head(node: Node) -> Facts | None:
    """PyTorch's attention layers, which take tokens and project them themselves."""
    if node.op != "call_function" or node.target not in _MULTI_HEAD:
        return None
    layer = node.target is _ENCODER_LAYER
    first = argument(node, 0, "src" if layer else "query")
    query, key = _shape(first), _shape(first if layer else argument(node, 1, "key"))
    count = argument(node, 2, "num_heads") if layer else argument(node, 4, "num_heads", node.kwargs.get("num_head"))
    heads = integer(count)
    tokens = 0 if node.target is F.multi_head_attention_forward or len(query) == 2 else 1
    return dict(
        reason=f"{_name(node)}: only torch's scaled_dot_product_attention is carved",
        batch=query[1 - tokens] if len(query) == 3 else 1,
        heads=heads,
        queries=query[tokens],
        keys=key[tokens],
        head_dim=query[-1] // heads,
    )


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


def _written_out(node: Node) -> Facts | None:
    """softmax(q k^T) v, in whatever spelling."""
    name = _name(node)
    if "softmax" not in name or "log" in name or not is_tensor(node):
        return None
    weights, dim = _shape(node), argument(node, 1, "dim")
    if len(weights) < 2 or not isinstance(dim, int) or dim % len(weights) < len(weights) - 2:
        return None
    logits = _product(node, lambda place: place.all_input_nodes)
    product = _product(node, lambda place: place.users)
    if logits is None or product is None:
        return None
    *batch, queries, keys = weights
    if dim % len(weights) == len(weights) - 2:
        queries, keys = keys, queries
    return dict(
        reason="written out as softmax and matrix product: only torch's scaled_dot_product_attention is carved",
        batch=batch[0] if batch else 1,
        heads=_size(tuple(batch[1:])),
        queries=queries,
        keys=keys,
        head_dim=_size(_shape(product)) * keys // max(1, _size(weights)),
    )


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
                return node if not any(map(_is_parameter, node.all_input_nodes)) else None
            if _size(_shape(node)) == _size(_shape(softmax)):
                pending.append(node)
    return None


def _is_product(node: Node) -> bool:
    return any(product in _name(node) for product in _PRODUCTS)


def _is_parameter(node: Node) -> bool:
    while _name(node) in _KEEPS_VALUES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return isinstance(node.meta.get("example_value"), torch.nn.Parameter)


def _name(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def _shape(value: object) -> tuple[int, ...]:
    assert isinstance(value, Node)
    return sizes_of(value)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
