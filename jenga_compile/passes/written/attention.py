"""softmax(scores) V written out: found from its softmax, and read as an attention call's arguments, or not, and why.

    [B, H, L, S] scores   read by `scores`, from q [B, H, L, D] and k [B, H, S, D] in any order of dimensions
    [B, H, L, S] weights  a softmax over the keys, or exp(scores) over its sum; then casts, views, no dropout
    [B, H, L, D] out      weights v; or exp(scores) v over the sum

Nothing in between may be read by anybody else or be written to, and what the call would read must not be written to
between where it was read and where the call would stand.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.graph import argument, is_tensor, tensor_of
from jenga_compile.passes.written.mutation import Timeline
from jenga_compile.passes.written.product import Labels, Product, product_of
from jenga_compile.passes.written.scores import CASTS, COPIES, DROPPED, Scores, Size, Term, read_scores
from jenga_compile.passes.written.softmax import Softmax
from jenga_compile.passes.written.spelling import first, name_of, number, second
from jenga_compile.passes.written.stacks import REGROUPS, TURNS, stack_labels, turn


@dataclasses.dataclass(frozen=True)
class Operand:
    """q, k or v before what the call does by itself; `peeled` are the nodes between it and the product."""

    node: Node
    labels: Labels
    scale: float
    peeled: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class WrittenAttention:
    """Labels are those of `scores`, with "d" for the values' own dimension."""

    query: Operand
    key: Operand
    value: Operand
    scores: Scores
    out: Product
    out_labels: Labels
    nodes: tuple[Node, ...]
    """All between the operands and `end`, which is not among them."""

    end: Node
    """What the call stands for: the product, or its division by the sum of exponentials."""

    @property
    def queries(self) -> str:
        return "l" if self.scores.keys == "r" else "r"

    @property
    def grouping(self) -> int:
        """The shape of the stack of matrices that the call takes: the masks', or one of two dimensions."""
        masks = {term.grouping for term in self.scores.terms if is_stacked(term)}
        in_two = [place for place, sizes in enumerate(self.scores.groupings) if len(sizes) == 2]
        return next(iter([*masks, *in_two, 0]))

    @property
    def scale(self) -> float:
        return self.scores.scale * self.query.scale * self.key.scale


def read_attention(softmax: Softmax, timeline: Timeline) -> WrittenAttention | str:
    """The attention around a softmax, or why there is none that one call could stand for."""
    reader = min(softmax.nodes, key=timeline.place)
    scores = read_scores(softmax.scores, reader, softmax.dim, timeline)
    if isinstance(scores, str):
        return scores
    scores.nodes.extend(softmax.nodes)
    found = _product_with_values(softmax, scores)
    if isinstance(found, str):
        return found
    out, weights = found
    renamed = _name_dimensions(out, weights, scores)
    if isinstance(renamed, str):
        return renamed
    values, value_labels, out_labels = renamed
    if softmax.division is not None:
        if out_labels != tuple("d" if label == scores.keys else label for label in scores.labels):
            return "the sum of exponentials lies across its product with the values"
        scores.nodes.append(out.node)
    written = WrittenAttention(
        *_queries_and_keys(scores),
        _operand(values, value_labels, scaled=False),
        scores,
        out,
        out_labels,
        tuple(dict.fromkeys(scores.nodes)),
        softmax.division or out.node,
    )
    return _used_elsewhere(written, softmax) or _written_to(written, timeline) or _unlike(written) or written


def _product_with_values(softmax: Softmax, scores: Scores) -> tuple[Product, Node] | str:
    """The product that reads the weights, and its factor that they are; follows their dimensions in `scores`."""
    node = softmax.weights
    while True:
        users = [user for user in node.users if user not in softmax.nodes]
        if len(users) != 1:
            return "the weights are used elsewhere too"
        (user,) = users
        product = product_of(user)
        if product is not None and product.addend is None and product.factor == 1:
            return product, node
        reason = _carry(user, node, scores)
        if reason is not None:
            return reason
        scores.nodes.append(user)
        node = user


def _carry(user: Node, node: Node, scores: Scores) -> str | None:
    """Follow the weights through an operation that leaves them as they are; why it does not, otherwise."""
    name = name_of(user)
    if not is_tensor(user):
        return "the weights are used elsewhere too"
    if name in TURNS | REGROUPS:
        return scores.turn_over(user, node)
    if name == "dropout":
        drops = argument(user, 2, "training", user.kwargs.get("train", True))
        return f"dropout {argument(user, 1, 'p', 0.5)}" if drops and number(argument(user, 1, "p", 0.5)) else None
    if name in CASTS | COPIES and first(user) is node and tensor_of(user).is_floating_point():
        return None
    return f"{name or user.name} between the softmax and the values"


def _name_dimensions(out: Product, weights: Node, scores: Scores) -> tuple[Node, Labels, Labels] | str:
    """The values, and the labels of their dimensions and of the result's."""
    if out.left is out.right:
        return "the weights are multiplied by themselves"
    values = out.right if weights is out.left else out.left
    names = dict(zip(out.of(weights), scores.labels, strict=True))
    own = [label for label in out.of(values) if label not in names]
    if len(own) == 1:
        names[own[0]] = "d"
    queries = "l" if scores.keys == "r" else "r"
    stack = stack_labels(len(scores.groupings[-1]))
    found = [[names.get(label, "") for label in labels] for labels in (out.of(values), out.labels)]
    expected = [{*stack, scores.keys, "d"}, {*stack, queries, "d"}]
    if [set(labels) for labels in found] != expected:
        return "the values broadcast, or are not summed over the keys"
    return values, tuple(found[0]), tuple(found[1])


def _queries_and_keys(scores: Scores) -> tuple[Operand, Operand]:
    product = scores.product
    left = _operand(product.left, product.left_labels, scaled=True)
    right = _operand(product.right, product.right_labels, scaled=True)
    return (left, right) if scores.keys == "r" else (right, left)


def _operand(node: Node, labels: Labels, *, scaled: bool) -> Operand:
    """Go back through transpositions, copies, casts to more precise types and, for q and k, numbers that scale."""
    scale, peeled = 1.0, []
    while True:
        name, source = name_of(node), first(node) if node.op.startswith("call") else None
        by: float | None = 1.0
        if name in ("mul", "div") and scaled:
            other = second(node)
            if name == "mul" and number(source) is not None:
                source, other = other, source
            by = number(other) if node.kwargs.get("rounding_mode") is None else None
            by = 1 / by if name == "div" and by else by
        elif name not in TURNS | CASTS | COPIES:
            by = None
        if not by or not is_tensor(source) or not _holds(tensor_of(node), tensor_of(source)):
            break
        undone = labels if name not in TURNS else _undo(node, labels)
        if undone is None:
            break
        peeled.append(node)
        node, labels, scale = source, undone, scale * by
    return Operand(node, labels, scale, tuple(peeled))


def _undo(node: Node, labels: Labels) -> Labels | None:
    """Labels before the transposition `node`, from those after it."""
    places = turn(node, tuple(str(place) for place in range(len(labels))))
    return None if places is None else tuple(labels[places.index(str(place))] for place in range(len(labels)))


def _holds(outer: torch.Tensor, inner: torch.Tensor) -> bool:
    """Whether a tensor's type holds every value of another's, on one device."""
    if not inner.is_floating_point() or outer.device != inner.device:
        return False
    return torch.promote_types(outer.dtype, inner.dtype) == outer.dtype


def _used_elsewhere(written: WrittenAttention, softmax: Softmax) -> str | None:
    inside = set(written.nodes)
    after = inside - set(written.scores.nodes[: written.scores.nodes.index(softmax.weights)])
    for node in written.nodes:
        if any(user not in inside and user is not written.end for user in node.users):
            return f"the {'weights' if node in after else 'scores'} are used elsewhere too"
        if node.kwargs.get("out") is not None:
            return "it is written into a given tensor"
    return None


def _written_to(written: WrittenAttention, timeline: Timeline) -> str | None:
    inside, stop = set(written.nodes), written.end
    product = written.scores.product.node
    operands = (written.query, product), (written.key, product), (written.value, written.out.node)
    reads = [((operand.node, *operand.peeled), operand.peeled, reader) for operand, reader in operands]
    reads += [((term.node,), (), term.read) for term in written.scores.terms]
    for tensors, peeled, reader in reads:
        start = min((*peeled, reader), key=timeline.place)
        if timeline.writer_between(tensors, start, stop, inside) is not None:
            return "a tensor it reads is changed in place before its end"
    return None


def _unlike(written: WrittenAttention) -> str | None:
    """What one attention call cannot do."""
    sizes: dict[str, Size] = {}
    for operand, grouping in ((written.query, 0), (written.key, 0), (written.value, -1)):
        stack = written.scores.groupings[grouping]
        for label, size in zip(operand.labels, tensor_of(operand.node).shape, strict=True):
            expected = stack[int(label)] if label.isdigit() else sizes.setdefault(label, size)
            if not statically_known_true(size == expected):
                return "queries, keys and values broadcast"
    if len({term.grouping for term in written.scores.terms if is_stacked(term)}) > 1:
        return "masks on scores of two shapes"
    for term in written.scores.terms:
        if term.node in written.nodes:
            return "the scores meet themselves"
        if term.kind in ("keep", "drop") and not term.number <= DROPPED:
            return f"masked scores filled with {term.number:g}, which still has weight"
    return None


def is_stacked(term: Term) -> bool:
    """Whether a term differs between the matrices of the stack."""
    sizes = tensor_of(term.node).shape
    pairs = zip(reversed(term.labels), reversed(sizes), strict=False)
    return any(label.isdigit() and not statically_known_true(size == 1) for label, size in pairs)
