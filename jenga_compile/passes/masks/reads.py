"""Which element of an operand an op reads for the element [b, h, q, k] of an attention mask.

A `Read` says it for each dimension of a tensor: nothing (size 1), one fixed index, or the digits of an index in mixed
radix, each one axis of the mask. Steps cut or embed an axis on the way. An op without a rule here ends the walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.graph import argument, tensor_of
from jenga_compile.passes.links import VIEWS

aten = torch.ops.aten
MaskAxis = Literal["batch", "head", "query", "key"]
AXES: tuple[MaskAxis, ...] = ("batch", "head", "query", "key")
Size = int | torch.SymInt
Extent = int | Node | tuple[Node, int]
"""A length: a number, a node that holds one, or that of a tensor's dimension."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Take `[start : end : step]`."""

    start: Any
    end: Any
    step: Any


@dataclasses.dataclass(frozen=True)
class Embed:
    """Put nothing (False) before and after."""

    before: tuple[Extent, ...]
    after: tuple[Extent, ...]


@dataclasses.dataclass(frozen=True)
class Digit:
    """One axis of the mask, reached from a tensor's dimension of `size` by `steps`."""

    axis: MaskAxis
    size: Size = dataclasses.field(compare=False)
    steps: tuple[Cut | Embed, ...] = ()

    def after(self, step: Cut | Embed, size: Size) -> Digit:
        return Digit(self.axis, size, (step, *self.steps))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """One index for all elements of the mask."""

    index: Any


Entry = tuple[Digit, ...] | Fixed
Read = tuple[Entry, ...]


def equal(first: Size, second: Size) -> bool:
    """Whether two sizes are provably equal; adds no guard."""
    return statically_known_true(first == second)


def at_least_one(length: Extent) -> bool:
    """Whether a length is provably not 0."""
    if isinstance(length, tuple):
        node, dim = length
        return statically_known_true(tensor_of(node).shape[dim] >= 1)
    return statically_known_true((length.meta["val"] if isinstance(length, Node) else length) >= 1)


def read_mask(mask: Node) -> Read:
    """How attention reads a mask that broadcasts to [B, H, Q, K]."""
    shape = tensor_of(mask).shape
    return tuple(
        () if equal(size, 1) else (Digit(axis, size),) for axis, size in zip(AXES[-len(shape) :], shape, strict=True)
    )


def axes_of(read: Read) -> set[MaskAxis]:
    """Axes of the mask along which a tensor, read so, may vary."""
    return {digit.axis for entry in read if not isinstance(entry, Fixed) for digit in entry}


def broadcast(read: Read, source: Node) -> Read:
    """The read of an operand that broadcasting stretches."""
    shape = tensor_of(source).shape
    aligned = read[len(read) - len(shape) :]
    return tuple(() if equal(size, 1) else entry for size, entry in zip(shape, aligned, strict=True))


def read_source(node: Node, read: Read) -> tuple[Node, Read] | None:
    """The one operand of an op that moves elements and computes none, and how it is read; None if unknown."""
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    if rule is None:
        return None
    source = argument(node, 0, "self")
    assert isinstance(source, Node)
    found = rule(node, read, source)
    return None if found is None else (source, found)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a concatenation or padding: a tensor, or the value that fills it."""

    content: Node | float
    length: Extent
    read: Read
    place: Digit
    """Embeds the part's own axis in the whole."""


def read_pieces(node: Node, read: Read) -> list[Piece] | None:
    """The parts of a concatenation or padding along one axis of the mask; None if `node` is no such op."""
    parts = _parts(node, len(read)) if node.op == "call_function" else None
    if parts is None:
        return None
    dim, contents, lengths = parts
    entry = read[dim]
    if isinstance(entry, Fixed) or len(entry) != 1:
        return None
    found = []
    for number, (content, length) in enumerate(zip(contents, lengths, strict=True)):
        size = tensor_of(content).shape[dim] if isinstance(content, Node) else 0
        place = entry[0].after(Embed(tuple(lengths[:number]), tuple(lengths[number + 1 :])), size)
        own: Entry = () if equal(size, 1) else (place,)
        found.append(Piece(content, length, (*read[:dim], own, *read[dim + 1 :]), place))
    return found


def _parts(node: Node, rank: int) -> tuple[int, list[Node | float], list[Extent]] | None:
    if node.target is aten.cat.default:
        dim = argument(node, 1, "dim", 0) % rank
        # An empty one-dimensional tensor joins anything.
        joined = [piece for piece in argument(node, 0, "tensors") if tensor_of(piece).dim() == rank]
        return dim, joined, [(piece, dim) for piece in joined]
    if node.target is aten.constant_pad_nd.default:
        source, pad, value = node.args[0], argument(node, 1, "pad"), argument(node, 2, "value", 0)
        assert isinstance(source, Node)
        dims = [place // 2 for place, amount in enumerate(pad) if isinstance(amount, Node) or amount != 0]
        if len(set(dims)) == 1 and all(_is_natural(amount) for amount in pad):
            dim = rank - 1 - dims[0]
            before, after = pad[2 * dims[0] : 2 * dims[0] + 2]
            return dim, [value, source, value], [before, (source, dim), after]
    return None


def _is_natural(amount: int | Node) -> bool:
    return statically_known_true((amount.meta["val"] if isinstance(amount, Node) else amount) >= 0)


def _expanded(node: Node, read: Read, source: Node) -> Read:
    return broadcast(read, source)


def _repeated(node: Node, read: Read, source: Node) -> Read | None:
    """Whole repeats along a dimension are copies only where it has size 1."""
    repeats, shape = node.args[1], tensor_of(source).shape
    assert isinstance(repeats, Sequence)
    own = repeats[len(repeats) - len(shape) :]
    if any(times != 1 and not equal(size, 1) for times, size in zip(own, shape, strict=True)):
        return None
    return broadcast(read, source)


def _same(node: Node, read: Read, source: Node) -> Read:
    return read


def _viewed(node: Node, read: Read, source: Node) -> Read | None:
    """Digits in row-major order, dealt to the dimensions of the source by their sizes."""
    digits: list[tuple[Size, Digit | Fixed]] = []
    for size, entry in zip(tensor_of(node).shape, read, strict=True):
        digits += [(size, entry)] if isinstance(entry, Fixed) else [(digit.size, digit) for digit in entry]
    found: list[Entry] = []
    for size in tensor_of(source).shape:
        taken: list[Digit | Fixed] = []
        product: Size = 1
        while digits and not equal(product, size):
            factor, digit = digits.pop(0)
            product = product * factor
            taken.append(digit)
        if not equal(product, size):
            return None
        if len(taken) == 1 and isinstance(taken[0], Fixed):
            found.append(taken[0])
        elif any(isinstance(digit, Fixed) for digit in taken):
            return None
        else:
            found.append(tuple(digit for digit in taken if isinstance(digit, Digit)))
    return None if digits else tuple(found)


def _permuted(node: Node, read: Read, source: Node) -> Read:
    order = [dim % len(read) for dim in argument(node, 1, "dims")]
    return tuple(read[order.index(dim)] for dim in range(len(read)))


def _transposed(node: Node, read: Read, source: Node) -> Read:
    swapped = list(read)
    first, second = (0, -1) if node.target is aten.t.default else (argument(node, 1, "dim0"), argument(node, 2, "dim1"))
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def _selected(node: Node, read: Read, source: Node) -> Read:
    dim = argument(node, 1, "dim", 0) % (len(read) + 1)
    own: Entry = () if equal(tensor_of(source).shape[dim], 1) else Fixed(argument(node, 2, "index", 0))
    return (*read[:dim], own, *read[dim:])


def _sliced(node: Node, read: Read, source: Node) -> Read | None:
    dim = argument(node, 1, "dim", 0) % len(read)
    cut = Cut(argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1))
    size, entry = tensor_of(source).shape[dim], read[dim]
    if equal(size, tensor_of(node).shape[dim]):
        return read
    own: Entry | None = None
    if entry == () and (cut.start is None or (isinstance(cut.start, int) and cut.start >= 0)):
        own = Fixed(cut.start or 0)
    elif not isinstance(entry, Fixed) and len(entry) == 1:
        own = (entry[0].after(cut, size),)
    return None if own is None else (*read[:dim], own, *read[dim + 1 :])


_RULES: dict[Any, Callable[[Node, Read, Node], Read | None]] = {
    aten.expand.default: _expanded,
    aten.repeat.default: _repeated,
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.t.default: _transposed,
    aten.select.int: _selected,
    aten.slice.Tensor: _sliced,
}
for _op in VIEWS:
    _RULES[_op] = _viewed
for _op in (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
):
    _RULES[_op] = _same

MOVES = frozenset(_RULES)
"""Ops that move elements and compute none."""
