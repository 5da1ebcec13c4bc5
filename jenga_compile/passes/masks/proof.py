"""mask[b, h, q, k]  =  key[b, k] & query[b, q], by a truth table over the mask's atoms.

The mask's own ops run on all values that its atoms (`mask_terms`) can take, in their own dtype, so an overflow to -inf
counts as what it is. Booleans take both values. Integer inputs are taken as 0 or 1; where they are compared, 3 must
give what 1 gives, which tells a mask from a position. Where 3 gives what 1 gives, as for token numbers, -1 must give
what 0 gives or what 1 gives. Atoms are taken as independent, so what holds for the table holds
for the tensors.

A mask that is added to the logits closes a key with -inf or with one number at least as low as -10,000; what attends
gets 0. Adding one number to a whole row changes nothing, so a row is judged by its largest value.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.fx import Node

from jenga_compile.passes.graph import tensor_of
from jenga_compile.passes.masks.reads import Cut, MaskAxis, at_least_one, axes_of, read_mask
from jenga_compile.passes.masks.terms import Atom, Call, Reading, Run, Term, Unknown, leaves

CLOSED = -9984.0
"""The largest number that closes a key: -10,000 as bfloat16 rounds it."""

ATOMS = 8
"""Atoms of one mask; a table has up to 4 to that power rows."""

INTEGERS = (0, 1, 3, -1)
"""Values that stand for all that an integer input may hold."""

UNKNOWN = "additive mask of unknown values: pass a boolean mask, True for tokens to attend to"


class Unproven(Exception):
    """The mask is not proven to be a key mask; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """A boolean function of atoms: `table[i, j, ...]` for the first atom at i, the second at j."""

    atoms: tuple[Atom, ...]
    table: Tensor

    @property
    def constant(self) -> bool | None:
        """Its one value, if it has but one."""
        return bool(self.table.flatten()[0]) if bool(self.table.all() | ~self.table.any()) else None

    def given(self, value: bool) -> Factor:
        """The function of the other atoms for one value of the first."""
        return Factor(self.atoms[1:], self.table[int(value)])


@dataclasses.dataclass(frozen=True, eq=False)
class Proof:
    """The mask is `key & query`. `finite`: where a sample has no key, all attend, as additive masks have it."""

    key: Factor
    query: Factor
    finite: bool


def prove(mask: Node, same: dict[Node, Node]) -> Proof:
    """The factors of a mask that attention reads as [B, H, Q, K].

    Raises:
        Unproven: it is no such product, or it cannot be told.
    """
    term = Reading(same).term(mask, read_mask(mask))
    found = leaves(term)
    if any(isinstance(leaf, Unknown) for leaf in found):
        raise Unproven(_why_unknown(mask, found))
    atoms = tuple(leaf for leaf in found if isinstance(leaf, Atom))
    axes = [axes_of(atom.read) for atom in atoms]
    if len(atoms) > ATOMS:
        raise Unproven(f"mask {_shape(mask)} is made of {len(atoms)} tensors, more than {ATOMS} are not followed")
    table = _Table(atoms)
    values = table.of_mask(term)
    atoms = tuple(dataclasses.replace(atom, positive=table.is_positive(term, atom)) for atom in atoms)
    queries = [number for number, own in enumerate(axes) if "query" in own]
    attends, finite = (values, False) if values.dtype is torch.bool else _attending(values, queries)
    return _factors(mask, atoms, attends, queries, finite)


def _why_unknown(mask: Node, found: list[Atom | Unknown]) -> str:
    axes: set[MaskAxis] = set().union(*(axes_of(leaf.read) for leaf in found))
    if "head" in axes:
        return f"mask {_shape(mask)} differs between heads"
    if "query" in axes:
        return f"mask {_shape(mask)} differs between queries"
    if tensor_of(mask).dtype is torch.bool:
        targets = [leaf.source.target for leaf in found if isinstance(leaf, Unknown)]
        return f"mask {_shape(mask)} comes from {targets[0]}, which is not followed"
    return UNKNOWN


def _shape(mask: Node) -> str:
    return str(list(tensor_of(mask).shape))


class _Table:
    """Values of terms for every assignment to the atoms: one dimension an atom, after one of size 1."""

    def __init__(self, atoms: tuple[Atom, ...]) -> None:
        self._place = {atom: number + 1 for number, atom in enumerate(atoms)}
        self._known: dict[int, Tensor] = {}

    def of_mask(self, term: Term) -> Tensor:
        """For atoms at 0 and 1; [2, 2, ...]."""
        return self._all(term)[tuple(slice(2) for _ in self._place)]

    def is_positive(self, term: Term, atom: Atom) -> bool:
        """Whether an integer at -1 counts as 0, not as 1.

        Raises:
            Unproven: it counts as neither, though 3 counts as 1.
        """
        if not atom.integer:
            return False
        dim = self._place[atom] - 1
        others = tuple(slice(None if place == dim else 2) for place in range(len(self._place)))
        zero, one, three, negative = self._all(term)[others].unbind(dim)
        if torch.equal(negative, one) or torch.equal(negative, zero):
            return not torch.equal(negative, one)
        if torch.equal(three, one):
            raise Unproven("mask compares integers that may be negative: pass a boolean mask")
        # It calculates with 0 and 1; what adds less still than 0 does is closed as well.
        return not negative.dtype.is_complex and bool((negative <= zero).all())

    def _all(self, term: Term) -> Tensor:
        """For every value of every atom."""
        sizes = [len(INTEGERS) if atom.integer else 2 for atom in self._place]
        return self._of(term).expand(1, *sizes)[0]

    def _of(self, term: Term) -> Tensor:
        if isinstance(term, Tensor):
            return term.reshape((1,) * (len(self._place) + 1)) if term.dim() else term
        if isinstance(term, Atom):
            return self._variable(term)
        if id(term) not in self._known:
            assert isinstance(term, Call)
            args = [self._of(arg) if isinstance(arg, (Tensor, Atom, Call)) else arg for arg in term.args]
            result = term.function(*args, **term.kwargs)
            if result.dtype is torch.bool:
                self._require_masks(result)
            self._known[id(term)] = result
        return self._known[id(term)]

    def _variable(self, atom: Atom) -> Tensor:
        values = torch.tensor([False, True], device="cpu")
        if atom.integer:
            assert isinstance(atom.source, Node)
            values = torch.tensor(INTEGERS, device="cpu").to(tensor_of(atom.source).dtype)
        shape = [1] * (len(self._place) + 1)
        shape[self._place[atom]] = len(values)
        return values.view(shape)

    def _require_masks(self, compared: Tensor) -> None:
        for atom, dim in self._place.items():
            if atom.integer and compared.dim() and compared.shape[dim] == len(INTEGERS):
                one, three = compared.select(dim, 1), compared.select(dim, 2)
                if not torch.equal(one, three):
                    raise Unproven("mask compares integers that may be positions: pass a boolean mask")


def _attending(values: Tensor, queries: list[int]) -> tuple[Tensor, bool]:
    """Which assignments attend under additive `values`, and whether the others are closed by a finite number."""
    values = values.double()
    keys = [dim for dim in range(values.dim()) if dim not in queries]
    largest = values.amax(keys, keepdim=True) if keys else values
    if values.isnan().any() or values.max() != 0:
        raise Unproven("additive mask whose largest value is not 0: pass a boolean mask")
    shifted = torch.where(largest.isneginf(), largest, values - largest)
    attends = shifted == 0
    closing = torch.unique(shifted[~attends & ~largest.isneginf()])
    if (closing > CLOSED).any():
        raise Unproven(f"additive mask with values above {CLOSED:g}: it weighs keys and closes none")
    if len(closing) > 1:
        raise Unproven("additive mask that closes keys by several numbers: pass a boolean mask")
    return attends, bool(closing.isfinite().any())


def _factors(mask: Node, atoms: tuple[Atom, ...], attends: Tensor, queries: list[int], finite: bool) -> Proof:
    """`attends` as a product of a function of the key atoms and one of the query atoms."""
    keys = [dim for dim in range(attends.dim()) if dim not in queries]
    key = attends.amax(queries) if queries else attends
    query = attends.amax(keys) if keys else attends
    product = _spread(key, keys, attends.dim()) & _spread(query, queries, attends.dim())
    if not torch.equal(product, attends):
        raise Unproven(f"mask {_shape(mask)} differs between queries")
    for dim, atom in enumerate(atoms):
        if atom.integer and torch.equal(attends.select(dim, 0), attends.select(dim, 1)):
            raise Unproven("mask compares integers that may be positions: pass a boolean mask")
    key_factor = Factor(tuple(atoms[dim] for dim in keys), key)
    return Proof(key_factor, Factor(tuple(atoms[dim] for dim in queries), query), finite and not _has_key(key_factor))


def _spread(table: Tensor, dims: list[int], rank: int) -> Tensor:
    """`table` with its dimensions at `dims` of `rank`."""
    return table.reshape([table.shape[dims.index(dim)] if dim in dims else 1 for dim in range(rank)])


def _has_key(key: Factor) -> bool:
    """Whether some key is open in every sample: all places of one piece of a concatenation."""
    return any(_is_key_run(atom) and bool(key.table.select(dim, 1).all()) for dim, atom in enumerate(key.atoms))


def _is_key_run(atom: Atom) -> bool:
    """Whether the atom is at least one place among the keys, none of which is cut off again."""
    if not isinstance(atom.source, Run) or axes_of(atom.read) != {"key"}:
        return False
    steps = [step for entry in atom.read if isinstance(entry, tuple) for digit in entry for step in digit.steps]
    return at_least_one(atom.source.length) and not any(isinstance(step, Cut) for step in steps)
