"""Which tensors of a graph are to be permuted, so that carved attention gets its tokens in order with few gathers.

Each carved site wants its queries, keys, values and mask permuted and gives a permuted output. Labels spread from it:
up, through every op that commutes with the permutation, to what feeds it; down, to what it feeds. Where a label meets
an op that does not commute, a gather stands on that edge. Every label is a local identity, so an op that no rule knows
costs a gather and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

from torch.fx import Graph, Node

from jenga_compile.passes.graph import is_tensor, shape_of, uses_of
from jenga_compile.passes.links import is_view
from jenga_compile.passes.reorder.commute import (
    Known,
    Needs,
    candidates,
    consumer_of,
    indifferent,
    needs,
)
from jenga_compile.passes.reorder.order import Cut, Label


@dataclasses.dataclass(frozen=True)
class Gather:
    """One gather: `source` permuted as `label` says, or that undone."""

    source: Node
    label: Label
    inverse: bool

    @property
    def elements(self) -> int:
        return math.prod(shape_of(self.source))


@dataclasses.dataclass
class ReorderPlan:
    """Labels of a graph's tensors, and the edges on which they change."""

    labels: Known
    cuts: set[tuple[int, int]]
    """(token, tokens a frame) where some op cuts the video: the order should start anew there."""

    edges: dict[tuple[Node, Node], list[Gather]]
    """(consumer, input) -> what the input goes through on its way."""

    forgotten: list[Node]
    """Tensors that could be permuted, and are not because gathers elsewhere move less."""

    @property
    def gathers(self) -> set[Gather]:
        return {gather for edge in self.edges.values() for gather in edge}

    @property
    def elements(self) -> int:
        """Elements that all gathers move."""
        return sum(gather.elements for gather in self.gathers)

    def shape(self) -> object:
        """The plan without its numbers: plans of equal shape do the same to the graph."""
        edges = {
            (user.name, source.name): [gather.inverse for gather in edge] for (user, source), edge in self.edges.items()
        }
        return edges, {node.name for node in self.labels}


def plan_reorder(graph: Graph, sites: dict[Node, Label], like: ReorderPlan | None = None) -> ReorderPlan:
    """The plan for carved sites with these labels of their queries [B, H, L, D].

    Where gathers stand is decided by the sizes in force, or as it was in the plan `like` for other sizes.
    """
    return _Planner(graph, sites).plan(None if like is None else like.forgotten)


class _Planner:
    def __init__(self, graph: Graph, sites: dict[Node, Label]) -> None:
        self._graph = graph
        self._sites = sites
        self._labels: Known = {}
        self._wants: dict[Node, Needs] = {}
        self._cuts: set[tuple[int, int]] = set()
        self._forgotten: list[Node] = []

    def plan(self, forgotten: list[Node] | None) -> ReorderPlan:
        known = -1
        while known != len(self._labels):
            known = len(self._labels)
            for node in self._graph.nodes:
                self._visit(node)
        if forgotten is None:
            self._let_gathers_sink()
            self._let_gathers_rise()
        for node in forgotten or ():
            if node in self._labels:
                self._forget(node)
        return ReorderPlan(self._labels, self._cuts, dict(self._edges()), self._forgotten)

    def _visit(self, node: Node) -> None:
        if node in self._sites and node not in self._labels:
            self._settle_site(node, self._sites[node])
        elif node not in self._labels and is_tensor(node):
            self._push(node)

    def _settle_site(self, site: Node, label: Label) -> None:
        self._labels[site] = label.at(shape_of(site), 2)
        wanted = {tensor: label.at(shape_of(tensor), 2) for tensor in site.args[:3] if isinstance(tensor, Node)}
        mask = site.args[3]
        if isinstance(mask, Node):
            wanted[mask] = label.at(shape_of(mask), 1)
        self._wants[site] = wanted
        for tensor, asked in wanted.items():
            self._pull(tensor, asked)

    def _pull(self, node: Node, label: Label) -> None:
        """Label `node`, and what feeds it as far up as ops commute."""
        pending = [(node, label)]
        while pending:
            node, label = pending.pop()
            asked = self._ask(node, label)
            if asked is not None:
                pending += asked.items()

    def _ask(self, node: Node, label: Label) -> Needs | None:
        """Give `node` the label if it can have it; what it then needs."""
        if node in self._labels:
            return None
        try:
            asked = needs(node, label, self._labels)
        except Cut as cut:
            self._cuts.add((cut.token, cut.frame))
            return None
        consumer = consumer_of(node)
        if asked is None or self._wants.get(consumer, asked) != asked:
            return None
        self._labels[node] = label
        self._wants[consumer] = asked
        return asked

    def _push(self, node: Node) -> None:
        """Label `node` if a permuted input can go through it."""
        for source in dict.fromkeys(uses_of(consumer_of(node))):
            if source not in self._labels or indifferent(node, source, self._labels):
                continue
            for label in self._candidates(node, source):
                asked = self._ask(node, label)
                if asked is not None:
                    for needed, need in asked.items():
                        self._pull(needed, need)
                    return

    def _candidates(self, node: Node, source: Node) -> list[Label]:
        """Labels under which `node` would take `source` as it is."""
        label = self._labels[source]
        found: list[Label] = []
        try:
            for candidate in candidates(node, source, label):
                asked = needs(node, candidate, self._labels)
                if asked is not None and asked.get(source) == label:
                    found.append(candidate)
        except Cut as cut:
            self._cuts.add((cut.token, cut.frame))
        return found

    def _let_gathers_sink(self) -> None:
        """Where an op's inputs are gathered and gathering its output moves no more, gather that instead."""
        for node in self._graph.nodes:
            asked = self._movable(node)
            if asked and not any(source in self._labels for source in asked):
                own = [source for source in asked if not self._gathered_elsewhere(source, node)]
                if _elements(own) > _elements([node]) or (is_view(node) and own):
                    self._forget(node)

    def _let_gathers_rise(self) -> None:
        """Where nobody wants an op's output permuted and undoing that at its inputs moves no more, do it there."""
        for node in reversed(list(self._graph.nodes)):
            asked = self._movable(node)
            if asked is not None and self._is_only_undone(node):
                own = [
                    source for source in asked if source in self._labels and not self._undone_elsewhere(source, node)
                ]
                saved = _elements([node]) - _elements(own)
                if saved > 0 or (saved == 0 and is_view(node)):
                    self._forget(node)

    def _is_only_undone(self, node: Node) -> bool:
        """Whether nobody wants the node permuted, and somebody wants it not to be."""
        users = list(node.users)
        wanted = any(node in self._wants.get(user, ()) for user in users)
        return not wanted and not all(self._is_indifferent(user, node) for user in users)

    def _movable(self, node: Node) -> Needs | None:
        """What a labelled op asks of its inputs; None for a site, and for an item of a tuple."""
        if node in self._sites or node not in self._labels or consumer_of(node) is not node:
            return None
        return self._wants[node]

    def _forget(self, node: Node) -> None:
        del self._labels[node], self._wants[node]
        self._forgotten.append(node)

    def _gathered_elsewhere(self, source: Node, consumer: Node) -> bool:
        return any(source in self._wants.get(user, ()) for user in source.users if user is not consumer)

    def _undone_elsewhere(self, source: Node, consumer: Node) -> bool:
        others = (user for user in source.users if user is not consumer)
        return any(
            source not in self._wants.get(user, ()) and not indifferent(user, source, self._labels) for user in others
        )

    def _edges(self) -> Iterator[tuple[tuple[Node, Node], list[Gather]]]:
        for node in self._graph.nodes:
            wanted = self._wants.get(node, {})
            for source in dict.fromkeys(uses_of(node)):
                have, want = self._labels.get(source), wanted.get(source)
                if have == want or (want is None and have is not None and self._is_indifferent(node, source)):
                    continue
                gathers = [Gather(source, have, inverse=True)] if have is not None else []
                gathers += [Gather(source, want, inverse=False)] if want is not None else []
                yield (node, source), gathers

    def _is_indifferent(self, node: Node, source: Node) -> bool:
        return indifferent(node, source, self._labels)


def _elements(nodes: Iterable[Node]) -> int:
    return sum(math.prod(shape_of(node)) for node in nodes)
