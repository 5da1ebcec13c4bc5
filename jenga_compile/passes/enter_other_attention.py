"""Attention that is no scaled_dot_product_attention call: entered in the ledger as left, not touched.   [EXACT]

Fires on   calls of other attention functions (`multi_head_attention_forward`, FlexAttention, an attention kernel's own
           operator), and a softmax over the last dimension whose weights go into a matrix product.
Leaves     a softmax that no matrix product consumes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from jenga_compile.passes.graph import argument, graphs_of, module_path
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION
from jenga_compile.report import Site

_ENCODER_LAYER = torch._transformer_encoder_layer_fwd
_MULTI_HEAD = (F.multi_head_attention_forward, torch._native_multi_head_attention, _ENCODER_LAYER)
_PRODUCTS = ("matmul", "bmm", "einsum")

Facts = dict[str, Any]
"""Fields of a `Site`."""


def enter_other_attention(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        for node in graph_module.graph.nodes:
            facts = _multi_head(node) or _other_kernel(node) or _written_out(node)
            if facts is not None:
                large = not ledger.options.carving.is_short(facts["queries"])
                intended = large and facts["queries"] == facts["keys"]
                ledger.enter(Site(path=module_path(node), decision="left", intended=intended, **facts))


def _multi_head(node: Node) -> Facts | None:
    """PyTorch's attention layers, which take tokens and project them themselves."""
    if node.op != "call_function" or node.target not in _MULTI_HEAD:
        return None
    query, key = _shape(node.args[0]), _shape(node.args[0 if node.target is _ENCODER_LAYER else 1])
    heads = int(node.args[2 if node.target is _ENCODER_LAYER else 4])  # type: ignore[arg-type]
    tokens = 0 if node.target is F.multi_head_attention_forward or len(query) == 2 else 1
    return dict(
        reason=f"{_name(node)}: only scaled_dot_product_attention is carved",
        batch=query[1 - tokens] if len(query) == 3 else 1,
        heads=heads,
        queries=query[tokens],
        keys=key[tokens],
        head_dim=query[-1] // heads,
    )


def _other_kernel(node: Node) -> Facts | None:
    """Any other function with attention in its name on q, k and v."""
    name = _name(node)
    known = node.op != "call_function" or node.target in (F.scaled_dot_product_attention, ATTENTION)
    if known or not ("attention" in name or "attn" in name):
        return None
    shapes = [_shape(tensor) for tensor in node.args[:3] if _is_tensor(tensor)]
    if len(shapes) < 3 or any(len(shape) != 4 for shape in shapes):
        return None
    heads, tokens = (2, 1) if "flash_attn" in name else (1, 2)
    query, key, _ = shapes
    return dict(
        reason=f"{name}: only scaled_dot_product_attention is carved",
        batch=query[0],
        heads=query[heads],
        queries=query[tokens],
        keys=key[tokens],
        head_dim=query[3],
    )


def _written_out(node: Node) -> Facts | None:
    """softmax(...) @ v, in whatever spelling."""
    if not (_name(node) == "softmax" and _is_tensor(node)):
        return None
    weights = _shape(node)
    rank = len(weights)
    product = _product_of(node)
    if rank < 2 or product is None or argument(node, 1, "dim") not in (-1, rank - 1):
        return None
    *batch, queries, keys = weights
    rows = max(1, _size(weights) // keys)
    return dict(
        reason="written out as softmax and matrix product: only scaled_dot_product_attention is carved",
        batch=batch[0] if batch else 1,
        heads=_size(tuple(batch[1:])),
        queries=queries,
        keys=keys,
        head_dim=_size(_shape(product)) // rows,
    )


def _product_of(softmax: Node) -> Node | None:
    """The matrix product that consumes the weights, past casts, dropout and views of them."""
    size, pending, seen = _size(_shape(softmax)), [softmax], {softmax}
    while pending:
        for user in pending.pop().users:
            if user in seen or not _is_tensor(user):
                continue
            seen.add(user)
            if any(product in _name(user) for product in _PRODUCTS):
                return user
            if _size(_shape(user)) == size:
                pending.append(user)
    return None


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Node) and isinstance(value.meta.get("example_value"), torch.Tensor)


def _shape(value: object) -> tuple[int, ...]:
    assert isinstance(value, Node)
    return tuple(int(size) for size in value.meta["example_value"].shape)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
