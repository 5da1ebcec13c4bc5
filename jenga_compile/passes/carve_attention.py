"""softmax(Q K^T) V over all keys  ->  the same over selected key blocks.   [LOSSY]

Before   out: [B, H, L, D] = jenga::attention(q, k, v, mask, scale, 7)
After    m:   [B, L]       = reshape(mask)
         out: [B, H, L, D] = jenga::carved_attention(q, k, v, m, t, h, w, start, curve, [], blocks, knobs, scale, ...)

Fires on   self-attention over a proven or given grid of at least `min_blocks` blocks, with no mask but key padding.
Leaves     every other site, with its reason; under a mask that tells more heads apart than the site has, too.
Loses      the keys outside the selected blocks (paper, section 3.1). With keep = 1 nothing but rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from jenga_compile.block_mask import Importance
from jenga_compile.config import Carving
from jenga_compile.cost import expected_keep
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels import knobs, static_masks
from jenga_compile.models import recipe_for
from jenga_compile.passes.graph import graphs_of, module_classes, tensor_of
from jenga_compile.passes.infer_layout import short_site
from jenga_compile.passes.layout.proof import Layout
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION, CARVED, number_of
from jenga_compile.passes.sizes import SizeNodes, Valuation, hint_of, valuations

aten = torch.ops.aten


def carve_attention(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        graph = graph_module.graph
        sites = [
            site for site in graph.find_nodes(op="call_function", target=ATTENTION) if number_of(site) in ledger.layouts
        ]
        if sites:
            example, sizes = valuations(graph)[0], SizeNodes(graph)
            for site in sites:
                ledger.settle(number_of(site), **_carve(site, sizes, example, ledger))
            graph_module.recompile()


def _carve(site: Node, sizes: SizeNodes, example: Valuation, ledger: Ledger) -> dict[str, Any]:
    number, mask = number_of(site), site.args[3]
    layout, carving = ledger.layouts[number], ledger.options.carving
    if sizes.at_most(layout.video, carving.longest_short):
        return short_site(example(layout.video), "video tokens", carving)
    if isinstance(mask, Node) and not is_key_mask(mask):
        return {}
    parts = carving.split()
    kinds, heads = parts.heads, hint_of(tensor_of(site).shape[1])
    if heads < kinds:
        told = "heads that are merged with the batch cannot be told apart"
        return {"reason": f"the block mask has {kinds} kinds of heads, the call {heads}: {told}"}
    arguments = [sizes.node(size) for size in (*layout.grid, layout.start)]
    if None in arguments:
        return {"reason": "the sizes of its grid are computed inside the graph"}
    curve = carving.curve or recipe_for(module_classes(site)).curve
    blocks = static_masks.register(static_masks.StaticMasks(parts.always, parts.allowed))
    how: tuple[Any, ...] = (curve, [], blocks, _knobs(carving, parts.importance))
    _rewrite(site, arguments, how, number, (layout.from_context, ledger.options.kernel))
    found = layout.at(example)
    density = expected_keep(TokenGrid(*found.grid), curve, carving)
    return {"decision": "carved", "reason": _recognised(found), "curve": curve, "density": density}


def is_key_mask(mask: Node) -> bool:
    """Whether a mask is as `normalise_mask` leaves it: bool [B or 1, 1, 1, L]."""
    value = tensor_of(mask)
    return (
        value.dtype is torch.bool
        and value.dim() == 4
        and all(isinstance(size, int) and size == 1 for size in value.shape[1:3])
    )


def _knobs(carving: Carving, importance: Importance | None) -> int:
    if carving.knobs is not None:
        return knobs.register(carving.knobs)
    source = carving if importance is None else importance
    return _fixed_knobs(source.keep, source.cutoff)


@functools.cache
def _fixed_knobs(keep: float, cutoff: float) -> int:
    """Equal settings share a handle, so that the graph, Inductor's cache key, does not depend on history."""
    return knobs.register(knobs.Knobs(keep=keep, cutoff=cutoff))


def _rewrite(site: Node, sizes: list[Any], how: tuple[Any, ...], number: int, rest: tuple[bool, str]) -> None:
    query, key, value, mask, scale, _ = site.args
    graph = site.graph
    with graph.inserting_before(site):
        keys = _flat(graph, mask) if isinstance(mask, Node) else None
        carved = graph.call_function(CARVED, (query, key, value, keys, *sizes, *how, scale, False, *rest))
    # `eager_input_vals` describes the arguments of the operator that was replaced; Inductor matches it to ours.
    carved.meta = {name: value for name, value in site.meta.items() if name != "eager_input_vals"}
    carved.meta["jenga_site"] = number
    site.replace_all_uses_with(carved)
    graph.erase_node(site)


def _flat(graph: Graph, mask: Node) -> Node:
    """The key mask [B, L] of a mask [B or 1, 1, 1, L]."""
    flat = graph.call_function(aten.squeeze.dims, (mask, [1, 2]))
    flat.meta["val"] = tensor_of(mask).squeeze((1, 2))
    return flat


def _recognised(found: Layout) -> str:
    if found.text == 0:
        return "video self-attention"
    side = "after" if found.start == 0 else "before" if found.stop == found.tokens else "on both sides"
    return f"joint attention, text {side}"
