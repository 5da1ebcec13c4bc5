"""The order of what an op cuts out, joins or writes into, from the orders of its inputs."""

from __future__ import annotations

import torch
from torch.fx import Node

from jenga_compile.passes.graph import argument, integer, shape_of
from jenga_compile.passes.reorder.forward_rules import named, operand, sequence_length
from jenga_compile.passes.reorder.runs import Fault, cut, is_fixed, joined, met, tokens_of, uniform
from jenga_compile.passes.reorder.seen import Moved, Seen

aten = torch.ops.aten


def slice_order(node: Node, seen: Seen) -> Moved | None:
    source = operand(node)
    (dim,) = named(argument(node, 1, "dim", 0), len(shape_of(source)))
    if dim != seen.dim(source):
        return Moved(seen.dim(source), seen.sequence(source))
    size = shape_of(source)[dim]
    begin, end, stride = (argument(node, place, "bound") for place in (2, 3, 4))
    begin, end, stride = slice(*(None if bound is None else integer(bound) for bound in (begin, end, stride))).indices(
        size
    )
    runs = cut(seen.whole(source, dim), begin, max(begin, end))
    if stride != 1 and not is_fixed(runs):
        raise Fault(f"takes every {stride}. of permuted tokens")
    return Moved(dim, runs) if stride == 1 else None


def cat_order(node: Node, seen: Seen) -> Moved | None:
    rank = len(shape_of(node))
    pieces = [piece for piece in argument(node, 0, "tensors") if len(shape_of(piece)) == rank]
    (joint,) = named(argument(node, 1, "dim", 0), rank)
    dims = {seen.dim(piece) for piece in seen.leading(pieces)} or {joint}
    if len(dims) != 1:
        raise Fault(f"pieces are permuted along dimensions {sorted(dims)}")
    (dim,) = dims
    if dim == joint:
        return Moved(dim, joined(*(seen.whole(piece, dim) for piece in pieces)))
    tokens = sequence_length(pieces, seen)
    return Moved(dim, met([seen.along(piece, dim, tokens) for piece in pieces]))


def stack_order(node: Node, seen: Seen) -> Moved | None:
    pieces = argument(node, 0, "tensors")
    (new,) = named(argument(node, 1, "dim", 0), len(shape_of(node)))
    dims = {seen.dim(piece) for piece in seen.leading(pieces)}
    if len(dims) != 1:
        raise Fault(f"pieces are permuted along dimensions {sorted(dims)}")
    (dim,) = dims
    tokens = sequence_length(pieces, seen)
    return Moved(dim + (dim >= new), met([seen.along(piece, dim, tokens) for piece in pieces]))


def pad_order(node: Node, seen: Seen) -> Moved | None:
    return _padded(node, seen, seen.dim(operand(node)))


def margin_order(node: Node, seen: Seen) -> Moved | None:
    """What is put around tokens in place is the same everywhere; None if it is not exactly one dimension."""
    source, rank = operand(node), len(shape_of(node))
    grown = [dim for dim in range(rank) if shape_of(node)[dim] > shape_of(source)[dim]]
    return _padded(node, seen, grown[0]) if len(grown) == 1 else None


def _padded(node: Node, seen: Seen, dim: int) -> Moved:
    source = operand(node)
    widths = [integer(width) for width in argument(node, 1, "pad")]
    place = 2 * (len(shape_of(source)) - 1 - dim)
    left, right = widths[place : place + 2] if place < len(widths) else (0, 0)
    if left == right == 0:
        return Moved(dim, seen.sequence(source))
    tokens = shape_of(source)[dim]
    kept = cut(seen.whole(source, dim), max(0, -left), tokens - max(0, -right))
    return Moved(dim, joined(uniform(max(0, left)), kept, uniform(max(0, right))))


def scatter_slice_order(node: Node, seen: Seen) -> Moved | None:
    whole, patch = operand(node), operand(node, 1)
    (cut_dim,) = named(argument(node, 2, "dim", 0), len(shape_of(node)))
    dims = {seen.dim(source) for source in seen.leading((whole, patch))} or {cut_dim}
    if len(dims) != 1:
        raise Fault(f"writes along dimension {sorted(dims)}")
    (dim,) = dims
    if dim != cut_dim:
        tokens = sequence_length((whole, patch), seen)
        return Moved(dim, met([seen.along(source, dim, tokens) for source in (whole, patch)]))
    inside, around = seen.whole(patch, dim), seen.whole(whole, dim)
    begin, end, stride = (argument(node, place, "bound") for place in (3, 4, 5))
    bounds = slice(*(None if bound is None else integer(bound) for bound in (begin, end, stride)))
    begin, end, stride = bounds.indices(shape_of(node)[dim])
    if stride != 1:
        raise Fault(f"writes to every {stride}. token")
    return Moved(dim, joined(cut(around, 0, begin), inside, cut(around, end, tokens_of(around))))


def scatter_select_order(node: Node, seen: Seen) -> Moved | None:
    whole, patch = operand(node), operand(node, 1)
    (gone,) = named(argument(node, 2, "dim"), len(shape_of(node)))
    dim = seen.dim(whole) if seen.is_moved(whole) else seen.dim(patch) + (seen.dim(patch) >= gone)
    if dim != gone:
        tokens = sequence_length((whole, patch), seen)
        inside = seen.along(patch, dim - (dim > gone), tokens)
        return Moved(dim, met([seen.along(whole, dim, tokens), inside]))
    if seen.is_moved(patch):
        raise Fault("writes permuted tokens to one place of a sequence")
    index = integer(argument(node, 3, "index")) % shape_of(whole)[dim]
    runs = seen.whole(whole, dim)
    cut(runs, index, index + 1)
    return Moved(dim, runs)


def stretched_order(node: Node) -> Moved | None:
    """A dimension that is stretched from one index holds the same everywhere; None if it is not exactly one."""
    source = operand(node)
    shape, own = shape_of(node), shape_of(source)
    own = (1,) * (len(shape) - len(own)) + own
    grown = [dim for dim, size in enumerate(shape) if size != own[dim]]
    return Moved(grown[0], uniform(shape[grown[0]])) if len(grown) == 1 else None
