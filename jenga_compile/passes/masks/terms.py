"""A mask as a pointwise function of few independent tensors.

Views, copies and concatenations are traced to where their elements come from (`mask_reads`); what is left are pointwise
ops over `Atom`s: boolean tensors, and integer inputs. A concatenation is a choice by where an element stands, and the
places of a piece are an atom too. The reading stops at the first boolean that varies along queries or along keys alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.passes.graph import is_tensor, tensor_of
from jenga_compile.passes.masks.reads import (
    MOVES,
    Extent,
    Fixed,
    Piece,
    Read,
    axes_of,
    broadcast,
    equal,
    read_pieces,
    read_source,
)

aten = torch.ops.aten
prims = torch.ops.prims
DEPTH = 50
"""Ops between a mask and what it is made of; deeper ones are given up."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of True of some length: the places of one piece of a concatenation."""

    length: Extent


@dataclasses.dataclass(frozen=True)
class Atom:
    """A tensor whose elements are taken as free variables: boolean, or an integer input."""

    source: Node | Run
    read: Read
    integer: bool = False

    positive: bool = False
    """Whether an integer counts as True only above 0: not where it is negative, as padding may be."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A function of terms and plain values."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A tensor of which nothing is known."""

    source: Node
    read: Read


Term: TypeAlias = "Tensor | Atom | Unknown | Call"
"""A constant, a variable, what cannot be read, or a function of terms."""


def leaves(term: Term) -> list[Atom | Unknown]:
    """The variables of a term, each once."""
    found: dict[Atom | Unknown, None] = {}
    seen, pending = set(), [term]
    while pending:
        here = pending.pop()
        if isinstance(here, (Atom, Unknown)):
            found[here] = None
        elif isinstance(here, Call) and id(here) not in seen:
            seen.add(id(here))
            pending += [arg for arg in reversed(here.args) if isinstance(arg, (Atom, Unknown, Call))]
    return list(found)


class Reading:
    """Reads one mask."""

    def __init__(self, same: dict[Node, Node]) -> None:
        self._same = same
        self._terms: dict[tuple[Node, Read], Term] = {}
        self._constants: dict[Node, Tensor | None] = {}

    def term(self, node: Node, read: Read, depth: int = 0) -> Term:
        """`node` as a function of its atoms, read for an element of the mask."""
        node = self._same.get(node, node)
        key = (node, _without_copies(node, read))
        if key not in self._terms:
            self._terms[key] = self._term(*key, depth + 1)
        return self._terms[key]

    def _term(self, node: Node, read: Read, depth: int) -> Term:
        constant = self._constant(node)
        if constant is not None:
            return constant
        dtype = tensor_of(node).dtype
        is_integer = not dtype.is_floating_point and not dtype.is_complex and dtype is not torch.bool
        leaf: Term = Unknown(node, read)
        if dtype is torch.bool and _is_plain(read) and _is_one_sided(read):
            leaf = Atom(node, read)
            if not _is_one_of_many(node, read):
                return leaf
        elif is_integer and node.op == "placeholder" and _is_plain(read):
            leaf = Atom(node, read, integer=True)
        inner = self._inner(node, read, depth) if depth < DEPTH else None
        is_better = inner is not None and (isinstance(leaf, Unknown) or not _has_unknown(inner))
        return inner if inner is not None and is_better else leaf

    def _inner(self, node: Node, read: Read, depth: int) -> Term | None:
        """The term one op further up; None where the op is not known."""
        moved = read_source(node, read)
        if moved is not None:
            return self.term(*moved, depth)
        pieces = read_pieces(node, read)
        if pieces is not None:
            return self._choice(pieces, tensor_of(node).dtype, depth)
        if not isinstance(node.target, OpOverload) or node.target.overloadpacket not in _POINTWISE:
            return None
        if node.target is aten.copy.default:
            source = node.args[1]
            assert isinstance(source, Node)
            return self._cast(self.term(source, broadcast(read, source), depth), tensor_of(node).dtype)
        if any(isinstance(value, Node) for value in node.kwargs.values()):
            return None
        if not all(is_tensor(source) for source in node.all_input_nodes):
            return None  # a number known only when the graph runs
        args = tuple(
            self.term(value, broadcast(read, value), depth) if isinstance(value, Node) else value for value in node.args
        )
        return Call(node.target, args, _numeric(node.kwargs))

    def _choice(self, pieces: list[Piece], dtype: torch.dtype, depth: int) -> Term:
        """`pieces` one after the other: each where it stands, one for the rest."""
        terms = [self._piece(piece, dtype, depth) for piece in pieces]
        rest = next((n for n, term in enumerate(terms) if not isinstance(term, Tensor)), len(terms) - 1)
        whole = terms[rest]
        for number, (piece, term) in enumerate(zip(pieces, terms, strict=True)):
            if number != rest and not _is_nothing(piece):
                whole = Call(torch.where, (Atom(Run(piece.length), ((piece.place,),)), term, whole), {})
        return whole

    def _piece(self, piece: Piece, dtype: torch.dtype, depth: int) -> Term:
        if not isinstance(piece.content, Node):
            return torch.full((1,), piece.content, dtype=dtype, device="cpu")
        return self._cast(self.term(piece.content, piece.read, depth), dtype)

    @staticmethod
    def _cast(term: Term, dtype: torch.dtype) -> Term:
        if isinstance(term, Tensor):
            return term.to(dtype)
        return Call(prims.convert_element_type.default, (term, dtype), {})

    def _constant(self, node: Node, depth: int = 0) -> Tensor | None:
        """The one value of all elements, with no dimension where the node has none; None if not known."""
        if node not in self._constants:
            self._constants[node] = self._find_constant(node, depth + 1) if depth < DEPTH else None
        return self._constants[node]

    def _find_constant(self, node: Node, depth: int) -> Tensor | None:
        value = tensor_of(node)
        shape = () if value.dim() == 0 else (1,)
        number = _filled_with(node)
        if number is not None:
            return torch.full(shape, number, dtype=value.dtype, device="cpu")
        if node.op != "call_function":
            return None
        sources = [source for source in node.all_input_nodes if is_tensor(source)]
        if node.target is aten.cat.default or node.target in MOVES:
            values = [self._constant(source, depth) for source in sources]
            first = values[0]
            if first is None or any(other is None or not torch.equal(first, other) for other in values):
                return None
            return first.reshape(shape).to(value.dtype)
        return None


def _filled_with(node: Node) -> Any:
    """The number that a node is filled with, if it is a constant."""
    if node.op == "get_attr":
        held: Any = node.graph.owning_module
        for name in str(node.target).split("."):
            held = getattr(held, name)
        plain = type(held) is Tensor and held.numel() == 1 and held.device.type != "meta"
        return held.item() if plain else None
    if node.op != "call_function" or node.target not in _FILLS:
        return None
    place, number = _FILLS[node.target]
    given = number if place is None else node.args[place]
    return None if isinstance(given, Node) else given


def _without_copies(node: Node, read: Read) -> Read:
    """An input that was stretched outside the graph holds copies along dimensions of stride 0."""
    if node.op != "placeholder":
        return read
    strides = tensor_of(node).stride()
    return tuple(Fixed(0) if entry and equal(stride, 0) else entry for stride, entry in zip(strides, read, strict=True))


def _has_unknown(term: Term) -> bool:
    return any(isinstance(leaf, Unknown) for leaf in leaves(term))


def _is_one_of_many(node: Node, read: Read) -> bool:
    """Whether a tensor is, or is read as, one row of a larger one, which need not be computed."""
    return node.target in (aten.select.int, aten.slice.Tensor) or any(isinstance(entry, Fixed) for entry in read)


def _is_one_sided(read: Read) -> bool:
    axes = axes_of(read)
    return "head" not in axes and not {"query", "key"} <= axes


def _is_plain(read: Read) -> bool:
    """Whether each dimension is one axis at most."""
    return all(not isinstance(entry, tuple) or len(entry) <= 1 for entry in read)


def _is_nothing(piece: Piece) -> bool:
    if isinstance(piece.length, tuple):
        node, dim = piece.length
        return statically_known_true(tensor_of(node).shape[dim] == 0)
    return isinstance(piece.length, int) and piece.length == 0


def _numeric(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What decides values, not where or how they are stored."""
    return {name: value for name, value in kwargs.items() if name in ("dtype", "alpha", "rounding_mode", "min", "max")}


_FILLS: dict[Any, tuple[int | None, float]] = {
    aten.full.default: (1, 0),
    aten.full_like.default: (1, 0),
    aten.new_full.default: (2, 0),
    aten.scalar_tensor.default: (0, 0),
    aten.zeros.default: (None, 0),
    aten.zeros_like.default: (None, 0),
    aten.new_zeros.default: (None, 0),
    aten.ones.default: (None, 1),
    aten.ones_like.default: (None, 1),
    aten.new_ones.default: (None, 1),
}
"""Where the number stands among the arguments, or which it is."""

_POINTWISE = {
    *(aten._to_copy, prims.convert_element_type, aten.copy, aten.where, aten.masked_fill),
    *(aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.bitwise_not),
    *(aten.logical_and, aten.logical_or, aten.logical_xor, aten.logical_not),
    *(aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge),
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.abs, aten.log),
    *(aten.minimum, aten.maximum, aten.clamp, aten.clamp_min, aten.clamp_max, aten.relu),
}
"""In all their overloads."""
