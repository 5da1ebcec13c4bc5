"""The order of an op's output from the orders of its inputs, one rule an op (`forward.py` says why they are here)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from jenga_compile.passes.graph import argument, integer, is_tensor, shape_of, uses_of
from jenga_compile.passes.reorder.runs import Fault, cut, is_fixed, met, tokens_of
from jenga_compile.passes.reorder.seen import Moved, Seen

aten = torch.ops.aten

Rule = Callable[[Node, Seen], "Moved | None"]
"""Raises `Fault` where the inputs are in orders that do not fit each other, or the op."""


BIASED = (aten.addmm.default, aten.baddbmm.default)


def operand(node: Node, place: int = 0) -> Node:
    source = node.args[place]
    assert isinstance(source, Node)
    return source


def named(value: Any, rank: int) -> list[int]:
    if value is None or value == []:
        return list(range(rank))
    return [integer(dim) % rank for dim in (value if isinstance(value, (list, tuple)) else [value])]


def elementwise_order(node: Node, seen: Seen) -> Moved | None:
    """Operands line up at their last dimensions; one of size 1 is the same for all tokens."""
    rank = len(shape_of(node))
    return _met_order([(source, _last(source, rank)) for source in uses_of(node)], seen)


def _last(source: Node, rank: int) -> list[int | None]:
    return list(range(rank - len(shape_of(source)), rank))


def _met_order(operands: list[tuple[Node, list[int | None]]], seen: Seen) -> Moved:
    """Operands that meet element by element, each with the output's dimension for each of its own; None is summed."""
    leading = seen.leading(source for source, _ in operands)
    places = {(axes[dim], each) for source, axes in operands if source in leading for dim, each in [seen.place(source)]}
    if any(dim is None for dim, _ in places):
        raise Fault("sums over permuted tokens")
    if len(places) != 1:
        raise Fault(f"operands are permuted along dimensions {[dim for dim, _ in places]}")
    ((out, each),) = places
    assert out is not None
    tokens = tokens_of(seen.sequence(leading[0]))
    own = [(source, axes.index(out)) for source, axes in operands if out in axes]
    full = [seen.along(source, dim, tokens, each) for source, dim in own if shape_of(source)[dim] != 1]
    return Moved(out, met(full), each)


def sequence_length(sources: Iterable[Node], seen: Seen) -> int:
    """Tokens of a sequence of the inputs that are permuted."""
    return tokens_of(seen.sequence(seen.leading(sources)[0]))


def expand_order(node: Node, seen: Seen) -> Moved | None:
    source = operand(node)
    dim = seen.dim(source)
    return Moved(dim + len(shape_of(node)) - len(shape_of(source)), seen.sequence(source))


def copy_order(node: Node, seen: Seen) -> Moved | None:
    """What is copied counts, what is copied over does not."""
    source = operand(node, 1)
    if not seen.is_moved(source):
        return None
    dim = seen.dim(source)
    return Moved(dim + len(shape_of(node)) - len(shape_of(source)), seen.sequence(source))


def rearranged_order(node: Node, seen: Seen) -> Moved | None:
    source = operand(node)
    rank = len(shape_of(source))
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [integer(dim) % rank for dim in argument(node, 1, "dims")]
    elif rank > 1:
        first, second = (0, 1) if node.target is aten.t.default else named(list(node.args[1:3]), rank)
        order[first], order[second] = order[second], order[first]
    dim = seen.dim(source)
    return Moved(order.index(dim), seen.sequence(source))


def select_order(node: Node, seen: Seen) -> Moved | None:
    source = operand(node)
    (gone,) = named(argument(node, 1, "dim", 0), len(shape_of(source)))
    dim = seen.dim(source)
    if gone != dim:
        return Moved(dim - (dim > gone), seen.sequence(source))
    index = integer(argument(node, 2, "index")) % shape_of(source)[dim]
    cut(seen.whole(source, dim), index, index + 1)
    return None


def across_order(place: int) -> Rule:
    """Mixes or moves along the dimensions that argument `place` names."""

    def rule(node: Node, seen: Seen) -> Moved | None:
        source = operand(node)
        dim = seen.dim(source)
        if dim in named(argument(node, place, "dim"), len(shape_of(source))):
            raise Fault("mixes permuted tokens")
        return Moved(dim, seen.sequence(source))

    return rule


def reduce_order(place: int) -> Rule:
    """Reduces the dimensions that argument `place` of the op names; also for an item of a tuple of statistics."""

    def rule(node: Node, seen: Seen) -> Moved | None:
        call = operand(node) if node.target is operator.getitem else node
        source = operand(call)
        dim, rank = seen.dim(source), len(shape_of(source))
        gone = named(argument(call, place, "dim"), rank)
        if dim in gone:
            raise Fault("mixes permuted tokens")
        kept = len(shape_of(node)) == rank
        return Moved(dim if kept else dim - sum(other < dim for other in gone), seen.sequence(source))

    return rule


def last_order(node: Node, seen: Seen) -> Moved | None:
    """Makes the last dimension anew, or puts one behind it."""
    source = operand(node)
    dim = seen.dim(source)
    if dim == len(shape_of(source)) - 1 and node.target is not aten.view_as_real.default:
        raise Fault("mixes permuted tokens")
    if any(seen.is_moved(other) for other in node.all_input_nodes if other is not source):
        raise Fault("has a weight that is permuted")
    return Moved(dim, seen.sequence(source))


def product_order(node: Node, seen: Seen) -> Moved | None:
    *bias, left, right = (operand(node, place) for place in range(3 if node.target in BIASED else 2))
    rank = len(shape_of(node))
    batch = list(range(rank - 2))
    factors = [(left, [*batch, rank - 2, None]), (right, [*batch, None, rank - 1])]
    return _met_order([*((term, _last(term, rank)) for term in bias), *factors], seen)


def attention_order(node: Node, seen: Seen) -> Moved | None:
    """Rows go with their queries; keys may come in any order that values share, if nothing tells them apart."""
    call = operand(node) if node.target is operator.getitem else node
    query, key, value = (operand(call, place) for place in range(3))
    others = [leaf for leaf in tree_leaves((call.args[3:], call.kwargs)) if is_tensor(leaf)]
    if node.target is operator.getitem and node.args[1] != 0:
        raise Fault("statistics of permuted queries")
    causal = any(value is True for value in (*call.args[3:], *call.kwargs.values()))  # True is 1, as a number may be
    if any(map(seen.is_permuted, others)) or causal:
        raise Fault("has a mask that is permuted, or is causal")
    batch = {seen.dim(tensor) for tensor in seen.leading((query, key, value))} - {2}
    if batch:
        return _batch_order((query, key, value), others, seen)
    keys = [seen.whole(tensor, 2) for tensor in (key, value)]
    if not is_fixed(met(keys)) and others:
        raise Fault("has permuted keys under a mask")
    rows = [shape_of(mask)[-2] for mask in others if len(shape_of(mask)) > 1]
    if seen.is_moved(query) and any(size != 1 for size in rows):
        raise Fault("has permuted queries under a mask with a row for each")
    return Moved(2, seen.whole(query, 2))


def _batch_order(operands: tuple[Node, Node, Node], masks: list[Node], seen: Seen) -> Moved | None:
    """Attention within something else than the tokens that are permuted: they are its batch, or its heads."""
    moved = _met_order([(operand, [0, 1, *([None] * (len(shape_of(operand)) - 2))]) for operand in operands], seen)
    missing = [len(shape_of(operands[0])) - len(shape_of(mask)) for mask in masks]
    own = [shape_of(mask)[moved.dim - lost] for mask, lost in zip(masks, missing, strict=True) if moved.dim >= lost]
    if any(size != 1 for size in own):
        raise Fault("has a mask of its own for each of the permuted")
    return moved


def rows_order(place: int) -> Rule:
    """Looks rows up: argument `place` has the numbers, its dimensions come first."""

    def rule(node: Node, seen: Seen) -> Moved | None:
        table, index = operand(node, 1 - place), operand(node, place)
        if seen.is_moved(table):
            raise Fault("looks up rows of a table that is permuted")
        dim = seen.dim(index)
        return Moved(dim, seen.sequence(index))

    return rule


def index_order(node: Node, seen: Seen) -> Moved | None:
    source = operand(node)
    given = [(at, index) for at, index in enumerate(argument(node, 1, "indices")) if index is not None]
    if len(given) != 1:
        raise Fault("is indexed by several tensors")
    ((at, index),) = given
    more = len(shape_of(index)) - 1
    if seen.is_moved(index):
        if seen.is_moved(source):
            raise Fault("is permuted and indexed by what is permuted")
        return Moved(at + seen.dim(index), seen.sequence(index))
    dim = seen.dim(source)
    if dim == at:
        raise Fault("is indexed where it is permuted")
    return Moved(dim if dim < at else dim + more, seen.sequence(source))


def repeat_order(node: Node, seen: Seen) -> Moved | None:
    source = operand(node)
    dim, new = seen.dim(source), len(shape_of(node)) - len(shape_of(source))
    if integer(argument(node, 1, "repeats")[dim + new]) != 1:
        raise Fault("repeats permuted tokens")
    return Moved(dim + new, seen.sequence(source))


def norm_order(node: Node, seen: Seen) -> Moved | None:
    call = operand(node)
    source = operand(call)
    dim = seen.dim(source)
    if dim >= len(shape_of(source)) - len(argument(call, 1, "normalized_shape")):
        raise Fault("mixes permuted tokens")
    return Moved(dim, seen.sequence(source))
