"""One rule an op: from the token axis of its output to where that axis lies in its inputs.

Each rule states which input rows an output row is made of, so that token i of the output is proven to be token i of
the input. Where an op mixes tokens, its rule reaches nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node

from jenga_compile.passes.axis import Axis, Shape, reshaped
from jenga_compile.passes.graph import argument, integer, is_tensor, shape_of

aten = torch.ops.aten
BIASED = (aten.addmm.default, aten.baddbmm.default)


@dataclasses.dataclass
class Step:
    """What one op reveals: the same axis in its inputs, and the token coordinates at which it joins pieces."""

    parents: list[tuple[Node, Axis]] = dataclasses.field(default_factory=list)
    cuts: set[int] = dataclasses.field(default_factory=set)

    def reach(self, node: Any, axis: Axis | None) -> Step:
        if axis is not None and is_tensor(node):
            self.parents.append((node, axis))
        return self


def pointwise_rule(node: Node, axis: Axis) -> Step:
    step = Step()
    shape = shape_of(node)
    for source in node.all_input_nodes:
        if is_tensor(source):
            step.reach(source, _broadcast(axis, shape, shape_of(source)))
    return step


def _broadcast(axis: Axis, out: Shape, source: Shape) -> Axis | None:
    """The axis in an operand that broadcasting stretches to `out`; None where the operand lacks part of it."""
    lost = len(out) - len(source)
    if any(dim < lost or source[dim - lost] != out[dim] for dim in axis.dims):
        return None
    return axis.map_dims(lambda dim: dim - lost)


def view_rule(node: Node, axis: Axis) -> Step:
    source = node.args[0]
    assert isinstance(source, Node)
    return Step().reach(source, reshaped(axis, shape_of(node), shape_of(source)))


def same_rule(node: Node, axis: Axis) -> Step:
    return Step().reach(node.args[0], axis)


def expand_rule(node: Node, axis: Axis) -> Step:
    source = node.args[0]
    assert isinstance(source, Node)
    return Step().reach(source, _broadcast(axis, shape_of(node), shape_of(source)))


def permute_rule(node: Node, axis: Axis) -> Step:
    rank = len(shape_of(node))
    order = [integer(dim) % rank for dim in argument(node, 1, "dims")]
    return Step().reach(node.args[0], axis.map_dims(lambda dim: order[dim]))


def transpose_rule(node: Node, axis: Axis) -> Step:
    rank = len(shape_of(node))
    if node.target is aten.t.default:
        first, second = 0, rank - 1
    else:
        first, second = (integer(node.args[place]) % rank for place in (1, 2))
    swap = {first: second, second: first}
    return Step().reach(node.args[0], axis.map_dims(lambda dim: swap.get(dim, dim)))


def select_rule(node: Node, axis: Axis) -> Step:
    source = node.args[0]
    assert isinstance(source, Node)
    return Step().reach(source, _undrop(axis, [integer(argument(node, 1, "dim", 0))], len(shape_of(source))))


def _undrop(axis: Axis, dropped: Iterable[int], rank: int) -> Axis:
    """The axis before dimensions `dropped` of a tensor of `rank` dimensions were removed."""
    gone = {dim % rank for dim in dropped}
    left = [dim for dim in range(rank) if dim not in gone]
    return axis.map_dims(lambda dim: left[dim])


def reduce_rule(node: Node, axis: Axis) -> Step:
    source = node.args[0]
    assert isinstance(source, Node)
    rank = len(shape_of(source))
    dims = argument(node, 1, "dim")
    reduced = [integer(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]
    if dims is None or not reduced:
        return Step()
    if len(shape_of(node)) == rank:
        return Step().reach(source, None if axis.dims & set(reduced) else axis)
    return Step().reach(source, _undrop(axis, reduced, rank))


def softmax_rule(node: Node, axis: Axis) -> Step:
    dim = integer(node.args[1]) % len(shape_of(node))
    return Step() if dim in axis.dims else Step().reach(node.args[0], axis)


def slice_rule(node: Node, axis: Axis) -> Step:
    source = node.args[0]
    assert isinstance(source, Node)
    dim = integer(argument(node, 1, "dim", 0)) % len(shape_of(source))
    first = argument(node, 2, "start")
    if dim in axis.dims and integer(argument(node, 4, "step", 1)) != 1:
        return Step()
    return window_rule(node, axis, source, dim, integer(first) if first is not None else 0)


def window_rule(node: Node, axis: Axis, source: Node, dim: int, first: int) -> Step:
    """The output is `source[..., first : first + n, ...]` along `dim`."""
    if dim not in axis.dims:
        return Step().reach(source, axis)
    size = shape_of(source)[dim]
    if axis.leading_dim(dim, shape_of(node)) is None:
        return Step().reach(source, axis if size == shape_of(node)[dim] else None)
    return Step().reach(source, axis.resized(size, _from_front(first, size)))


def _from_front(first: int, size: int) -> int:
    """Where a slice of `size` values begins; Python counts negative starts from the end and stops at the front."""
    return first if first >= 0 else max(0, first + size)


def cat_rule(node: Node, axis: Axis) -> Step:
    shape = shape_of(node)
    # An empty one-dimensional tensor joins anything.
    pieces = [p for p in argument(node, 0, "tensors") if is_tensor(p) and len(shape_of(p)) == len(shape)]
    dim = integer(argument(node, 1, "dim", 0)) % len(shape)
    step = Step()
    if dim not in axis.dims:
        for piece in pieces:
            step.reach(piece, axis)
    elif axis.leading_dim(dim, shape) is not None:
        first = 0
        for piece in pieces:
            size = shape_of(piece)[dim]
            _join(step, axis, piece, size, first)
            first += size
    return step


def _join(step: Step, axis: Axis, piece: Node, size: int, first: int) -> None:
    """`piece` supplies `size` values of the leading digit from `first` on."""
    part = axis.resized(size, -first)
    if part is not None:
        step.cuts |= {cut for cut in (part.offset, part.offset + part.tokens) if axis.start < cut < axis.stop}
        step.reach(piece, part)


def stack_rule(node: Node, axis: Axis) -> Step:
    shape = shape_of(node)
    dim = integer(argument(node, 1, "dim", 0)) % len(shape)
    step = Step()
    if dim not in axis.dims:
        for piece in argument(node, 0, "tensors"):
            step.reach(piece, axis.map_dims(lambda old: old - (old > dim)))
    return step


def scatter_slice_rule(node: Node, axis: Axis) -> Step:
    """The output is `whole` but for `whole[..., start : end, ...] = patch` along `dim`."""
    whole, patch = node.args[:2]
    shape = shape_of(node)
    dim = integer(argument(node, 2, "dim", 0)) % len(shape)
    step = Step()
    if dim not in axis.dims:
        return step.reach(whole, axis).reach(patch, axis)
    first = argument(node, 3, "start")
    assert isinstance(patch, Node)
    if axis.leading_dim(dim, shape) is not None and integer(argument(node, 5, "step", 1)) == 1:
        begin = _from_front(integer(first) if first is not None else 0, shape[dim])
        covered = shape_of(patch)[dim]
        _join(step, axis, patch, covered, begin)
        for part in axis.without(begin, begin + covered):
            step.reach(whole, part)
    return step


def scatter_select_rule(node: Node, axis: Axis) -> Step:
    """The output is `whole` but for `whole[..., index, ...] = patch` along `dim`."""
    whole, patch = node.args[:2]
    shape = shape_of(node)
    dim = integer(node.args[2]) % len(shape)
    step = Step()
    if dim not in axis.dims:
        return step.reach(whole, axis).reach(patch, axis.map_dims(lambda old: old - (old > dim)))
    if axis.leading_dim(dim, shape) is not None:
        index = integer(node.args[3]) % shape[dim]
        for part in axis.without(index, index + 1):
            step.reach(whole, part)
    return step


def matmul_rule(node: Node, axis: Axis) -> Step:
    """Rows of the product come from the left factor, columns from the right one, batches from both."""
    left, right = node.args[-2:] if node.target not in BIASED else node.args[1:3]
    rank = len(shape_of(node))
    step = Step()
    if rank - 1 not in axis.dims:
        step.reach(left, axis)
    if rank - 2 not in axis.dims:
        step.reach(right, axis)
    return step


def last_dim_rule(node: Node, axis: Axis) -> Step:
    """The last dimension is made anew, by a linear layer or as the pair of a complex number; rows stay rows."""
    return Step() if len(shape_of(node)) - 1 in axis.dims else Step().reach(node.args[0], axis)


def embedding_rule(node: Node, axis: Axis) -> Step:
    return Step() if len(shape_of(node)) - 1 in axis.dims else Step().reach(node.args[1], axis)


def attention_rule(node: Node, axis: Axis) -> Step:
    """A row of attention's output is a row of its queries; keys and values are no rows of it."""
    return Step() if 3 in axis.dims else Step().reach(node.args[0], axis)


def copy_rule(node: Node, axis: Axis) -> Step:
    source = node.args[1]
    assert isinstance(source, Node)
    return Step().reach(source, _broadcast(axis, shape_of(node), shape_of(source)))


def split_item(node: Node, split: Node, place: int, axis: Axis) -> Step:
    whole = split.args[0]
    assert isinstance(whole, Node)
    dim = integer(argument(split, 2, "dim", 0)) % len(shape_of(node))
    sizes = argument(split, 1, "split_size")
    first = sum(map(integer, sizes[:place])) if isinstance(sizes, (list, tuple)) else integer(sizes) * place
    return window_rule(node, axis, whole, dim, first)


def unbind_item(node: Node, unbind: Node, place: int, axis: Axis) -> Step:
    whole = unbind.args[0]
    assert isinstance(whole, Node)
    return Step().reach(whole, _undrop(axis, [integer(argument(unbind, 1, "dim", 0))], len(shape_of(whole))))


def norm_item(node: Node, norm: Node, place: int, axis: Axis) -> Step:
    """Normalisation over trailing dimensions: rows stay rows, in the output and in the statistics alike."""
    whole = norm.args[0]
    assert isinstance(whole, Node)
    rank, normalised = len(shape_of(whole)), len(argument(norm, 1, "normalized_shape"))
    inside = any(dim >= rank - normalised for dim in axis.dims)
    return Step() if inside else Step().reach(whole, axis)


def moments_item(node: Node, moments: Node, place: int, axis: Axis) -> Step:
    whole = moments.args[0]
    assert isinstance(whole, Node)
    rank = len(shape_of(whole))
    reduced = [integer(dim) % rank for dim in argument(moments, 1, "dim") or []]
    if len(shape_of(node)) != rank:
        return Step().reach(whole, _undrop(axis, reduced, rank))
    return Step() if axis.dims & set(reduced) else Step().reach(whole, axis)


def sdpa_item(node: Node, attention: Node, place: int, axis: Axis) -> Step:
    return attention_rule(attention, axis) if place == 0 and len(shape_of(node)) == 4 else Step()
