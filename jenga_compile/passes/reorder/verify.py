"""Forward through a reordered graph: is every tensor in the order that every op takes it to be in?

Knows nothing of how the graph came to be reordered, nor shares a rule with what reordered it: it starts from the
gathers that stand in the graph, says for each op in what order its output is, and stops at the first op that mixes
tokens in different orders, or gets permuted tokens without being known to treat tokens alike (`forward.py`).
"""

from __future__ import annotations

import operator

from torch.fx import Graph, Node

from jenga_compile.passes.graph import argument, integer, is_tensor, shape_of
from jenga_compile.passes.reorder import forward
from jenga_compile.passes.reorder.runs import Fault, Runs, fixed, is_permuted, met, on_curve, tokens_of
from jenga_compile.passes.reorder.seen import Moved, Seen
from jenga_compile.passes.site import CARVED, CURVE_INDEX, GATHER, CarvedCall


def verify_reorder(graph: Graph) -> str | None:
    """None if every op of the graph gets its tokens in order; else the first fault."""
    seen = Seen()
    for node in graph.nodes:
        try:
            _visit(node, seen)
        except Fault as fault:
            return f"{node.name}: {fault}"
    return None


def _visit(node: Node, seen: Seen) -> None:
    if node.op == "output":
        _refuse(node, seen, "leave the graph")
    if node.op != "call_function" or (node.target is not operator.getitem and not is_tensor(node)):
        return
    curve = _curve_index(node)
    if curve is not None:
        seen.enter(node, _gathered(node, seen, *curve))
    elif node.target is CARVED:
        seen.enter(node, _carved(node, seen))
    elif node.target in forward.UNIFORM:
        seen.enter_uniform(node)
    elif node.target not in forward.SHAPE_ONLY:
        forward.step(node, seen)


def _refuse(node: Node, seen: Seen, what: str) -> None:
    for source in node.all_input_nodes:
        if seen.is_permuted(source):
            raise Fault(f"permuted tokens of {source.name} {what}")


def _curve_index(node: Node) -> tuple[int, Node] | None:
    """(dimension, index) of a gather by a curve."""
    if node.target is not GATHER:
        return None
    indices = argument(node, 1, "indices")
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    return given[0] if len(given) == 1 and given[0][1].target is CURVE_INDEX else None


def _gathered(node: Node, seen: Seen, dim: int, index: Node) -> Moved | None:
    """In order before and on the curve after, or the other way round."""
    source = node.args[0]
    assert isinstance(source, Node)
    t, h, w, curve, inverse, before, after, cuts = index.args[:8]
    grid = (integer(t), integer(h), integer(w))
    runs = on_curve(grid, curve, cuts, integer(before), integer(after))  # type: ignore[arg-type]
    if tokens_of(runs) != shape_of(source)[dim]:
        raise Fault(f"an order of {tokens_of(runs)} tokens permutes a dimension of {shape_of(source)[dim]}")
    found = seen.whole(source, dim)
    if not inverse:
        if is_permuted(found):
            raise Fault(f"permutes {source.name}, whose tokens are permuted already")
        return Moved(dim, runs)
    if met([found, runs]) != runs:
        raise Fault(f"undoes an order that {source.name} is not in")
    return None


def _carved(node: Node, seen: Seen) -> Moved | None:
    """In order, every operand on the site's own curve; else every operand as the model has it."""
    call = CarvedCall.of(node)
    operands = [(source, 2) for source in call.tensors]
    if call.mask is not None:
        operands.append((call.mask, 1))
    runs: Runs = fixed(call.tokens)
    if call.reordered:
        runs = on_curve(call.grid, call.curve, call.cuts, call.start, call.after)
    for source, dim in operands:
        if seen.is_moved_elsewhere(source, dim):
            raise Fault(f"{source.name} is permuted along another dimension than its tokens")
        if met([seen.whole(source, dim), runs]) != runs:
            raise Fault(f"{source.name} is not in the order of the site")
    return Moved(2, runs) if call.reordered else None
