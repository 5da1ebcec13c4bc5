"""A softmax, found however it is written: one node, exponentials over their sum, or over it behind the values.

softmax(s)      exp(s) / sum(exp(s))      exp(log_softmax(s))      exp(s - logsumexp(s))
exp(s) v / sum(exp(s)): the weights are those of exp(s), and what is divided is their product with the values
"""

from __future__ import annotations

import dataclasses

from torch.fx import Node

from jenga_compile.passes.graph import argument, is_tensor, tensor_of
from jenga_compile.passes.written.product import product_of
from jenga_compile.passes.written.scores import CASTS, COPIES
from jenga_compile.passes.written.spelling import first, name_of, second


@dataclasses.dataclass(frozen=True)
class Softmax:
    """A normalisation over one dimension, in one node or several."""

    weights: Node
    scores: Node
    dim: int
    nodes: tuple[Node, ...]
    division: Node | None = None
    """What divides the product of `weights` and the values, where the weights are not divided themselves."""


def softmax_of(node: Node) -> Softmax | None:
    """The softmax whose weights are `node`, however it is written."""
    name = name_of(node).removesuffix("_")
    if not is_tensor(node) or name not in ("softmax", "div", "exp"):
        return None
    if name == "softmax":
        return _softmax(node, first(node), argument(node, 1, "dim"))
    return _division(node) if name == "div" else _exponential(node)


def _division(node: Node) -> Softmax | None:
    """exp(scores) / exp(scores).sum(dim, keepdim=True), where the exponentials may have been multiplied by values."""
    above, below = first(node), second(node)
    if not is_tensor(above) or not is_tensor(below) or name_of(below) != "sum":
        return None
    exponentials, dim = first(below), argument(below, 1, "dim")
    if not is_tensor(exponentials) or name_of(exponentials).removesuffix("_") != "exp":
        return None
    if argument(below, 2, "keepdim") is not True or node.kwargs.get("rounding_mode") is not None:
        return None
    if above is exponentials:
        return _softmax(node, first(exponentials), dim, exponentials, below)
    product = product_of(above)
    if product is None or exponentials not in map(_before_casts, (product.left, product.right)):
        return None
    found = _softmax(exponentials, first(exponentials), dim)
    return found and dataclasses.replace(found, nodes=(exponentials, below), division=node)


def _before_casts(node: Node) -> Node:
    while name_of(node) in CASTS | COPIES and is_tensor(first(node)):
        node = first(node)
    return node


def _exponential(node: Node) -> Softmax | None:
    """exp(log_softmax(scores)), or exp(scores - logsumexp(scores, dim, keepdim=True))"""
    inner = first(node)
    if not is_tensor(inner):
        return None
    if name_of(inner) == "log_softmax":
        return _softmax(node, first(inner), argument(inner, 1, "dim"), inner)
    below = second(inner) if name_of(inner) == "sub" and inner.kwargs.get("alpha", 1) == 1 else None
    if not is_tensor(below) or name_of(below) != "logsumexp" or first(below) is not first(inner):
        return None
    if argument(below, 2, "keepdim") is not True:
        return None
    return _softmax(node, first(inner), argument(below, 1, "dim"), inner, below)


def _softmax(weights: Node, scores: object, dim: object, *inner: Node) -> Softmax | None:
    if isinstance(dim, tuple | list) and len(dim) == 1:
        (dim,) = dim
    if not is_tensor(scores) or not isinstance(dim, int) or tensor_of(scores).dim() < 2:
        return None
    return Softmax(weights, scores, dim % tensor_of(scores).dim(), (*inner, weights))
