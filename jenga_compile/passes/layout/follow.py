"""One step back along the data flow: from the token axis of an op's output to where it lies in the op's inputs.

An op without links ends the walk there: less is learned, nothing is guessed. Cuts and joins along the token axis itself
have no links either; they are followed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from jenga_compile.passes.graph import argument, integer, is_tensor, shape_of
from jenga_compile.passes.layout.axis import Axis, reshaped
from jenga_compile.passes.links import is_view, links_of
from jenga_compile.passes.rules import Links, dims_of, source_of

aten = torch.ops.aten
Place = tuple[Node, Axis]
"""A tensor, and where the site's tokens lie in it."""


def follow(node: Node, axis: Axis) -> list[Place]:
    """The axis of `node`'s output in the node's inputs."""
    if is_view(node):
        source = source_of(node)
        return _reached(source, reshaped(axis, shape_of(node), shape_of(source)))
    links = links_of(node)
    if axis.dims <= links.keys():
        return _linked(axis, links)
    along = _ALONG_TOKENS.get(node.target) if node.op == "call_function" else None
    return along(node, axis) if along is not None else []


def _linked(axis: Axis, links: Links) -> list[Place]:
    """Inputs that have every dimension of the axis; a table that has only some is no place of the tokens."""
    found: dict[Node, dict[int, int]] = {}
    for dim in axis.dims:
        for source, own in links[dim]:
            found.setdefault(source, {})[dim] = own
    return [(source, axis.map_dims(own.__getitem__)) for source, own in found.items() if axis.dims <= own.keys()]


def _reached(node: Any, axis: Axis | None) -> list[Place]:
    return [(node, axis)] if axis is not None and is_tensor(node) else []


def _slice(node: Node, axis: Axis) -> list[Place]:
    source = source_of(node)
    (dim,) = dims_of(argument(node, 1, "dim", 0), len(shape_of(source)))
    first = argument(node, 2, "start")
    if axis.leading_dim(dim, shape_of(node)) is None or integer(argument(node, 4, "step", 1)) != 1:
        return []
    begin = _from_front(0 if first is None else integer(first), shape_of(source)[dim])
    return _reached(source, axis.resized(shape_of(source)[dim], begin))


def _from_front(first: int, size: int) -> int:
    """Where a slice of `size` values begins; Python counts negative starts from the end and stops at the front."""
    return first if first >= 0 else max(0, first + size)


def _cat(node: Node, axis: Axis) -> list[Place]:
    shape = shape_of(node)
    # An empty one-dimensional tensor joins anything.
    pieces = [piece for piece in argument(node, 0, "tensors") if len(shape_of(piece)) == len(shape)]
    (dim,) = dims_of(argument(node, 1, "dim", 0), len(shape))
    if axis.leading_dim(dim, shape) is None:
        return []
    places, first = [], 0
    for piece in pieces:
        size = shape_of(piece)[dim]
        places += _reached(piece, axis.resized(size, -first))
        first += size
    return places


def _scatter_slice(node: Node, axis: Axis) -> list[Place]:
    """The output is `whole` but for `whole[..., start : end, ...] = patch` along `dim`."""
    whole, patch = (source_of(node, place, name) for place, name in ((0, "self"), (1, "src")))
    shape = shape_of(node)
    (dim,) = dims_of(argument(node, 2, "dim", 0), len(shape))
    first = argument(node, 3, "start")
    if axis.leading_dim(dim, shape) is None or integer(argument(node, 5, "step", 1)) != 1:
        return []
    begin = _from_front(0 if first is None else integer(first), shape[dim])
    covered = shape_of(patch)[dim]
    left = axis.without(begin, begin + covered)
    return _reached(patch, axis.resized(covered, -begin)) + [(whole, part) for part in left]


def _scatter_select(node: Node, axis: Axis) -> list[Place]:
    """The output is `whole` but for `whole[..., index, ...] = patch` along `dim`."""
    shape = shape_of(node)
    (dim,) = dims_of(argument(node, 2, "dim"), len(shape))
    if axis.leading_dim(dim, shape) is None:
        return []
    index = integer(argument(node, 3, "index")) % shape[dim]
    return [(source_of(node), part) for part in axis.without(index, index + 1)]


def _pad(node: Node, axis: Axis) -> list[Place]:
    """Positions around the input's own hold a constant."""
    source = source_of(node)
    shape, own = shape_of(node), shape_of(source)
    moved = [dim for dim in axis.dims if shape[dim] != own[dim]]
    if len(moved) != 1 or axis.leading_dim(moved[0], shape) is None:
        return []
    widths = [integer(width) for width in argument(node, 1, "pad")]
    return _reached(source, axis.resized(own[moved[0]], -widths[2 * (len(shape) - 1 - moved[0])]))


_ALONG_TOKENS: dict[Any, Callable[[Node, Axis], list[Place]]] = {
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten.slice_scatter.default: _scatter_slice,
    aten.select_scatter.default: _scatter_select,
    aten.constant_pad_nd.default: _pad,
}
