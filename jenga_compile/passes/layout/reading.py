"""What the facts about a site's token axis add up to: which tokens are video, and on which grid.

Convolutions win over views. What one slides over, or whole frames of it, is video; where the frames next to those were
embedded by another convolution over as many rows and columns, as an image that replaces the first frame is, so are
they. Without a convolution, the widest range that a view has split is the video, and one view must show three factors:
`[B, frames, tokens a frame]` proves no grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch.fx import Node

from jenga_compile.passes.layout.axis import merge_factors

Factors = tuple[int, ...]
"""Sizes of the dimensions over which a tensor spreads the tokens, most significant first."""

Grid = tuple[int, int, int]


class Unproven(Exception):
    """The graph does not show a layout; the text says what it shows instead."""


@dataclasses.dataclass(frozen=True)
class Factored:
    """Tokens [start, stop) of the site were seen as a tensor of these sizes, most significant first."""

    start: int
    stop: int
    factors: Factors

    grid: Grid | None
    """The same as (t, h, w), where a convolution slides over its rows and columns."""

    in_order: bool
    """False where the walk ends in, or meets a convolution over, a tensor that holds the tokens in another order."""

    part: tuple[Node, int, int] | None = None
    """(tensor, first, last) where only tokens [first, last) of it were reached."""

    @property
    def shows(self) -> bool:
        """Whether it says anything of a grid."""
        return len(self.factors) > 1 or self.grid is not None


@dataclasses.dataclass(frozen=True)
class Volume:
    """Tokens [start, stop) are whole frames of one convolution's output, or of several with frames of one size."""

    start: int
    stop: int
    frame: tuple[int, int]
    """Rows and columns."""

    extent: tuple[int, int]
    """Where all tokens of the convolution's output would lie, those included that the site does not take from it."""

    in_order: bool = True

    @property
    def grid(self) -> Grid:
        rows, columns = self.frame
        return (self.stop - self.start) // (rows * columns), rows, columns

    def lines_up(self, frame: tuple[int, int], start: int) -> bool:
        """Whether frames of this size that begin at `start` are among these, as far as both reach."""
        return frame == self.frame and (start - self.start) % (frame[0] * frame[1]) == 0


def assembled(facts: Iterable[Factored]) -> frozenset[Factored]:
    """The facts about whole ranges of tokens, among them those that several walks have reached part by part.

    Of a convolution that was reached in part only, the parts.
    """
    found: set[Factored] = set()
    parts: dict[tuple[Factored, Node], list[tuple[int, int]]] = {}
    for fact in facts:
        if fact.part is None:
            found.add(fact)
        else:
            node, first, last = fact.part
            parts.setdefault((dataclasses.replace(fact, part=None), node), []).append((first, last))
    for (fact, node), reached in parts.items():
        runs = _joined(reached)
        if runs == [(fact.start, fact.stop)]:
            found.add(fact)
        elif fact.grid is not None:
            found |= {dataclasses.replace(fact, part=(node, *run)) for run in runs}
    return frozenset(found)


def _joined(reached: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same tokens in as few runs as possible, ascending."""
    runs: list[tuple[int, int]] = []
    for first, last in sorted(reached):
        if runs and first <= runs[-1][1]:
            first, last = runs[-1][0], max(last, runs.pop()[1])
        runs.append((first, last))
    return runs


def read(facts: Iterable[Factored], tokens: int) -> tuple[int, Grid]:
    """The first token of the video, and its grid, for a site of so many tokens.

    Raises:
        Unproven: the facts show none, or contradict each other.
    """
    shown = [fact for fact in facts if fact.shows]
    volume = _volume(shown)
    ranges = [fact for fact in shown if fact.part is None]
    if volume is None and not ranges:
        raise Unproven(_nothing_whole(shown, tokens))
    start, stop = (volume.start, volume.stop) if volume is not None else _widest(ranges)
    for fact in ranges:
        if fact.start < start < fact.stop < stop or start < fact.start < stop < fact.stop:
            raise Unproven(_apart(start, stop, fact.start, fact.stop))
    same = [fact for fact in ranges if (fact.start, fact.stop) == (start, stop)]
    if not all(fact.in_order for fact in same):
        raise Unproven("no grid: the tokens are in another order where the graph shows them, or are parts of others")
    return start, _viewed(same) if volume is None else volume.grid


def _volume(shown: list[Factored]) -> Volume | None:
    """The video as convolutions show it; None if there are none, or no whole frames of any."""
    pieces = [piece for fact in shown for piece in _frames(fact)]
    if not pieces:
        return None
    found = _grown(max(pieces, key=lambda piece: (piece.stop - piece.start, -piece.start)), pieces)
    for fact in shown:
        if len(fact.factors) == 3 and fact.part is None and fact.start <= found.start and found.stop <= fact.stop:
            rows, columns = fact.factors[1:]
            if found.lines_up((rows, columns), fact.start):
                found = dataclasses.replace(found, start=fact.start, stop=fact.stop)
    for piece in pieces:
        if found.stop <= piece.start or piece.stop <= found.start:
            continue
        if not piece.in_order:
            raise Unproven("no grid: the tokens are in another order than the convolution's that they come from")
        if found.frame != piece.frame:
            one, other = sorted((found.grid, piece.grid))
            raise Unproven(f"ambiguous grid: convolutions slide over {one} and over {other}")
        if not found.lines_up(piece.frame, piece.start):
            raise Unproven(_apart(found.start, found.stop, piece.start, piece.stop))
    return found


def _frames(fact: Factored) -> list[Volume]:
    """The whole frames of a convolution's output that a fact shows."""
    if fact.grid is None:
        return []
    _, rows, columns = fact.grid
    first, last = (fact.start, fact.stop) if fact.part is None else fact.part[1:]
    if (first - fact.start) % (rows * columns) or (last - first) % (rows * columns):
        return []
    return [Volume(first, last, (rows, columns), (fact.start, fact.stop), fact.in_order)]


def _grown(found: Volume, pieces: list[Volume]) -> Volume:
    """With the frames next to it that stand in for some of its own, or some of whose own it stands in for."""
    for piece in sorted(pieces, key=lambda piece: abs(piece.start - found.start)):
        abuts = piece.stop == found.start or piece.start == found.stop
        start, stop = min(found.start, piece.start), max(found.stop, piece.stop)
        within = any(first <= start and stop <= last for first, last in (found.extent, piece.extent))
        if abuts and within and found.lines_up(piece.frame, piece.start):
            extent = min(found.extent[0], piece.extent[0]), max(found.extent[1], piece.extent[1])
            found = Volume(start, stop, found.frame, extent, found.in_order and piece.in_order)
    return found


def _apart(start: int, stop: int, begin: int, end: int) -> str:
    return f"ambiguous: a grid at tokens {start} to {stop}, another at {begin} to {end}"


def _widest(ranges: list[Factored]) -> tuple[int, int]:
    best = max(ranges, key=lambda fact: (fact.stop - fact.start, -fact.start))
    return best.start, best.stop


def _nothing_whole(shown: list[Factored], tokens: int) -> str:
    if not shown:
        return f"no grid: nothing in the graph splits these {tokens} tokens into frames, rows and columns"
    (_, first, last), grid = shown[0].part or (None, shown[0].start, shown[0].stop), shown[0].grid
    return f"no grid: tokens {first} to {last} are no whole frames of the convolution over {grid} they come from"


def _viewed(found: list[Factored]) -> Grid:
    """The grid that all views of one range of tokens agree on."""
    shown = sorted({fact.factors for fact in found}, key=lambda factors: (-len(factors), factors))
    grids = [factors for factors in shown if len(factors) == 3]
    if len(grids) > 1:
        raise Unproven(f"ambiguous grid: the graph splits the tokens as {grids[0]} and as {grids[1]}")
    if not grids:
        sizes = " x ".join(map(str, shown[0]))
        raise Unproven(f"no grid: {sizes} tokens, of which nothing says frames, rows or columns")
    finer = [factors for factors in shown if len(factors) > 3]
    if finer and merge_factors([*grids, *finer]) is None:
        raise Unproven(f"ambiguous grid: the graph splits the tokens as {grids[0]} and as {finer[0]}")
    t, h, w = grids[0]
    return t, h, w
