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

import torch
from torch.fx import GraphModule, Node

from jenga_compile.config import BLOCK
from jenga_compile.kernels import knobs
from jenga_compile.models import recipe_for
from jenga_compile.passes import key_mask
from jenga_compile.passes.graph import module_classes, shape_of
from jenga_compile.passes.infer_layout import Layout, LayoutInference, Unproven
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION


def carve_attention(gm: GraphModule, ledger: Ledger) -> None:
    inference = LayoutInference(ledger.options)
    carving = ledger.options.carving
    handle = _handle(carving.keep, carving.cutoff)
    for node in gm.graph.find_nodes(op="call_function", target=ATTENTION):
        query, key, _, mask, _, number = node.args
        rejection = _too_short(shape_of(query)[2], "tokens", carving.min_blocks)
        if rejection is not None:
            ledger.settle(number, reason=rejection, intended=False)
            continue
        try:
            layout = inference.layout(query, key)
        except Unproven as unproven:
            ledger.settle(number, reason=str(unproven))
            continue
        ledger.settle(number, grid=layout.grid, video=(layout.start, layout.stop), text=layout.text)
        rejection = check(layout, mask, carving.min_blocks)
        if rejection is not None:
            ledger.settle(number, reason=rejection)
            continue
        curve = carving.curve or recipe_for(module_classes(node)).curve
        _rewrite(gm, node, layout, (curve, carving.adjacency, handle))
        ledger.settle(number, decision="carved", reason=_recognised(layout), curve=curve)
    gm.recompile()


@functools.cache
def _handle(keep: float, cutoff: float) -> int:
    """Equal settings share a handle, so that the graph, Inductor's cache key, does not depend on history."""
    return knobs.register(knobs.Knobs(keep=keep, cutoff=cutoff))


def check(layout: Layout, mask: Node | None, min_blocks: int) -> str | None:
    """Why a site with a proven layout stays dense; None if it is carved."""
    short = _too_short(layout.stop - layout.start, "video tokens", min_blocks)
    if short is not None or mask is None:
        return short
    return key_mask.check(mask, layout.tokens)


def _too_short(tokens: int, what: str, min_blocks: int) -> str | None:
    short = -(-tokens // BLOCK) < min_blocks
    return f"short: {tokens} {what} are fewer than min_blocks={min_blocks} blocks of {BLOCK}" if short else None


def _rewrite(gm: GraphModule, node: Node, layout: Layout, how: tuple[str, bool, int]) -> None:
    query, key, value, mask, scale, _ = node.args
    assert isinstance(query, Node)
    with gm.graph.inserting_before(node):
        keys = key_mask.build(gm.graph, mask, shape_of(query)[0], layout.tokens) if isinstance(mask, Node) else None
        carved = gm.graph.call_function(
            torch.ops.jenga.carved_attention.default,
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
