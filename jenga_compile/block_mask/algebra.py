"""Block masks as values: what all of them answer, and how `|` and `&` compose them.

A mask says which key blocks each query block of the video may see. It is a set of pairs (query block, key block), with
R query blocks, all video, and N key blocks, R of video and then those of the condition (text, and whatever else shares
the token axis). `|` and `&` are union and intersection of such sets, and obey their laws: order, repeats and nesting of
terms make no other value, `a | (a & b)` is `a`. A mask knows no grid; it is asked for one.

A mask with `Importance` in it is known only at run time, when q and k are. `split` takes it apart for the operator.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import TypeGuard, TypeVar

import numpy as np
import torch

from jenga_compile.block_mask.reach import Bools
from jenga_compile.curve import AnyCurve
from jenga_compile.errors import HeadsNested, OutOfRange
from jenga_compile.grid import BLOCK, TokenGrid
from jenga_compile.scalars import plain_float


class Mask(abc.ABC):
    """Base of all masks. Frozen, hashable; `|` and `&` compose."""

    def __or__(self, other: Mask) -> Mask:
        return any_of(self, other) if isinstance(other, Mask) else NotImplemented

    def __and__(self, other: Mask) -> Mask:
        return all_of(self, other) if isinstance(other, Mask) else NotImplemented

    def dense(self, grid: TokenGrid, kind: AnyCurve = "gilbert", block: int = BLOCK) -> torch.Tensor:
        """The mask over video blocks.

        Args:
            grid: the latent grid.
            kind: the curve that the blocks are cut from.
            block: tokens in a block.

        Returns:
            bool on the CPU, [R, R] with R = grid.blocks(block); [H, R, R] where heads differ (`PerHead`).
            The caller's own.

        Raises:
            MaskNotStatic: there is an `Importance` in the mask.
            MaskUnfit: a `Fixed` mask in it is for another number of blocks.
            OptionOutOfRange: `kind` is not a curve, or `block` is below 1.
        """
        return self.dense_with_text(grid, kind, 0, block)

    def dense_with_text(
        self, grid: TokenGrid, kind: AnyCurve = "gilbert", text: int = 0, block: int = BLOCK
    ) -> torch.Tensor:
        """The mask over video blocks and then condition blocks, which start at a block of their own.

        Args:
            grid, kind, block: as for `dense`.
            text: condition tokens.

        Returns:
            bool on the CPU, [R, N] or [H, R, N] with N = R + ceil(text / block). The caller's own.

        Raises:
            OutOfRange: `text` is negative.
            MaskNotStatic, MaskUnfit, OptionOutOfRange: as for `dense`.
        """
        require(text >= 0, "text", text, "[0, inf)", "Pass the number of condition tokens.")
        # The grid refuses a block size of zero.
        condition = -(-text // block) if grid.blocks(block) else 0
        heads = [self.head(h).array(grid, kind, condition, block) for h in range(self.heads)]
        return torch.from_numpy(np.stack(heads) if isinstance(self, PerHead) else heads[0].copy())

    @property
    def heads(self) -> int:
        """After how many heads the mask repeats: 1 unless it is a `PerHead`."""
        return 1

    def head(self, index: int) -> Mask:
        """The mask of one head."""
        return self

    @property
    def sees_condition(self) -> bool:
        """Whether every row of every head sees all of the condition."""
        return False

    @property
    def importances(self) -> frozenset[Mask]:
        """The `Importance` values in the mask."""
        return frozenset()

    def replace_importance(self, by: Mask) -> Mask:
        """The mask with `by` in place of every `Importance`."""
        return self

    @abc.abstractmethod
    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        """One head's mask: bool [R, R + condition], with `condition` in blocks. Not to be written into."""


@dataclasses.dataclass(frozen=True)
class Everything(Mask):
    """Every key block, video and condition."""

    @property
    def sees_condition(self) -> bool:
        return True

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        return np.ones((grid.blocks(block), grid.blocks(block) + condition), np.bool_)


@dataclasses.dataclass(frozen=True)
class Nothing(Mask):
    """No key block. A query block without keys has no attention of its own; the operator then lets it see itself."""

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        return np.zeros((grid.blocks(block), grid.blocks(block) + condition), np.bool_)


@dataclasses.dataclass(frozen=True, repr=False)
class _Composed(Mask):
    """Two or more terms in a canonical order; made by `|` and `&` only."""

    terms: tuple[Mask, ...]

    @property
    def importances(self) -> frozenset[Mask]:
        return frozenset().union(*(term.importances for term in self.terms))


class Union(_Composed):
    """What any of the terms sees. Made by `|`."""

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.terms))

    @property
    def sees_condition(self) -> bool:
        return any(term.sees_condition for term in self.terms)

    def replace_importance(self, by: Mask) -> Mask:
        return any_of(*(term.replace_importance(by) for term in self.terms))

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        return functools.reduce(np.logical_or, (term.array(grid, kind, condition, block) for term in self.terms))


class Intersection(_Composed):
    """What all of the terms see. Made by `&`."""

    def __repr__(self) -> str:
        return " & ".join(f"({term})" if isinstance(term, Union) else repr(term) for term in self.terms)

    @property
    def sees_condition(self) -> bool:
        return all(term.sees_condition for term in self.terms)

    def replace_importance(self, by: Mask) -> Mask:
        return all_of(*(term.replace_importance(by) for term in self.terms))

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        return functools.reduce(np.logical_and, (term.array(grid, kind, condition, block) for term in self.terms))


@dataclasses.dataclass(frozen=True)
class PerHead(Mask):
    """Masks given to the heads in turn: head h has `masks[h % len(masks)]`.

    Composed with another mask, it composes each of its own. The heads repeat after the least common multiple.
    The compiler leaves attention with fewer heads than that dense, as where a model merges them with the batch.

    Raises:
        HeadsNested: one of the masks is a `PerHead` itself.
        OutOfRange: there is no mask, or one is not a mask.
    """

    masks: tuple[Mask, ...]

    def __post_init__(self) -> None:
        expected = "a tuple of at least one mask"
        holds = isinstance(self.masks, tuple) and bool(self.masks) and all(isinstance(m, Mask) for m in self.masks)
        require(holds, "PerHead.masks", self.masks, expected, "Pass e.g. (Spatial(), Temporal()).")
        for mask in self.masks:
            if isinstance(mask, PerHead):
                raise HeadsNested(mask=mask)

    @property
    def heads(self) -> int:
        return len(self.masks)

    def head(self, index: int) -> Mask:
        return self.masks[index % len(self.masks)]

    @property
    def sees_condition(self) -> bool:
        return all(mask.sees_condition for mask in self.masks)

    @property
    def importances(self) -> frozenset[Mask]:
        return frozenset().union(*(mask.importances for mask in self.masks))

    def replace_importance(self, by: Mask) -> Mask:
        return PerHead(tuple(mask.replace_importance(by) for mask in self.masks))

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        raise AssertionError("ask one head")


def any_of(*masks: Mask) -> Mask:
    """The union of masks: `a | b | ...`, and `Nothing()` of none."""
    if any(isinstance(mask, PerHead) for mask in masks):
        period = math.lcm(*(mask.heads for mask in masks))
        return PerHead(tuple(any_of(*(mask.head(h) for mask in masks)) for h in range(period)))
    terms = set(_terms(masks, Union)) - {Nothing()}
    if Everything() in terms:
        return Everything()
    return _compose(Union, _absorb(terms, Intersection), Nothing())


def all_of(*masks: Mask) -> Mask:
    """The intersection of masks: `a & b & ...`, and `Everything()` of none."""
    if any(isinstance(mask, PerHead) for mask in masks):
        period = math.lcm(*(mask.heads for mask in masks))
        return PerHead(tuple(all_of(*(mask.head(h) for mask in masks)) for h in range(period)))
    terms = set(_terms(masks, Intersection)) - {Everything()}
    if Nothing() in terms:
        return Nothing()
    return _compose(Intersection, _absorb(terms, Union), Everything())


_C = TypeVar("_C", bound=_Composed)


def _terms(masks: Iterable[Mask], kind: type[_C]) -> list[Mask]:
    """The masks, those composed in the same way taken apart."""
    return [term for mask in masks for term in (mask.terms if isinstance(mask, kind) else (mask,))]


def _absorb(terms: set[Mask], dual: type[_C]) -> list[Mask]:
    """The terms that say more than another does: in a union `a & b` beside `a` adds nothing, and so in the dual."""
    parts = {term: frozenset(_terms([term], dual)) for term in terms}
    return [term for term in terms if not any(parts[other] < parts[term] for other in terms)]


def _compose(kind: type[_C], terms: list[Mask], empty: Mask) -> Mask:
    if len(terms) < 2:
        return terms[0] if terms else empty
    return kind(tuple(sorted(terms, key=repr)))


def require(holds: bool, name: str, value: object, expected: str, way_out: str) -> None:
    """Raise OutOfRange unless it holds."""
    if not holds:
        raise OutOfRange(name=name, value=repr(value), expected=expected, way_out=way_out)


def as_floats(mask: Mask, *names: str) -> None:
    """Make all numbers floats, so that equal masks have equal texts."""
    for name in names:
        object.__setattr__(mask, name, float(getattr(mask, name)))


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, and not a boolean."""
    number = plain_float(value)
    return number is not None and math.isfinite(number)
