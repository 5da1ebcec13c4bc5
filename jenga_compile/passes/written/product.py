"""Matrix products in one form: which dimensions of the factors meet, which stay, which are summed.

`matmul`, `bmm`, `mm`, `@`, `baddbmm`, `addmm` and `einsum` all are `out[o] = factor * sum(left[l] * right[r]) + addend`
for labels o, l, r, one a dimension. A label stands for one size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Node

from jenga_compile.passes.graph import argument, is_tensor, tensor_of
from jenga_compile.passes.written.spelling import first, name_of, number, second

Labels = tuple[str, ...]

_KEEPS_VALUES = ("transpose", "permute", "t", "mT", "T", "reshape", "view", "expand", "to", "contiguous", "getitem")


@dataclasses.dataclass(frozen=True)
class Product:
    """Two factors and the labels of their dimensions and the result's."""

    node: Node
    left: Node
    right: Node
    left_labels: Labels
    right_labels: Labels
    labels: Labels
    factor: float = 1.0
    addend: Node | None = None
    addend_factor: float = 1.0

    def of(self, factor: Node) -> Labels:
        return self.left_labels if factor is self.left else self.right_labels


def product_of(node: Node) -> Product | None:
    """The product that `node` is, if it is one of two matrices or stacks of them."""
    name = name_of(node)
    if name == "matmul":
        return _matmul(node, first(node), second(node))
    if name in ("baddbmm", "addmm"):
        return _with_addend(node)
    return _einsum(node) if name == "einsum" else None


def is_projection(product: Product) -> bool:
    """Whether a factor is learned: then there is no attention."""
    return is_parameter(product.left) or is_parameter(product.right)


def is_parameter(node: Node) -> bool:
    """Whether a tensor is learned, however it is viewed."""
    while name_of(node) in _KEEPS_VALUES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return isinstance(node.meta.get("example_value"), torch.nn.Parameter)


def _matmul(node: Node, left: Any, right: Any, **rest: Any) -> Product | None:
    if not is_tensor(left) or not is_tensor(right) or not is_tensor(node):
        return None
    ranks = tensor_of(left).dim(), tensor_of(right).dim()
    if min(ranks) < 2:
        return None
    stack = [str(dim) for dim in reversed(range(max(ranks) - 2))]
    labels = [(*stack[len(stack) - rank + 2 :], *ends) for rank, ends in zip(ranks, ("ic", "cj"), strict=True)]
    return Product(node, left, right, labels[0], labels[1], (*stack, "i", "j"), **rest)


def _with_addend(node: Node) -> Product | None:
    """baddbmm and addmm: beta * addend + alpha * left @ right."""
    names = ("batch1", "batch2") if name_of(node) == "baddbmm" else ("mat1", "mat2")
    left, right = (argument(node, place, name) for place, name in enumerate(names, 1))
    alpha, beta = number(node.kwargs.get("alpha", 1)), number(node.kwargs.get("beta", 1))
    if alpha is None or beta is None:
        return None
    addend = first(node) if beta else None
    return _matmul(node, left, right, factor=alpha, addend=addend, addend_factor=beta)


def _einsum(node: Node) -> Product | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if len(operands) != 2 or not isinstance(equation, str) or not is_tensor(node):
        return None
    left, right = operands
    if not is_tensor(left) or not is_tensor(right):
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    first_terms, _, second_terms = inputs.partition(",")
    if "->" not in equation:
        output = _implied_output(inputs)
    terms = zip((first_terms, second_terms, output), (left, right, node), strict=True)
    labels = [_spread(letters, tensor_of(tensor).dim()) for letters, tensor in terms]
    if any(len(set(one)) != len(one) for one in labels):
        return None  # a diagonal
    return Product(node, left, right, labels[0], labels[1], labels[2])


def _implied_output(inputs: str) -> str:
    letters = sorted(letter for letter in set(inputs) if letter.isalpha() and inputs.count(letter) == 1)
    return ("..." if "..." in inputs else "") + "".join(letters)


def _spread(terms: str, rank: int) -> Labels:
    """Labels of one einsum operand; an ellipsis is numbered from its last dimension."""
    before, dots, after = terms.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return (*before, *(str(dim) for dim in reversed(range(hidden))), *after)
