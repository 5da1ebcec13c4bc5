"""Which tokens of a site are video, on which grid, and which are condition: read off the graph, never guessed.

Walking back from the queries, every op that joins pieces along the token axis cuts it, and every tensor in which the
axis spans several dimensions factors it. `reading.py` says what such facts add up to; what is not video is condition.
The keys must tell the same story, or the site is no self-attention.

Where the walk ends, or meets a convolution, the tokens must lie in their own order: windows and other rasters are no
grid. Tables of positions count like any tensor, since they are where the model itself puts its tokens.

Sound because each step of the walk proves that token i stays token i (`rules.py`); incomplete by design.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import torch
from torch.fx import Node

from jenga_compile.config import Options
from jenga_compile.grid import TextSide
from jenga_compile.passes.graph import shape_of
from jenga_compile.passes.layout.axis import Axis, Digit
from jenga_compile.passes.layout.follow import Place, follow
from jenga_compile.passes.layout.reading import Factored, Grid, Unproven, assembled, read
from jenga_compile.token_context import current_context

aten = torch.ops.aten
_MOST_AXES = 32
"""Axes under which a node is followed at most. A model that shifts its tokens layer by layer would show a node under
ever more of them; its sites are left."""


_CUT_SHORT = Factored(0, 0, (), None, True)
"""Stands for what a walk that was cut short has not seen."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A site's token axis: video tokens [start, stop) in raster order of a (t, h, w) grid, condition around them."""

    grid: Grid
    start: int
    tokens: int

    from_context: bool = False
    """Whether the grid was not shown, but told by the running call; another call may tell another."""

    def __str__(self) -> str:
        return f"{self.grid} from token {self.start}"

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.grid)

    @property
    def text(self) -> int:
        return self.tokens - math.prod(self.grid)


class Misfit(Unproven):
    """The given grid cannot be that of the site."""


class CrossAttention(Unproven):
    """Queries and keys are shown to be different tokens, as many of them as there may be."""


class LayoutProof:
    """Layouts of all sites of one graph; what one walk has learned serves the next."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._known: dict[Place, frozenset[Factored]] = {}
        self._parents: dict[Place, list[Place]] = {}
        self._axes: Counter[Node] = Counter()

    def layout(self, query: Node, key: Node) -> Layout:
        """Layout of the site with queries [B, H, L, D] and keys [B, H, L, D]; `Unproven` says why there is none."""
        if self._options.grid is not None:
            return self._given(self._options.grid, self._options.text, query, key)
        context = current_context()
        try:
            return self._shown(query, key)
        except Unproven:
            if context is None:
                raise
        layout = self._given(context.grid.shape, context.text, query, key)
        return dataclasses.replace(layout, from_context=True)

    def _shown(self, query: Node, key: Node) -> Layout:
        """What the graph proves."""
        tokens = shape_of(query)[2]
        facts = [self._walk(node) for node in (query, key)]
        proven = [_proven(fact, tokens) for fact in facts]
        seen = [any(part.shows or part == _CUT_SHORT for part in fact) for fact in facts]
        blind = [layout is None and not shows for layout, shows in zip(proven, seen, strict=True)]
        if any(proven) and any(blind):
            side = "queries" if proven[1] is None else "keys"
            raise CrossAttention(f"cross-attention: only the {side} lie on the grid {proven[0] or proven[1]}")
        return _agreed(*(_read(fact, tokens) for fact in facts))

    def _given(self, grid: Grid, text: TextSide | None, query: Node, key: Node) -> Layout:
        """The given grid, unless the graph proves another one; its place as given, or from the graph or the sizes."""
        video, tokens = math.prod(grid), shape_of(query)[2]
        if video > tokens:
            raise Misfit(f"the given grid {grid} has {video} tokens, the site {tokens}")
        shown = [self._walk(node) for node in (query, key)]
        proven = [layout for layout in (_proven(facts, tokens) for facts in shown) if layout is not None]
        starts = {"before": {tokens - video}, "after": {0}, None: {0, tokens - video}}[text]
        if proven:
            layout = _agreed(proven[0], proven[-1])
            if len(proven) < len(shown):
                raise CrossAttention(f"only one of queries and keys lies on grid {layout.grid}")
            if layout.grid != grid or (text is not None and layout.start not in starts):
                given = f"{grid}" + (f" with text {text}" if text else "")
                raise Misfit(f"the given grid {given} contradicts {layout}, which the graph shows")
            return layout
        if text is None:
            starts = {fact.start for facts in shown for fact in facts if fact.stop - fact.start == video} or starts
        if len(starts) > 1:
            raise Misfit(f"the given grid {grid} fits at tokens {sorted(starts)}: say text='before' or 'after'")
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
            above = self._above(place, tokens)
            if above is None:
                self._known[place] = frozenset({_CUT_SHORT})
                continue
            unknown = [parent for parent in above if parent not in self._known]
            if unknown:
                pending += unknown
                continue
            self._known[place] = _seen_at(*place, last=not above).union(*(self._known[parent] for parent in above))
            pending.pop()
        return assembled(self._known[root])

    def _above(self, place: Place, tokens: int) -> list[Place] | None:
        """The places one op up from `place`; None if its node has been visited under `_MOST_AXES` axes before."""
        if place not in self._parents:
            self._axes[place[0]] += 1
            if self._axes[place[0]] > _MOST_AXES:
                return None
            self._parents[place] = [parent for parent in follow(*place) if _overlaps(parent[1], tokens)]
        return self._parents[place]


def _agreed(queries: Layout, keys: Layout) -> Layout:
    if queries != keys:
        raise Unproven(f"queries lie as {queries}, keys as {keys}")
    return queries


def _overlaps(axis: Axis, tokens: int) -> bool:
    return axis.start < min(axis.stop, tokens)


def _seen_at(node: Node, axis: Axis, *, last: bool) -> frozenset[Factored]:
    digits = [digit for digit in axis.digits if digit.size > 1]
    if not digits:
        return frozenset()
    convolution = node.target is aten.convolution.default
    grid = _slid_over(digits, node) if convolution else None
    in_order = axis.in_order or not (convolution or last)
    factors = tuple(digit.size for digit in digits)
    begin, end = axis.offset, axis.offset + axis.tokens
    part = None if axis.whole else (node, max(begin, axis.start), min(end, axis.stop))
    if part is not None and len(digits) == 1 and grid is None:
        return frozenset()  # shows nothing, and every layer has many
    return frozenset({Factored(begin, end, factors, grid, in_order, part)})


def _slid_over(digits: list[Digit], node: Node) -> Grid | None:
    """The grid of tokens that are the positions of a convolution's output.

    Three dimensions are frames, rows and columns. Two are rows and columns if the kernel reaches along both.
    """
    weight = node.args[1]
    assert isinstance(weight, Node)
    shape, kernel = shape_of(node), shape_of(weight)[2:]
    rank = len(shape)
    if rank < 4 or (rank == 4 and 1 in kernel):
        return None
    places = [dim for dim in (rank - 2, rank - 1) if shape[dim] > 1]
    before, within = digits[: len(digits) - len(places)], digits[len(digits) - len(places) :]
    plain = [(digit.dim, digit.size) for digit in within] == [(dim, shape[dim]) for dim in places]
    if not plain or len(before) > 1 or any(digit.dim >= rank - 2 for digit in before):
        return None
    return before[0].size if before else 1, shape[-2], shape[-1]


def _read(facts: frozenset[Factored], tokens: int) -> Layout:
    if _CUT_SHORT in facts:
        raise Unproven(f"no grid: the graph shows a tensor of these {tokens} tokens at more than {_MOST_AXES} offsets")
    start, grid = read(facts, tokens)
    return Layout(grid, start, tokens)


def _proven(facts: frozenset[Factored], tokens: int) -> Layout | None:
    try:
        return _read(facts, tokens)
    except Unproven:
        return None
