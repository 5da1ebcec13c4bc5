"""How a tensor's tokens are permuted, as a value: which order, which frames of it, and where the tokens lie.

A label says of a tensor: seen as [outer, tokens, inner], its middle dimension is not in the model's order but holds
`before` tokens in place, then the video's frames [first, last) in the order of the curve, then `after` tokens in place.
This speaks of row-major indices only, so it stays true under any view.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator

from jenga_compile.grid import CurveKind

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Order:
    """A curve over a grid that starts anew at the frames `cuts`, so that frames between two cuts stay together."""

    grid: tuple[int, int, int]
    curve: CurveKind
    cuts: tuple[int, ...] = ()
    told: bool = False
    """Whether the grid is an example of what each call tells."""

    @property
    def frame(self) -> int:
        """Tokens a frame."""
        return self.grid[1] * self.grid[2]


class Cut(Exception):
    """An op cuts the video inside a run of frames that the curve visits as one."""

    def __init__(self, token: int, frame: int) -> None:
        super().__init__(token)
        self.token, self.frame = token, frame
        """The token of the video before which the cut lies; tokens in a frame."""


@dataclasses.dataclass(frozen=True)
class Label:
    """A permuted tensor; see the module's docstring."""

    order: Order
    first: int
    last: int
    before: int
    after: int
    inner: int
    """Elements from one token to the next."""

    @property
    def video(self) -> int:
        return (self.last - self.first) * self.order.frame

    @property
    def tokens(self) -> int:
        return self.before + self.video + self.after

    def at(self, shape: Shape, dim: int, within: int = 1) -> Label:
        """The same tokens along dimension `dim` of `shape`, of which a token takes `within` indices."""
        return dataclasses.replace(self, inner=math.prod(shape[dim + 1 :]) * within)

    def window(self, begin: int, end: int, inner: int) -> Label | None:
        """Tokens [begin, end) of the axis as a tensor of their own; None if no video token is among them.

        Raises:
            Cut: a bound lies inside frames that the curve visits as one.
        """
        start, stop = self.before, self.before + self.video
        low, high = max(begin, start), min(end, stop)
        if low >= high:
            return None
        first, last = (self._frame_at(token - start) for token in (low, high))
        return dataclasses.replace(self, first=first, last=last, before=low - begin, after=end - high, inner=inner)

    def _frame_at(self, token: int) -> int:
        frame, within = divmod(token, self.order.frame)
        if within or self.first + frame not in (self.first, self.last, *self.order.cuts):
            raise Cut(self.first * self.order.frame + token, self.order.frame)
        return self.first + frame

    def whole(self, begin: int, size: int, inner: int) -> list[Label]:
        """What a tensor of `size` tokens may be of which this one is the window from `begin` on, likeliest first."""
        frames = self.order.grid[0]
        found = []
        for first, last in ((0, frames), (self.first, self.last)):
            before = self.before + begin - (self.first - first) * self.order.frame
            after = size - before - (last - first) * self.order.frame
            if before >= 0 and after >= 0:
                found.append(Label(self.order, first, last, before, after, inner))
        return found


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a label's tokens lie in a tensor: dimension `dim` is [outer, tokens, inner]."""

    dim: int
    outer: int
    inner: int

    @property
    def alone(self) -> bool:
        """Whether the dimension is the tokens and nothing else."""
        return self.outer == self.inner == 1


def place_of(label: Label, shape: Shape) -> Place | None:
    """The dimension that holds all of a label's tokens; None if they spread over several."""
    elements = list(itertools.accumulate(reversed(shape), operator.mul, initial=1))[::-1]
    for dim, size in enumerate(shape):
        inner, rest = divmod(label.inner, elements[dim + 1])
        if rest or size % (label.tokens * max(inner, 1)) or not inner:
            continue
        if inner * label.tokens <= size:
            return Place(dim, size // (label.tokens * inner), inner)
    return None
