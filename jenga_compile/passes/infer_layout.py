"""Which tokens of a site are video, on which grid, and which are condition: read off the graph, never guessed.

Walking back from the queries, every op that joins pieces along the token axis cuts it, and every tensor in which the
axis spans several dimensions factors it. The widest range that factors into two or three sizes is the video; what is
left on either side is condition. The keys must tell the same story, or the site is no self-attention.

Sound because each step of the walk proves that token i stays token i (`rules.py`); incomplete by design.
"""

from __future__ import annotations

import dataclasses
import math

from torch.fx import Node

from jenga_compile.config import Options
from jenga_compile.passes.axis import Axis, Digit, merge_factors
from jenga_compile.passes.follow import follow
from jenga_compile.passes.graph import shape_of

Factors = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Factored:
    """Tokens [start, stop) of the site were seen as a tensor of these sizes, most significant first."""

    start: int
    stop: int
    factors: Factors


@dataclasses.dataclass(frozen=True)
class Layout:
    """A site's token axis: video tokens [start, stop) in raster order of a (t, h, w) grid, condition around them."""

    grid: tuple[int, int, int]
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
            return self._given(self._options.grid, query)
        layouts = [_read(self._walk(node), tokens) for node in (query, key)]
        if layouts[0] != layouts[1]:
            raise Unproven(f"queries on grid {layouts[0].grid}, keys on grid {layouts[1].grid}")
        return layouts[0]

    def _given(self, grid: tuple[int, int, int], query: Node) -> Layout:
        video, tokens = math.prod(grid), shape_of(query)[2]
        if video > tokens:
            raise Unproven(f"the given grid {grid} has {video} tokens, the site {tokens}")
        ranges = {(fact.start, fact.stop) for fact in self._walk(query) if fact.stop - fact.start == video}
        starts = {"before": {tokens - video}, "after": {0}, None: {start for start, _ in ranges} or {0}}
        start = starts[self._options.text]
        if len(start) > 1:
            raise Unproven(f"the given grid {grid} fits at tokens {sorted(start)}; say text='before' or 'after'")
        return Layout(grid, start.pop(), tokens)

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
            self._known[place] = _seen_at(place[1]).union(*(self._known[parent] for parent in above))
            pending.pop()
        return self._known[root]


def _overlaps(axis: Axis, tokens: int) -> bool:
    return axis.start < min(axis.stop, tokens)


def _seen_at(axis: Axis) -> frozenset[Factored]:
    factors = tuple(size for size in axis.factors if size > 1)
    if not axis.whole or len(factors) == 0:
        return frozenset()
    return frozenset({Factored(axis.offset, axis.offset + axis.tokens, factors)})


def _read(facts: frozenset[Factored], tokens: int) -> Layout:
    ranges: dict[tuple[int, int], list[Factors]] = {}
    for fact in facts:
        ranges.setdefault((fact.start, fact.stop), []).append(fact.factors)
    factored = {place: found for place, found in ranges.items() if any(len(factors) > 1 for factors in found)}
    if not factored:
        raise Unproven(f"no grid: nothing in the graph splits these {tokens} tokens into frames, rows and columns")
    start, stop = max(factored, key=lambda place: (place[1] - place[0], -place[0]))
    factors = _finest(factored[start, stop])
    if len(factors) > 3:
        raise Unproven(f"no grid: {stop - start} tokens split into {len(factors)} sizes {factors}")
    return Layout(_as_grid(factors), start, tokens)


def _finest(found: list[Factors]) -> Factors:
    merged = merge_factors(found)
    if merged is not None:
        return merged
    most = max(map(len, found))
    finest = sorted({factors for factors in found if len(factors) == most})
    if len(finest) > 1:
        raise Unproven(f"ambiguous grid: the graph splits the tokens as {finest[0]} and as {finest[1]}")
    return finest[0]


def _as_grid(factors: Factors) -> tuple[int, int, int]:
    t, h, w = (1,) * (3 - len(factors)) + factors
    return t, h, w
