"""split, split_with_sizes, unbind  ->  slices and selects.   [EXACT]

Before   parts = split_with_sizes(x, [a, b], dim);  first = parts[0];  second = parts[1]
After    first = slice(x, dim, 0, a);  second = slice(x, dim, a, a + b)

Legal because both are views of the same elements. The passes that follow then know one way to cut a tensor.
Fires on   every item taken of such a tuple.
Leaves     a tuple that is used as a whole.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from jenga_compile.passes.graph import argument, graphs_of
from jenga_compile.passes.ledger import Ledger

aten = torch.ops.aten
_CUTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)


def slice_splits(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        graph = graph_module.graph
        for target in _CUTS:
            for cut in graph.find_nodes(op="call_function", target=target):
                _open(graph, cut)
        graph_module.recompile()


def _open(graph: Graph, cut: Node) -> None:
    for item in list(cut.users):
        if item.target is operator.getitem:
            with graph.inserting_before(item):
                part = _part(graph, cut, item.args[1])
            part.meta = {**item.meta}
            item.replace_all_uses_with(part)
            graph.erase_node(item)
    if not cut.users:
        graph.erase_node(cut)


def _part(graph: Graph, cut: Node, place: Any) -> Node:
    source = cut.args[0]
    if cut.target is aten.unbind.int:
        return graph.call_function(aten.select.int, (source, argument(cut, 1, "dim", 0), place))
    sizes = argument(cut, 1, "split_size")
    if isinstance(sizes, (list, tuple)):
        begin, size = _sum(graph, sizes[:place]), sizes[place]
    else:
        begin, size = _computed(graph, operator.mul, sizes, place), sizes
    end = _computed(graph, operator.add, begin, size)
    return graph.call_function(aten.slice.Tensor, (source, argument(cut, 2, "dim", 0), begin, end))


def _sum(graph: Graph, sizes: Any) -> Any:
    total: Any = 0
    for size in sizes:
        total = _computed(graph, operator.add, total, size)
    return total


def _computed(graph: Graph, how: Any, left: Any, right: Any) -> Any:
    """A number now, or a node where one of the two is a symbolic size."""
    if not isinstance(left, Node) and not isinstance(right, Node):
        return how(left, right)
    node = graph.call_function(how, (left, right))
    node.meta["val"] = how(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in (left, right)))
    return node
