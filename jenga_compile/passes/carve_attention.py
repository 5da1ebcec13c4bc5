"""softmax(Q K^T) V over all keys  ->  the same over selected key blocks.   [LOSSY]

Before   out: [B, H, L, D] = jenga::attention(q, k, v, mask, scale, 7)
After    m:   [B, L]       = reshape(mask)
         out: [B, H, L, D] = jenga::carved_attention(q, k, v, m, t, h, w, start, curve, adjacency, knobs, scale)

Fires on   self-attention over a proven or given grid of at least `min_blocks` blocks, with no mask but key padding.
Leaves     every other site, with its reason.
Loses      the keys outside the selected blocks (paper, section 3.1). With keep = 1 nothing but rounding.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.fx import GraphModule, Node

from jenga_compile.config import BLOCK, Carving
from jenga_compile.kernels import knobs
from jenga_compile.models import recipe_for
from jenga_compile.passes import key_mask
from jenga_compile.passes.graph import graphs_of, module_classes, shape_of
from jenga_compile.passes.infer_layout import Layout, LayoutInference, Unproven
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION, CARVED


def carve_attention(gm: GraphModule, ledger: Ledger) -> None:
    inference = LayoutInference(ledger.options)
    for graph_module in graphs_of(gm):
        for node in graph_module.graph.find_nodes(op="call_function", target=ATTENTION):
            ledger.settle(node.args[5], **_carve(graph_module, node, inference, ledger.options.carving))
        graph_module.recompile()


def _carve(gm: GraphModule, node: Node, inference: LayoutInference, carving: Carving) -> dict[str, Any]:
    query, key, _, mask, *_ = node.args
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    tokens = shape_of(query)[2]
    if carving.is_short(tokens):
        return _short(tokens, "tokens", carving)
    try:
        layout = inference.layout(query, key)
    except Unproven as unproven:
        return {"reason": str(unproven)}
    found = {"grid": layout.grid, "video": (layout.start, layout.stop), "text": layout.text}
    video = layout.stop - layout.start
    if carving.is_short(video):
        return found | _short(video, "video tokens", carving)
    rejection = key_mask.check(mask, layout.tokens) if isinstance(mask, Node) else None
    if rejection is not None:
        return found | {"reason": rejection}
    curve = carving.curve or recipe_for(module_classes(node)).curve
    _rewrite(gm, node, layout, (curve, carving.adjacency, _handle(carving.keep, carving.cutoff)))
    return found | {"decision": "carved", "reason": _recognised(layout), "curve": curve}


def _short(tokens: int, what: str, carving: Carving) -> dict[str, Any]:
    reason = f"short: {tokens} {what} are fewer than min_blocks={carving.min_blocks} blocks of {BLOCK}"
    return {"reason": reason, "intended": False}


@functools.cache
def _handle(keep: float, cutoff: float) -> int:
    """Equal settings share a handle, so that the graph, Inductor's cache key, does not depend on history."""
    return knobs.register(knobs.Knobs(keep=keep, cutoff=cutoff))


def _rewrite(gm: GraphModule, node: Node, layout: Layout, how: tuple[str, bool, int]) -> None:
    query, key, value, mask, scale, _ = node.args
    assert isinstance(query, Node)
    with gm.graph.inserting_before(node):
        keys = key_mask.build(gm.graph, mask, shape_of(query)[0], layout.tokens) if isinstance(mask, Node) else None
        carved = gm.graph.call_function(
            CARVED,
            (query, key, value, keys, *layout.grid, layout.start, *how, scale),
        )
    # `eager_input_vals` describes the arguments of the operator that was replaced; Inductor matches it to ours.
    carved.meta = {name: value for name, value in node.meta.items() if name != "eager_input_vals"}
    assert shape_of(carved) == shape_of(node)
    node.replace_all_uses_with(carved)
    gm.graph.erase_node(node)


def _recognised(layout: Layout) -> str:
    if layout.text == 0:
        return "video self-attention"
    side = "after" if layout.start == 0 else "before" if layout.stop == layout.tokens else "on both sides"
    return f"joint attention, text {side}"
