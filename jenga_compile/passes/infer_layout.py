"""Which tokens of a site are video, on which grid, and which are condition: read off the graph, never guessed.

Walking back from the queries, every op that joins pieces along the token axis cuts it, and every tensor in which the
axis spans several dimensions factors it. The widest factored range is the video; what is left on either side is
condition. The keys must tell the same story, or the site is no self-attention.

Which factors are frames, rows and columns? The rows and columns that a convolution slides over are just that, and win
over any view. Otherwise there must be three factors; two are one frame only where a dimension of size 1 before them
says so. `[B, frames, tokens a frame]` proves no grid.

Sound because each step of the walk proves that token i stays token i (`rules.py`); incomplete by design.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.fx import Node

from jenga_compile.config import Options
from jenga_compile.passes.axis import Axis, Digit, Shape, merge_factors
from jenga_compile.passes.follow import follow
from jenga_compile.passes.graph import shape_of

aten = torch.ops.aten
Factors = tuple[int, ...]
Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Factored:
    """Tokens [start, stop) of the site were seen as a tensor of these sizes, most significant first."""

    start: int
    stop: int
    factors: Factors

    grid: Grid | None
    """The same as (t, h, w), where a convolution slides over its rows and columns."""

    one_frame: bool
    """Whether a dimension of size 1 stands where the frames would."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A site's token axis: video tokens [start, stop) in raster order of a (t, h, w) grid, condition around them."""

    grid: Grid
    start: int
    tokens: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.grid)

    @property
    def text(self) -> int:
        return self.tokens - math.prod(self.grid)


class Unproven(Exception):
    """The graph does not show a layout; the text says what it shows instead."""


class LayoutInference:
    """Layouts of all sites of one graph; what one walk has learned serves the next."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._known: dict[tuple[Node, Axis], frozenset[Factored]] = {}

    def layout(self, query: Node, key: Node) -> Layout:
        """Layout of the site with queries [B, H, L, D] and keys [B, H, L, D]; `Unproven` says why there is none."""
        tokens = shape_of(query)[2]
        if self._options.grid is not None:
            return self._given(self._options.grid, query, key)
        layouts = [_read(self._walk(node), tokens) for node in (query, key)]
        if layouts[0] != layouts[1]:
            raise Unproven(f"queries on grid {layouts[0].grid}, keys on grid {layouts[1].grid}")
        return layouts[0]

    def _given(self, grid: Grid, query: Node, key: Node) -> Layout:
        """The given grid, unless the graph proves another one; its place from the options, the graph or the sizes."""
        video, tokens = math.prod(grid), shape_of(query)[2]
        if video > tokens:
            raise Unproven(f"the given grid {grid} has {video} tokens, the site {tokens}")
        shown = self._walk(query) | self._walk(key)
        proven = _proven(shown, tokens)
        if proven is not None and proven.tokens - proven.text == video and proven.grid != grid:
            raise Unproven(f"the given grid {grid} contradicts {proven.grid}, which the graph shows")
        if self._options.text is not None:
            start = tokens - video if self._options.text == "before" else 0
            return Layout(grid, start, tokens)
        starts = {fact.start for fact in shown if fact.stop - fact.start == video} or {0, tokens - video}
        if len(starts) > 1:
            raise Unproven(f"the given grid {grid} fits at tokens {sorted(starts)}: say text='before' or 'after'")
        return Layout(grid, starts.pop(), tokens)

    def _walk(self, node: Node) -> frozenset[Factored]:
        """All that the graph above `node` [B, H, L, D] shows of its token axis."""
        tokens = shape_of(node)[2]
        root = (node, Axis((Digit(2, tokens),), 0, 0, tokens))
        pending = [root]
        while pending:
            place = pending[-1]
            if place in self._known:
                pending.pop()
                continue
            above = [parent for parent in follow(*place).parents if _overlaps(parent[1], tokens)]
            unknown = [parent for parent in above if parent not in self._known]
            if unknown:
                pending += unknown
                continue
            self._known[place] = _seen_at(*place).union(*(self._known[parent] for parent in above))
            pending.pop()
        return self._known[root]


def _overlaps(axis: Axis, tokens: int) -> bool:
    return axis.start < min(axis.stop, tokens)


def _seen_at(node: Node, axis: Axis) -> frozenset[Factored]:
    digits = [digit for digit in axis.digits if digit.size > 1]
    if not axis.whole or not digits:
        return frozenset()
    shape, first = shape_of(node), digits[0].dim
    grid = _slid_over(digits, shape) if node.target is aten.convolution.default else None
    one_frame = len(digits) == 2 and first > 1 and shape[first - 1] == 1
    factors = tuple(digit.size for digit in digits)
    return frozenset({Factored(axis.offset, axis.offset + axis.tokens, factors, grid, one_frame)})


def _slid_over(digits: list[Digit], shape: Shape) -> Grid | None:
    """The grid of tokens that are the positions of a convolution's output `shape` in two or three dimensions."""
    rank = len(shape)
    places = [dim for dim in (rank - 2, rank - 1) if shape[dim] > 1]
    within = [digit for digit in digits if digit.dim in places]
    before = digits[: len(digits) - len(within)]
    plain = [digit.dim for digit in within] == places and digits[len(before) :] == within
    whole = all(digit.size == shape[digit.dim] for digit in within)
    if rank < 4 or not plain or not whole or len(before) > 1:
        return None
    return before[0].size if before else 1, shape[-2], shape[-1]


def _read(facts: frozenset[Factored], tokens: int) -> Layout:
    ranges: dict[tuple[int, int], list[Factored]] = {}
    for fact in facts:
        ranges.setdefault((fact.start, fact.stop), []).append(fact)
    factored = {place: found for place, found in ranges.items() if any(len(fact.factors) > 1 for fact in found)}
    if not factored:
        raise Unproven(f"no grid: nothing in the graph splits these {tokens} tokens into frames, rows and columns")
    start, stop = max(factored, key=lambda place: (place[1] - place[0], -place[0]))
    return Layout(_grid(factored[start, stop]), start, tokens)


def _proven(facts: frozenset[Factored], tokens: int) -> Layout | None:
    try:
        return _read(facts, tokens)
    except Unproven:
        return None


def _grid(found: list[Factored]) -> Grid:
    """The grid that all views of one range of tokens agree on."""
    convolved = sorted({fact.grid for fact in found if fact.grid is not None})
    if convolved:
        if len(convolved) > 1:
            raise Unproven(f"ambiguous grid: convolutions slide over {convolved[0]} and over {convolved[1]}")
        return convolved[0]
    factors = _finest([fact.factors for fact in found])
    if len(factors) > 3:
        raise Unproven(f"no grid: {math.prod(factors)} tokens split into {len(factors)} sizes {factors}")
    if len(factors) == 2 and not any(fact.one_frame and fact.factors == factors for fact in found):
        raise Unproven(f"no grid: {factors[0]} x {factors[1]} tokens, of which nothing says frames, rows or columns")
    t, h, w = (1,) * (3 - len(factors)) + factors
    return t, h, w


def _finest(found: list[Factors]) -> Factors:
    merged = merge_factors(found)
    if merged is not None:
        return merged
    most = max(map(len, found))
    finest = sorted({factors for factors in found if len(factors) == most})
    if len(finest) > 1:
        raise Unproven(f"ambiguous grid: the graph splits the tokens as {finest[0]} and as {finest[1]}")
    return finest[0]
