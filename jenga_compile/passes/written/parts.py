"""Which tokens queries were cut from, on Dynamo's graph: what a report says of attention over a part of them.

A dimension is walked back through operations that leave its places apart: views, transpositions, products, casts,
whatever works on each place alike. Where an operation cuts it, the walk goes on along what it was cut from.
"""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.graph import argument, is_tensor, sizes_of, tensor_of
from jenga_compile.passes.sizes import Size, hint_of
from jenga_compile.passes.written.product import product_of
from jenga_compile.passes.written.spelling import first, name_of
from jenga_compile.passes.written.stacks import REGROUPS, TURNS, turn

SPLITS = frozenset({"chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "unbind"})
"""Operations whose results are several tensors."""

_Place = tuple[Node, int]
"""A tensor and one of its dimensions."""


def whole_of(queries: Node, dim: int, keys: Size) -> Size:
    """How many tokens there are along `dim`; as many as the keys where they were cut from as many."""
    own = tensor_of(queries).shape[dim]
    place: _Place | None = (queries, dim % tensor_of(queries).dim())
    while place is not None and hint_of(own) < hint_of(keys):
        node, at = place
        if statically_known_true(tensor_of(node).shape[at] == keys):
            return keys
        place = _before(node, at)
    return own


def _before(node: Node, dim: int) -> _Place | None:
    """What a dimension was before an operation; None if that cannot be told."""
    name = name_of(node)
    if not node.op.startswith("call"):
        return None
    maker, source, rank = node, first(node), tensor_of(node).dim()
    if name == "getitem" and not is_tensor(source):
        maker, name, source = source, name_of(source), first(source)
        if name not in SPLITS:
            return None
    if name in ("select", "unbind"):
        taken = argument(maker, 1, "dim", 0)
        return (source, dim + (dim >= taken % (rank + 1))) if isinstance(taken, int) else None
    if name in SPLITS | {"narrow", "slice"}:
        return source, dim
    if name == "getitem":
        return _indexed(source, node.args[1], dim)
    if name in TURNS:
        turned = turn(node, tuple(map(str, range(rank))))
        return None if turned is None else (source, int(turned[dim]))
    if name in REGROUPS:
        return _regrouped(source, sizes_of(node), dim)
    product = product_of(node)
    if product is not None:
        factor = product.left if product.labels[dim] in product.left_labels else product.right
        return factor, product.of(factor).index(product.labels[dim])
    return _aligned(node, dim)


def _indexed(source: Node, index: Any, dim: int) -> _Place | None:
    """Behind `source[index]`, where the index is of numbers, slices, `...` and None."""
    items = list(index) if isinstance(index, tuple | list) else [index]
    taken = sum(item is not None and item is not Ellipsis for item in items)
    rest = [slice(None)] * (tensor_of(source).dim() - taken)
    place = items.index(Ellipsis) if any(item is Ellipsis for item in items) else len(items)
    before, after = 0, 0
    for item in [*items[:place], *rest, *items[place + 1 :]]:
        if item is not None and not isinstance(item, int | slice):
            return None
        if after == dim and not isinstance(item, int):
            return None if item is None else (source, before)
        before, after = before + (item is not None), after + (not isinstance(item, int))
    return None


def _regrouped(source: Node, sizes: tuple[int, ...], dim: int) -> _Place | None:
    """Behind a view: the dimension of the same size with as many places ahead of it."""
    sources = sizes_of(source)
    for place, size in enumerate(sources):
        if size == sizes[dim] != 1 and math.prod(sources[:place]) == math.prod(sizes[:dim]):
            return source, place
    return None


def _aligned(node: Node, dim: int) -> _Place | None:
    """Behind an operation on each place alike: the first tensor with the dimension, counted from the last."""
    from_last, size = tensor_of(node).dim() - dim, sizes_of(node)[dim]
    for source in filter(is_tensor, node.all_input_nodes):
        place = tensor_of(source).dim() - from_last
        if place >= 0 and sizes_of(source)[place] == size != 1:
            return source, place
    return None
