"""Reorder in, carve, undo, at every site  ->  reorder once on entry, carve in order, undo once on exit.   [ROUNDING]

Before   q, k, v: [B, H, L, D] in the model's order
         out = jenga::carved_attention(q, k, v, mask, ..., reordered=False)          four gathers inside, in each layer
After    i: [V] = jenga::curve_index(t, h, w, ...);  x': [B, V, C] = index(x, i)     once, x the patch embedding
         ... the same ops on x' ...
         out = jenga::carved_attention(q', k', v', mask', ..., reordered=True)
         y: [B, V, E] = index(y', inverse of i)                                      once, behind the last layer

Legal because a permutation of the tokens commutes with every op that treats tokens alike (`reorder/commute.py`); where
one does not, a gather stands. Products of matrices may round differently, since rows stand in other places.
Fires on   graphs in which the gathers move fewer elements than the sites would, and `verify_reorder` agrees.
Leaves     everything else: such sites permute by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import Graph, GraphModule, Node

from jenga_compile.passes.graph import graphs_of, is_tensor, shape_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.reorder.order import Label, Order
from jenga_compile.passes.reorder.plan import ReorderPlan, plan_reorder
from jenga_compile.passes.reorder.verify import verify_reorder
from jenga_compile.passes.reorder.write import Unwritable, write_gathers
from jenga_compile.passes.site import CARVED, TOLD, CarvedCall
from jenga_compile.passes.sizes import Valuation, serves_several_sizes, under, valuations

aten = torch.ops.aten
_TRIES = 4
"""How often the order may be refined by the cuts that a plan has met."""

_MOST_CUTS = 4
"""Frames at which an order may start anew: each takes from what a curve is for."""


def hoist_reorder(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        sites = graph_module.graph.find_nodes(op="call_function", target=CARVED)
        within = [site for site in sites if not _is_told_anew(site)]
        why = _hoist(graph_module, ledger) if within and ledger.options.hoist else _OFF
        for site in sites:
            apart = why if site in within else _TOLD_ANEW
            ledger.settle(site.meta["jenga_site"], reordered=apart is None, apart=apart or "")


_OFF = "hoist is off"
_TOLD_ANEW = "each call tells the grid, and the graph serves several sizes"


def _is_told_anew(site: Node) -> bool:
    """Whether another call may bring another grid than the one that its order would be planned for."""
    return bool(site.args[TOLD]) and serves_several_sizes(site.graph)


def _hoist(gm: GraphModule, ledger: Ledger) -> str | None:
    """Hoist in a copy of the graph, which takes the graph's place if everything about it is in order; or why not."""
    if _depends_on_strides(gm.graph):
        return "an op reads storage, or draws random numbers in its order"
    copy = Graph()
    copy.output(copy.graph_copy(gm.graph, {}))
    copy.output_node().meta = dict(gm.graph.output_node().meta)
    sites = [site for site in copy.find_nodes(op="call_function", target=CARVED) if not _is_told_anew(site)]
    under_all = valuations(gm.graph)
    found = _agreed_plans(copy, sites, under_all)
    if found is None:
        return "other sizes would take other gathers"
    if not _pays(found[0], sites, under_all[0]):
        return "gathers outside would move no less"
    try:
        write_gathers(copy, found, sites, under_all)
    except Unwritable:
        return "a size that a gather needs is computed inside the graph"
    for valuation in under_all:
        valuation.shapes.clear()
        with under(valuation):
            fault = verify_reorder(copy)
            if fault is not None:
                return fault
    gm.graph = copy
    gm.recompile()
    gathers = found[0].gathers
    outward = sum(gather.inverse for gather in gathers)
    ledger.add_gathers(len(gathers) - outward, outward)
    return None


def _depends_on_strides(graph: Graph) -> bool:
    """Whether an op reads storage and not elements, which a gather upstream would change under it.

    Random numbers are drawn in the order of storage, which `rand_like` takes over from its input.
    """
    strided = (aten.as_strided.default, aten.as_strided_scatter.default)
    return any(node.target in strided or (_is_random(node) and any(map(is_tensor, node.args))) for node in graph.nodes)


def _is_random(node: Node) -> bool:
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    return "scaled_dot_product" not in str(op)  # attention, which could drop weights


def _agreed_plans(graph: Graph, sites: list[Node], under_all: Sequence[Valuation]) -> list[ReorderPlan] | None:
    """The cheapest plan that is the same under all valuations, in the numbers of each."""
    best: list[ReorderPlan] | None = None
    least = math.inf
    cuts: tuple[int, ...] = ()
    for _ in range(_TRIES):
        first = _plan(graph, sites, cuts, under_all[0], None)
        plans = [first, *(_plan(graph, sites, cuts, valuation, first) for valuation in under_all[1:])]
        if any(plan.shape() != plans[0].shape() for plan in plans[1:]):
            break
        with under(under_all[0]):
            cost = plans[0].elements
        if cost < least:
            best, least = plans, cost
        frames = [_frames_cut(plan) for plan in plans]
        refined = tuple(sorted({*cuts, *frames[0]}))
        if refined == cuts or len(refined) > _MOST_CUTS or any(other != frames[0] for other in frames[1:]):
            break
        cuts = refined
    return best


def _plan(
    graph: Graph, sites: list[Node], cuts: tuple[int, ...], valuation: Valuation, like: ReorderPlan | None
) -> ReorderPlan:
    with under(valuation):
        return plan_reorder(graph, {site: _label(site, cuts) for site in sites}, like)


def _label(site: Node, cuts: tuple[int, ...]) -> Label:
    call = CarvedCall.of(site)
    order = Order(call.grid, call.curve, tuple(cut for cut in cuts if cut < call.grid[0]), call.told)
    return Label(order, 0, call.grid[0], call.start, call.after, 1)


def _frames_cut(plan: ReorderPlan) -> set[int]:
    """The frames before which the ops of the graph cut the video; a cut within a frame cannot be helped."""
    return {token // frame for token, frame in plan.cuts if token % frame == 0}


def _pays(plan: ReorderPlan, sites: list[Node], example: Valuation) -> bool:
    """Whether the gathers move less than the sites would by themselves: queries, keys, values and the output."""
    with under(example):
        return plan.elements < sum(4 * math.prod(shape_of(site)) for site in sites)
