"""What a graph normalises over keys, in whatever spelling, and the products on either side: what attention is told by.

normalised   a softmax that `softmax_of` reads, anything else of that name, exponentials that are summed
products     of two activations, before and behind it, past scaling, masks, casts, views and cuts
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch.fx import Graph, Node

from jenga_compile.passes.graph import argument, is_tensor, sizes_of, tensor_of
from jenga_compile.passes.sizes import Size
from jenga_compile.passes.written.parts import SPLITS
from jenga_compile.passes.written.product import is_parameter
from jenga_compile.passes.written.softmax import Softmax, softmax_of
from jenga_compile.passes.written.spelling import first, name_of

_PRODUCTS = ("matmul", "bmm", "einsum")
_COLUMNS = SPLITS | {"cat", "concat", "concatenate", "pad", "getitem", "narrow", "slice"}
"""Operations after which a softmax sees other columns than those of the keys, or the values other ones than it saw."""

_Neighbours = Callable[[Node], Iterable[Node]]
_Passed = Callable[[Node, Node], bool]
"""Whether a walk goes on from one node to another."""


@dataclasses.dataclass(frozen=True)
class Normalised:
    """Exponentials of something, normalised over one dimension."""

    weights: Node
    dim: int
    """Counted from the last."""

    first: Node
    """The operation that reads what is normalised."""

    softmax: Softmax | None
    unread: str = ""
    """Why there is no `softmax`."""

    def logits(self) -> list[Node]:
        """The nearest products before it: of its size, else those of which it has columns."""
        nearest = _products(self.first, _inputs, _same_size)
        same = [product for product in nearest if _same_size(product, self.weights)]
        return same or _products(self.first, _inputs, _same_rows)

    def products(self) -> list[Node]:
        """The nearest products behind it, past cuts only if there are no others."""
        return _products(self.weights, _users, _same_size) or _products(self.weights, _users, _same_rows)

    def keys(self) -> Size:
        """How many of its columns are keys."""
        sizes = sizes_of(self.weights)
        rows = max(1, count(sizes) // max(1, sizes[self.dim]))
        columns = {count(sizes_of(product)) // rows: sizes_of(product) for product in self.logits()}
        found = max((number for number, sizes in columns.items() if number in sizes), default=sizes[self.dim])
        return tensor_of(self.weights).shape[self.dim] if found == sizes[self.dim] else found


def all_normalised(graph: Graph) -> dict[Node, Normalised]:
    """What a graph normalises, by the node that ends it; what shares its exponentials stands there once."""
    found: dict[Node, Normalised] = {}
    inside: set[Node] = set()
    for node in graph.nodes:
        softmax = softmax_of(node)
        if softmax is not None and softmax.nodes[0] not in inside:
            dim = softmax.dim - tensor_of(softmax.scores).dim()
            found[node] = Normalised(softmax.weights, dim, softmax.nodes[0], softmax)
        inside.update(softmax.nodes if softmax is not None else ())
    for node in graph.nodes:
        if node not in inside and is_tensor(node) and tensor_of(node).dim() >= 2:
            named, summed = _named_dim(node), _summed_dim(node)
            if named is not None:
                found[node] = Normalised(node, named, node, None, "its softmax is none of torch's")
            elif summed is not None:
                unread = "its exponentials and their sum are not read as a softmax"
                found[node] = Normalised(node, summed, node, None, unread)
    return found


def _named_dim(node: Node) -> int | None:
    """The dimension of anything else with softmax in its name."""
    name, dim, rank = spelled(node), argument(node, 1, "dim"), tensor_of(node).dim()
    return dim % rank - rank if "softmax" in name and "log" not in name and isinstance(dim, int) else None


def _summed_dim(node: Node) -> int | None:
    """The dimension over which exponentials, or what they are exponentials of, are summed."""
    if name_of(node).removesuffix("_") not in ("exp", "exp2"):
        return None
    if not _products(node, _inputs, _same_rows):
        return None
    sums = [
        *_nearest(node, _users, partial(_is_sum, node), _same_size),
        *_nearest(node, _inputs, partial(_is_sum, node), lambda *_: True),
    ]
    for found in sums:
        dim, rank = argument(found, 1, "dim"), tensor_of(first(found)).dim()
        if isinstance(dim, tuple | list) and len(dim) == 1:
            (dim,) = dim
        if isinstance(dim, int):
            return dim % rank - rank
    return None


def _is_sum(exponentials: Node, node: Node) -> bool:
    """Whether a node sums the exponentials themselves, or those of as many other numbers."""
    return name_of(node) in ("sum", "logsumexp") and is_tensor(first(node)) and _same_size(first(node), exponentials)


def _products(normalised: Node, neighbours: _Neighbours, is_passed: _Passed) -> list[Node]:
    """The nearest products of two activations, past scaling, masks, casts and views.

    A product with a learned factor is a projection, and then there is no attention.
    """
    nearest = _nearest(normalised, neighbours, _is_product, is_passed)
    return [node for node in nearest if not any(map(is_parameter, node.all_input_nodes))]


def _nearest(
    start: Node,
    neighbours: _Neighbours,
    is_wanted: Callable[[Node], bool],
    is_passed: _Passed,
) -> Iterator[Node]:
    """What is wanted before or after a node, on this side of other products."""
    pending, seen = [start], {start}
    while pending:
        at = pending.pop()
        for node in neighbours(at):
            if node in seen:
                continue
            seen.add(node)
            if is_wanted(node):
                yield node
            elif not _is_product(node) and is_passed(at, node):
                pending.append(node)


def _inputs(node: Node) -> Iterable[Node]:
    return node.all_input_nodes


def _users(node: Node) -> Iterable[Node]:
    return node.users


def _same_size(one: Node, other: Node) -> bool:
    return is_tensor(one) and is_tensor(other) and count(sizes_of(one)) == count(sizes_of(other))


def _same_rows(one: Node, other: Node) -> bool:
    """Whether one of two neighbours is the other, some columns more or less."""
    reader = one if other in one.all_input_nodes else other
    return name_of(reader) in _COLUMNS or _same_size(one, other)


def _is_product(node: Node) -> bool:
    return is_tensor(node) and any(product in spelled(node) for product in _PRODUCTS)


def spelled(node: Node) -> str:
    """The name of the function or operator that a node calls, as it stands."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def count(sizes: tuple[int, ...]) -> int:
    return torch.Size(sizes).numel()
