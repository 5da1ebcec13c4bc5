"""Nodes that compute the same, found by value numbering, so that a mask built anew in every layer is one mask."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

_ARITHMETIC = {torch.sym_sum, torch.sym_max, torch.sym_min, *filter(callable, vars(operator).values())}
"""Functions of sizes."""


def representatives(graph: Graph) -> dict[Node, Node]:
    """The first node of the graph that has the same value, for every node."""
    first: dict[Any, Node] = {}
    found: dict[Node, Node] = {}
    for node in graph.nodes:
        name = _name(node, found)
        found[node] = node if name is None else first.setdefault(name, node)
    return found


def _name(node: Node, found: dict[Node, Node]) -> Any:
    """A description that two nodes share only if they have the same value; None if there is none."""
    if node.op == "get_attr":
        return ("get_attr", node.target)
    if node.op != "call_function" or not _is_function(node.target):
        return None
    name = (node.target, _frozen(node.args, found), _frozen(node.kwargs, found))
    try:
        hash(name)
    except TypeError:  # a symbolic size without a node
        return None
    return name


def _is_function(target: Any) -> bool:
    """Whether equal arguments give equal results, and nothing else happens."""
    if isinstance(target, torch._ops.OpOverload):
        changes = target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
        return target.namespace in ("aten", "prims") and not changes
    return target in _ARITHMETIC


def _frozen(value: Any, found: dict[Node, Node]) -> Any:
    """A hashable copy; 1, 1.0 and True stay apart."""
    if isinstance(value, Node):
        return found[value]
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item, found) for item in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(item, found)) for key, item in value.items())
    return (type(value), value)
