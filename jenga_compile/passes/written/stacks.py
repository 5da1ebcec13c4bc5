"""Stacks of matrices: how the labels of their dimensions move through transpositions and views.

The labels of the stack's own dimensions are "0", "1", ..., so that a view which reshapes the stack and no matrix only
counts them anew.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.graph import argument, tensor_of
from jenga_compile.passes.written.product import Labels
from jenga_compile.passes.written.spelling import name_of

TURNS = frozenset({"transpose", "permute", "mT", "t"})
REGROUPS = frozenset({"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as"})


def turn(node: Node, labels: Labels) -> Labels | None:
    """Labels after a transposition; None if `node` is none that can be read."""
    name, rank = name_of(node), len(labels)
    if name not in TURNS or rank < 2 or (name == "t" and rank != 2):
        return None
    order = list(range(rank))
    if name == "permute":
        dims: Any = node.args[1:] or node.kwargs["dims"]
        dims = dims[0] if isinstance(dims[0], tuple | list) else dims
        order = [int(dim) % rank for dim in dims]
    else:
        swapped = (argument(node, 1, "dim0"), argument(node, 2, "dim1")) if name == "transpose" else (-1, -2)
        if not all(isinstance(dim, int) for dim in swapped):
            return None
        one, other = (dim % rank for dim in swapped)
        order[one], order[other] = other, one
    return tuple(labels[place] for place in order) if len(order) == rank else None


def regroup(node: Node, operand: Node, labels: Labels) -> Labels | None:
    """Labels after a view that reshapes the stack of matrices and no matrix; None if it is another view."""
    before, after = tensor_of(operand).shape, tensor_of(node).shape
    if name_of(node) not in REGROUPS or labels[:-2] != stack_labels(len(before) - 2) or len(after) < 2:
        return None
    if not all(statically_known_true(one == other) for one, other in zip(before[-2:], after[-2:], strict=True)):
        return None
    return (*stack_labels(len(after) - 2), *labels[-2:])


def stack_labels(count: int) -> Labels:
    return tuple(str(dim) for dim in range(count))


def same_shape(one: Node, other: Node) -> bool:
    sizes, others = tensor_of(one).shape, tensor_of(other).shape
    return len(sizes) == len(others) and all(
        statically_known_true(size == another) for size, another in zip(sizes, others, strict=True)
    )
