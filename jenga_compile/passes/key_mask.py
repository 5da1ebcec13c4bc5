"""mask broadcastable to [B, H, L, L]  ->  key mask [B, L], which says for every token whether it may be attended.

A padding mask must not travel as a dense mask: that alone makes dense attention 1.6 times slower. It varies along the
keys (and the batch) only, so it is a row of booleans.

Legal where the mask's head and query dimensions have size 1, or are copies made by `expand`: all rows are then equal.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from jenga_compile.passes.graph import shape_of, tensor_of

aten = torch.ops.aten


def check(mask: Node, tokens: int) -> str | None:
    """Why a mask is no key mask; None if it is one."""
    origin = _origin(mask)
    shape = (1,) * 4 + shape_of(origin)
    if shape[-1] != tokens:
        return f"mask {list(shape_of(mask))} has no entry for each of the {tokens} keys"
    if shape[-2] != 1 or shape[-3] != 1:
        return f"mask {list(shape_of(mask))} differs between queries or heads"
    return None


def build(graph: Graph, mask: Node, batch: int, tokens: int) -> Node:
    """The key mask [B, L] of a mask that passed `check`; insert it where the graph's cursor stands."""
    origin = _origin(mask)
    rows = tensor_of(origin).reshape(-1, tokens)
    flat = graph.call_function(aten.reshape.default, (origin, [int(size) for size in rows.shape]))
    flat.meta["val"] = rows
    if rows.shape[0] == batch:
        return flat
    stretched = graph.call_function(aten.expand.default, (flat, [batch, tokens]))
    stretched.meta["val"] = rows.expand(batch, tokens)
    return stretched


def _origin(mask: Node) -> Node:
    """The mask before it was stretched over heads and queries."""
    while mask.op == "call_function" and mask.target is aten.expand.default:
        source = mask.args[0]
        assert isinstance(source, Node)
        kept = shape_of(source)[-1] == shape_of(mask)[-1]
        if not kept or len(shape_of(source)) != len(shape_of(mask)):
            break
        mask = source
    return mask
