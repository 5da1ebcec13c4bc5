"""Writes a reorder plan into its graph: indices behind the inputs, a gather on each edge where a label changes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from jenga_compile.passes.graph import shape_of, tensor_of
from jenga_compile.passes.reorder.order import Label, place_of
from jenga_compile.passes.reorder.plan import Gather, ReorderPlan
from jenga_compile.passes.site import CURVE_INDEX, CUTS, GATHER, REORDERED
from jenga_compile.passes.sizes import Expressions, SizeNodes, Valuation, expression_of, under

aten = torch.ops.aten


class Unwritable(Exception):
    """A size that a gather needs is computed inside the graph, behind the place where the index is made."""


def write_gathers(
    graph: Graph, plans: Sequence[ReorderPlan], sites: Sequence[Node], under_all: Sequence[Valuation]
) -> None:
    """Rewrite `graph` as the plans say, which differ in their numbers only.

    Raises:
        Unwritable: half-way, so the graph is to be thrown away.
    """
    writer = _Writer(graph, sites, under_all)
    for (user, source), gathers in plans[0].edges.items():
        others = [plan.edges[user, source] for plan in plans]
        result = source
        for place, gather in enumerate(gathers):
            result = writer.gathered(result, gather, [edge[place].label for edge in others])
        user.replace_input_with(source, result)
    for site in sites:
        site.update_arg(REORDERED, True)
        site.update_arg(CUTS, list(plans[0].labels[site].order.cuts))
    for view in graph.find_nodes(op="call_function", target=aten.view.default):
        # A gather changes strides, which a view may not like and a reshape does not mind.
        view.target = aten.reshape.default


@dataclasses.dataclass(frozen=True)
class _Extent:
    """A label in the graph's own sizes: frames, rows, columns, tokens before and after."""

    t: sympy.Expr
    h: sympy.Expr
    w: sympy.Expr
    before: sympy.Expr
    after: sympy.Expr

    @property
    def tokens(self) -> sympy.Expr:
        return self.before + self.t * self.h * self.w + self.after


class _Writer:
    def __init__(self, graph: Graph, sites: Sequence[Node], under_all: Sequence[Valuation]) -> None:
        self._graph = graph
        self._under_all = under_all
        self._known = Expressions(graph, under_all)
        self._sizes = SizeNodes(graph)
        self._grids = {}
        for site in sites:
            grid = tuple(_expression(size) for size in site.args[4:7])
            self._grids[tuple(under_all[0](size) for size in grid)] = grid
        self._indices: dict[object, Node] = {}
        self._done: dict[tuple[Node, Label, bool], Node] = {}

    def gathered(self, source: Node, gather: Gather, labels: Sequence[Label]) -> Node:
        """`source` through one gather; the same gather is written once."""
        key = (source, gather.label, gather.inverse)
        if key not in self._done:
            with under(self._under_all[0]):
                place = place_of(gather.label, shape_of(source))
            size = None
            if place is not None and place.alone:
                size = expression_of(tensor_of(source).shape[place.dim])
            extent = self._extent(labels, size)
            behind = self._sizes.behind_inputs if source.op == "placeholder" else source.next
            if place is not None and place.alone:
                index = self._index(source, gather, extent, place.dim, behind)
                self._done[key] = self._take(source, index, place.dim, behind)
            else:
                self._done[key] = self._take_merged(source, gather, extent, labels, behind)
        return self._done[key]

    def _extent(self, labels: Sequence[Label], size: sympy.Expr | None) -> _Extent:
        example = labels[0]
        t, h, w = self._grids[example.order.grid]
        whole = all(label.first == 0 and label.last == label.order.grid[0] for label in labels)
        frames = t if whole else self._frames(labels, t)
        before, after = (
            self._known.find(tuple(getattr(label, side) for label in labels)) for side in ("before", "after")
        )
        if size is not None and before is None and after is not None:
            before = size - frames * h * w - after
        if size is not None and after is None and before is not None:
            after = size - frames * h * w - before
        if before is None or after is None:
            raise Unwritable
        return _Extent(frames, h, w, before, after)

    def _frames(self, labels: Sequence[Label], t: sympy.Expr) -> sympy.Expr:
        if len({label.last - label.first for label in labels}) == 1:
            return sympy.Integer(labels[0].last - labels[0].first)
        if all(label.last == label.order.grid[0] for label in labels):
            return t - labels[0].first
        raise Unwritable

    def _node(self, size: sympy.Expr) -> Node | int:
        node = self._sizes.node(size)
        if node is None:
            raise Unwritable
        return node

    def _index(self, source: Node, gather: Gather, extent: _Extent, dim: int, behind: Node) -> Node:
        """The index of a gather: behind the inputs, shared; or behind `source`, if only that tells a size."""
        label = gather.label
        cuts = [cut - label.first for cut in label.order.cuts if label.first < cut < label.last]
        device = tensor_of(source).device
        key = (extent, label.order, gather.inverse, tuple(cuts), device)
        if key not in self._indices:
            after = self._sizes.node(extent.after)
            shared = after is not None
            place = self._sizes.behind_inputs if shared else behind
            if after is None:
                after = self._rest(source, dim, extent, behind)
            t, h, w, before = (self._node(size) for size in (extent.t, extent.h, extent.w, extent.before))
            arguments = (t, h, w, label.order.curve, gather.inverse, before, after, cuts, label.order.told)
            with self._graph.inserting_before(place):
                index = self._graph.call_function(CURVE_INDEX, arguments, {"device": device})
            with tensor_of(source).fake_mode:  # type: ignore[attr-defined]  # a graph's values are fake
                index.meta["val"] = CURVE_INDEX(*map(_value, arguments), device=device)
            if not shared:
                return index
            self._indices[key] = index
        return self._indices[key]

    def _rest(self, source: Node, dim: int, extent: _Extent, behind: Node) -> Node:
        """Tokens behind the video in dimension `dim` of `source`, a number that hangs on data."""
        known = extent.before + extent.t * extent.h * extent.w
        if not known.is_Integer:
            raise Unwritable
        size = self._call(behind, aten.sym_size.int, source, dim)
        return self._call(behind, operator.sub, size, int(known))

    def _take(self, source: Node, index: Node, dim: int, before: Node) -> Node:
        return self._call(before, GATHER, source, [None] * dim + [index])

    def _take_merged(
        self, source: Node, gather: Gather, extent: _Extent, labels: Sequence[Label], behind: Node
    ) -> Node:
        """Through [any, tokens, elements of a token] where the tokens share a dimension or have several."""
        inner = self._known.find(tuple(label.inner for label in labels))
        if inner is None:
            raise Unwritable
        shape = [self._node(expression_of(size)) for size in tensor_of(source).shape]
        sizes = [-1, self._node(extent.tokens), self._node(inner)]
        opened = self._call(behind, aten.reshape.default, source, sizes)
        taken = self._take(opened, self._index(opened, gather, extent, 1, behind), 1, behind)
        return self._call(behind, aten.reshape.default, taken, shape)

    def _call(self, before: Node, target: Any, *args: Any) -> Node:
        with self._graph.inserting_before(before):
            node = self._graph.call_function(target, args)
        node.meta["val"] = target(*torch.fx.node.map_arg(args, lambda arg: arg.meta["val"]))
        return node


def _expression(size: Any) -> sympy.Expr:
    return expression_of(_value(size))


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, Node) else argument
