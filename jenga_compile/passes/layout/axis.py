"""Where the token axis of an attention site lies inside another tensor.

An axis is a number in mixed radix: token index = d0 * (n1 * n2 * ...) + d1 * (n2 * ...) + ... with each digit read
off one dimension of the tensor as `(index // stride) % size`. A token axis that is a plain dimension has one digit;
one that a view has split into frames, rows and columns has three, and that split *is* the grid.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Digit:
    """One digit of the token index, read off dimension `dim` as `(index // stride) % size`."""

    dim: int
    size: int
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Axis:
    """The token axis of a site as it lies in some tensor; tokens are counted in the site's own coordinates."""

    digits: tuple[Digit, ...]
    """Most significant first."""

    offset: int
    """Site coordinate of the tensor's token 0; negative where the tensor has tokens before the site's first."""

    start: int
    stop: int
    """Site coordinates [start, stop) that come from this tensor; its other tokens are no concern of the site."""

    @property
    def tokens(self) -> int:
        return math.prod(digit.size for digit in self.digits)

    @property
    def dims(self) -> frozenset[int]:
        return frozenset(digit.dim for digit in self.digits)

    @property
    def factors(self) -> tuple[int, ...]:
        return tuple(digit.size for digit in self.digits)

    @property
    def in_order(self) -> bool:
        """Whether the tensor holds the tokens in their own order: later digits in later places."""
        places = [(digit.dim, -digit.stride) for digit in self.digits if digit.size > 1]
        return places == sorted(places)

    @property
    def whole(self) -> bool:
        """Whether every token of the tensor is a token of the site."""
        return self.start <= self.offset and self.offset + self.tokens <= self.stop

    def map_dims(self, new_dim: Callable[[int], int]) -> Axis:
        digits = tuple(dataclasses.replace(digit, dim=new_dim(digit.dim)) for digit in self.digits)
        return dataclasses.replace(self, digits=digits)

    def leading_dim(self, dim: int, shape: Shape) -> Digit | None:
        """The most significant digit, if it alone fills dimension `dim`: the only place a cut by tokens is plain."""
        lead = self.digits[0]
        alone = sum(digit.dim == dim for digit in self.digits) == 1
        return lead if alone and lead.dim == dim and lead.stride == 1 and lead.size == shape[dim] else None

    def without(self, first: int, last: int) -> list[Axis]:
        """The axis on either side of the values [first, last) of its leading digit, as far as the site reaches."""
        minor = math.prod(digit.size for digit in self.digits[1:])
        before = dataclasses.replace(self, stop=min(self.stop, self.offset + first * minor))
        after = dataclasses.replace(self, start=max(self.start, self.offset + last * minor))
        return [part for part in (before, after) if part.start < part.stop]

    def resized(self, size: int, first: int) -> Axis | None:
        """The same axis in a tensor whose leading digit has `size` values, `first` of them before this one's zero.

        None if no token of the site is left in it.
        """
        lead, *rest = self.digits
        minor = math.prod(digit.size for digit in rest)
        offset = self.offset - first * minor
        start, stop = max(self.start, offset), min(self.stop, offset + size * minor)
        if start >= stop:
            return None
        digits = (dataclasses.replace(lead, size=size), *rest)
        return Axis(digits, offset, start, stop)


def reshaped(axis: Axis, old: Shape, new: Shape) -> Axis | None:
    """The axis after a view from shape `old` to `new`, which keeps every element's row-major index; None if a dimension
    boundary of `new` cuts a digit unevenly.
    """
    digits: list[Digit] = []
    for digit in axis.digits:
        place = math.prod(old[digit.dim + 1 :]) * digit.stride
        pieces = _locate(place, digit.size, new)
        if pieces is None:
            return None
        digits += pieces
    return dataclasses.replace(axis, digits=_joined(digits))


def _joined(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """The same index with as few digits as possible: neighbours that one dimension holds in order are one digit."""
    joined: list[Digit] = []
    for digit in digits:
        if joined and joined[-1].dim == digit.dim and joined[-1].stride == digit.size * digit.stride:
            digit = Digit(digit.dim, joined.pop().size * digit.size, digit.stride)
        joined.append(digit)
    return tuple(joined)


def _locate(place: int, size: int, shape: Shape) -> list[Digit] | None:
    """Digits, most significant first, that cover radix [place, place * size) of a row-major index of `shape`."""
    pieces: list[Digit] = []
    radix = 1
    for dim in reversed(range(len(shape))):
        low, high = max(radix, place), min(radix * shape[dim], place * size)
        if low < high:
            if low % radix or high % low or (radix * shape[dim]) % high:
                return None
            pieces.append(Digit(dim, high // low, low // radix))
        radix *= shape[dim]
    covered = math.prod(piece.size for piece in pieces)
    return pieces[::-1] if covered == size else None


def merge_factors(factorisations: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The coarsest factorisation that refines all the given ones; None if they contradict each other.

    (3, 48) and (24, 6) of 144 tokens give (3, 8, 6); (3, 48) and (16, 9) contradict.
    """
    total = math.prod(factorisations[0])
    bounds = {1, total}
    for factors in factorisations:
        bounds |= {math.prod(factors[place:]) for place in range(len(factors))}
    chain = sorted(bounds)
    if any(high % low for low, high in itertools.pairwise(chain)):
        return None
    return tuple(high // low for low, high in itertools.pairwise(chain))[::-1]
