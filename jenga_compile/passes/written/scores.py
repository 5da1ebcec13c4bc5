"""From a matrix product to the softmax: what is done to the scores, read as one scale and a list of terms.

    scores = factor_1 * ... * scale * left right^T + bias_1 + ..., some of them dropped

A chain of operations is walked back from the softmax to the product, then read forwards. Labels name dimensions: "0",
"1", ... for the stack of matrices, "l" for the rows of the left factor, "r" for those of the right, "c" for what is
summed. Where the stack is reshaped on the way, another grouping of it begins.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.graph import argument, is_tensor, tensor_of
from jenga_compile.passes.written.mutation import Timeline
from jenga_compile.passes.written.product import Labels, Product, is_projection, product_of
from jenga_compile.passes.written.spelling import first, name_of, number, second
from jenga_compile.passes.written.stacks import REGROUPS, TURNS, regroup, same_shape, turn

CASTS = frozenset({"to", "float", "double", "half", "bfloat16", "type", "type_as"})
COPIES = frozenset({"contiguous", "clone", "detach", "data", "_get_data_attr"})
_MAXIMA = frozenset({"amax", "max", "getitem", "values", "detach"})
_POINTWISE = frozenset({"mul", "div", "add", "sub", "masked_fill", "where"})

_STRETCHES = frozenset({"expand", "expand_as", "broadcast_to"})
_NEGATIONS = frozenset({"logical_not", "bitwise_not", "invert", "inv"})

Size = int | torch.SymInt
Kind = Literal["bias", "factor", "divisor", "keep", "drop"]
_OPPOSITE: dict[Kind, Kind] = {"keep": "drop", "drop": "keep"}

DROPPED = -1000.0
"""A score filled with this or less has no weight: exp underflows in every dtype at a thousand below the largest."""

_LONGEST = 64
"""Operations between product and softmax that are followed."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A tensor that meets the scores. Its dimensions line up with the last of `labels`.

    "bias" is added, times `number`; "factor" multiplies and "divisor" divides, and differ between no keys; where "keep"
    is false or "drop" is true, `number` stands in the score's place.
    """

    kind: Kind
    node: Node
    labels: Labels
    grouping: int
    number: float
    read: Node


@dataclasses.dataclass
class Scores:
    """The scores after some of the operations."""

    product: Product
    labels: Labels
    groupings: list[tuple[Size, ...]]
    """Sizes of the stack of matrices, for each way in which it was shaped."""

    scale: float
    terms: list[Term]
    nodes: list[Node]
    keys: str = ""
    """Label of the keys: "l" or "r"."""

    def read(self, kind: Kind, node: object, number: float, at: Node) -> str | None:
        """Enter a term as the operation `at` reads it, before it was stretched or turned into its opposite."""
        while is_tensor(node):
            if kind in _OPPOSITE and name_of(node) in _NEGATIONS and is_boolean(first(node)):
                kind = _OPPOSITE[kind]
            elif name_of(node) not in _STRETCHES:
                break
            at, node = node, first(node)
        if not is_tensor(node):
            return f"{name_of(at)} of the scores"
        if tensor_of(node).device != tensor_of(self.product.node).device:
            return "scores and a tensor on two devices"
        self.terms.append(Term(kind, node, self.labels, len(self.groupings) - 1, number, at))
        return None

    def turn_over(self, node: Node, operand: Node) -> str | None:
        """Follow a transposition, or a view that reshapes the stack of matrices and no matrix."""
        labels = turn(node, self.labels)
        if labels is None:
            labels = regroup(node, operand, self.labels)
            if labels is None:
                return f"{name_of(node)} across queries and keys"
            self.groupings.append(tuple(tensor_of(node).shape[:-2]))
        self.labels = labels
        return None


def read_scores(end: Node, at: Node, dim: int, timeline: Timeline) -> Scores | str:
    """The scores that `at` reads from `end` and normalises over dimension `dim`, or why they cannot be read."""
    chain = _chain(end, at, timeline, {}, _LONGEST)
    if isinstance(chain, str):
        return chain
    product = product_of(chain[0][0])
    assert product is not None
    first_look, scores = start(product), start(product)
    if isinstance(scores, str) or isinstance(first_look, str):
        return str(scores)
    for node, operand in chain[1:]:
        reason = first_look.turn_over(node, operand) if name_of(node) in TURNS | REGROUPS else None
        if reason is not None:
            return reason
    scores.keys = first_look.labels[dim % len(first_look.labels)]
    if scores.keys not in ("l", "r"):
        return "softmax over another dimension than the keys"
    for node, operand in chain[1:]:
        reason = _apply(scores, node, operand)
        scores.nodes.append(node)
        if reason is not None:
            return reason
    return scores


def start(product: Product) -> Scores | str:
    """The scores as the product gives them."""
    left, right, out = product.left_labels, product.right_labels, product.labels
    stack = [label for label in out if label in left and label in right]
    rows = [label for label in out if label not in right]
    columns = [label for label in out if label not in left]
    summed = [label for label in left if label in right and label not in out]
    if len(rows) != 1 or len(columns) != 1 or len(summed) != 1 or len(set(left) | set(right)) != len(out) + 1:
        return "queries and keys broadcast, or are summed over several dimensions"
    names = {label: str(place) for place, label in enumerate(stack)}
    names |= {rows[0]: "l", columns[0]: "r", summed[0]: "c"}
    left, right, out = (tuple(names[label] for label in labels) for labels in (left, right, out))
    renamed = dataclasses.replace(product, left_labels=left, right_labels=right, labels=out)
    sizes = tensor_of(product.left).shape
    grouping = tuple(sizes[left.index(names[label])] for label in stack)
    scores = Scores(renamed, out, [grouping], product.factor, [], [product.node])
    if product.addend is not None:
        scores.terms.append(Term("bias", product.addend, out, 0, product.addend_factor, product.node))
    return scores


_Chain = list[tuple[Node, Node]]


def _chain(end: Node, at: Node, timeline: Timeline, known: dict[Node, _Chain | str], limit: int) -> _Chain | str:
    """Operations from the product to `end`, each with the operand that holds the scores; or what stands between."""
    node = timeline.current(end, at)
    if node not in known:
        known[node] = f"{name_of(node) or node.name} between the product and the softmax"
        product = product_of(node)
        if product is not None and not is_projection(product):
            known[node] = [(node, node)]
        elif limit:
            for operand in _operands(node):
                chain = _chain(operand, node, timeline, known, limit - 1)
                known[node] = chain if isinstance(chain, str) else [*chain, (node, operand)]
                if not isinstance(chain, str):
                    break
    return known[node]


def _operands(node: Node) -> list[Node]:
    """The arguments in which the scores may come."""
    name = name_of(node).removesuffix("_")
    if name in ("mul", "add"):
        found = [first(node), second(node)]
    elif name == "where":
        found = list(_where(node)[1:])
    elif name in _POINTWISE | CASTS | COPIES | TURNS | REGROUPS:
        found = [first(node)]
    else:
        found = []
    return [operand for operand in found if is_tensor(operand)]


def _apply(scores: Scores, node: Node, operand: Node) -> str | None:
    """Take one operation into the account; why it cannot be, otherwise."""
    name = name_of(node).removesuffix("_")
    if name in TURNS | REGROUPS:
        return scores.turn_over(node, operand)
    if not same_shape(node, operand):
        return f"{name} broadcasts the scores"
    if name in CASTS | COPIES:
        cast = tensor_of(node)
        kept = cast.is_floating_point() and cast.device == tensor_of(operand).device
        return None if kept else f"scores cast to {cast.dtype} on {cast.device}"
    return {"mul": _scale, "div": _scale, "add": _add, "sub": _add}.get(name, _fill)(scores, node, operand)


def _scale(scores: Scores, node: Node, operand: Node) -> str | None:
    divides = name_of(node).startswith("div")
    other = second(node) if first(node) is operand else first(node)
    known = number(other)
    if node.kwargs.get("rounding_mode") is not None or other is operand:
        return f"{name_of(node)} of the scores"
    if known is None:
        if scores.terms or not _is_even(other, scores):
            return "scores multiplied by a tensor that differs between keys, or after a mask"
        return scores.read("divisor" if divides else "factor", other, 1.0, node)
    if known == 0 or not math.isfinite(known):
        return f"scores multiplied or divided by {known}"
    by = 1 / known if divides else known
    scores.scale *= by
    tensors = ("factor", "divisor")
    scores.terms = [
        term if term.kind in tensors else dataclasses.replace(term, number=term.number * by) for term in scores.terms
    ]
    return None


def _add(scores: Scores, node: Node, operand: Node) -> str | None:
    other = second(node) if first(node) is operand else first(node)
    times = number(node.kwargs.get("alpha", 1))
    if times is None or other is operand:
        return f"{name_of(node)} of the scores"
    if number(other) is not None:
        return None  # softmax does not change when all scores shift alike
    times = -times if name_of(node).startswith("sub") else times
    shift = _maximum_of(operand, other)
    if shift and _is_even(other, scores):
        scores.nodes.extend(shift)
        return None
    return scores.read("bias", other, times, node)


def _fill(scores: Scores, node: Node, operand: Node) -> str | None:
    kind: Kind = "drop"
    if name_of(node) == "where":
        mask, if_true, if_false = _where(node)
        kind, value = ("keep", if_false) if if_true is operand else ("drop", if_true)
    else:
        mask, value = argument(node, 1, "mask"), argument(node, 2, "value")
    filling = _filled_with(value)
    if filling is None or not is_boolean(mask):
        return "masked scores filled with a tensor, or by a mask that is none"
    if is_tensor(value) and operand in value.all_input_nodes:
        scores.nodes.append(value)  # full_like(scores, -inf)
    return scores.read(kind, mask, filling, node)


def _filled_with(value: object) -> float | None:
    known = number(value)
    if known is None and isinstance(value, Node) and name_of(value) in ("full", "full_like", "new_full"):
        place = 2 if name_of(value) == "new_full" else 1
        known = number(argument(value, place, "fill_value"))
    return known


def _where(node: Node) -> tuple[object, object, object]:
    """Condition, value where it holds, value where it does not; as a method it is called on the second."""
    if node.op == "call_method":
        return argument(node, 1, "condition"), first(node), argument(node, 2, "other")
    return argument(node, 0, "condition"), argument(node, 1, "input"), argument(node, 2, "other")


def _maximum_of(scores: Node, value: object) -> list[Node]:
    """The nodes that compute `value` from `scores` by maxima alone; none if they are not all it is."""
    nodes: list[Node] = []
    while isinstance(value, Node) and value is not scores:
        if name_of(value) not in _MAXIMA or len(value.all_input_nodes) != 1:
            return []
        nodes.append(value)
        value = value.all_input_nodes[0]
    return nodes if value is scores else []


def _is_even(value: object, scores: Scores) -> bool:
    """Whether a tensor is the same for all keys."""
    if not is_tensor(value):
        return False
    sizes = tensor_of(value).shape
    from_last = len(scores.labels) - scores.labels.index(scores.keys)
    return len(sizes) < from_last or statically_known_true(sizes[-from_last] == 1)


def is_boolean(value: object) -> bool:
    return is_tensor(value) and tensor_of(value).dtype is torch.bool
