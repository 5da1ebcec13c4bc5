"""mask[b, h, q, k] = key[b, k] & query[b, q]  ->  the key mask [B or 1, 1, 1, K], and zeros in rows without a key.

Before   m:   [B, 1, Q, K] = view(x) & transpose(view(x))         or (1 - x) * -10000, where(x, 0, -inf), ...
         out: [B, H, Q, E] = jenga::attention(q, k, v, m, scale, 7)
After    key: [B, 1, 1, K], query: [B, 1, Q, 1]                   bool, True attends, built once for all layers
         out: [B, H, Q, E] = where(query, jenga::attention(q, k, v, key, scale, 7), 0)

A padding mask must not travel as a dense mask: at [B, 1, N, N] that alone costs more than carving saves.

Legal because a query that may see nothing gets zeros, and any other sees what the key mask says (`masks/proof.py`).
Boolean masks keep every bit (EXACT); masks of 0 and a large negative number, added to the logits, become boolean, up to
rounding. Integer inputs count as masks of 0 and 1. Where a finite number closes every key of a sample, all are open:
adding one number to all logits changes no weight, if it is not so large that the logits are rounded away.
Fires on   masks of that form, with all sizes symbolic or not; all True becomes no mask.
Leaves     masks that differ between heads or queries (causal, windows, biases) or whose values are unknown.
"""

from __future__ import annotations

import dataclasses

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Graph, GraphModule, Node

from jenga_compile.passes.graph import graphs_of, tensor_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.masks.build import Builder
from jenga_compile.passes.masks.proof import Proof, Unproven, prove
from jenga_compile.passes.masks.reads import Size, axes_of, equal
from jenga_compile.passes.masks.same_value import representatives
from jenga_compile.passes.site import ATTENTION

aten = torch.ops.aten
_MASK, _SITE = 3, 5
"""Places among the arguments of `jenga::attention`."""


@dataclasses.dataclass(frozen=True)
class Normalised:
    """What a mask says: `key` [B or 1, 1, 1, K] and `query` [B or 1, 1, Q, 1], bool; None is True everywhere."""

    key: Node | None
    query: Node | None


def normalise_mask(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        _normalise_graph(graph_module.graph, ledger)
        graph_module.recompile()


def _normalise_graph(graph: Graph, ledger: Ledger) -> None:
    sites = [node for node in graph.find_nodes(op="call_function", target=ATTENTION) if node.args[_MASK] is not None]
    same = representatives(graph) if sites else {}
    known: dict[tuple[Node, str], Normalised | str] = {}
    replaced: list[Node] = []
    for site in sites:
        mask, key = site.args[_MASK], site.args[1]
        assert isinstance(mask, Node)
        assert isinstance(key, Node)
        keys = tensor_of(key).shape[2]
        name = (same[mask], str(keys))
        if name not in known:
            known[name] = normalise(graph, same[mask], keys, same)
        found = known[name]
        if isinstance(found, str):
            ledger.settle(site.args[_SITE], reason=found)
        else:
            _apply(graph, site, found)
            replaced.append(mask)
    _erase_unused(graph, replaced)


def normalise(graph: Graph, mask: Node, keys: Size, same: dict[Node, Node] | None = None) -> Normalised | str:
    """Build the key mask and the query mask of `mask`, right after it, or say why that is not possible.

    Args:
        mask: broadcasts to [B, H, Q, K], bool or additive.
        keys: K.
        same: `representatives` of the graph, if they are known; tensors that compute the same then count as one.
    """
    with unset_fake_temporarily():
        try:
            proof = prove(mask, representatives(graph) if same is None else same)
        except Unproven as unproven:
            return str(unproven)
        if not isinstance(keys, int) and _needs_number_of_keys(proof):
            return "mask without an axis of keys, whose number is symbolic"
        builder = Builder(graph, _behind(mask), mask)
        key = _key(builder, proof, keys)
        return Normalised(key, None if proof.key.constant is False else builder.factor(proof.query))


def _needs_number_of_keys(proof: Proof) -> bool:
    """Whether the mask closes some samples, and says nothing of their keys."""
    return proof.key.constant is not True and not any("key" in axes_of(atom.read) for atom in proof.key.atoms)


def _key(builder: Builder, proof: Proof, keys: Size) -> Node | None:
    key = builder.factor(proof.key)
    if key is None:
        return None
    if equal(tensor_of(key).shape[3], 1) and not equal(keys, 1):
        key = builder.call(aten.expand.default, key, [-1, -1, -1, keys])
    return builder.open_if_empty(key) if proof.finite else key


def _behind(mask: Node) -> Node:
    """The first node after `mask` that is no input."""
    node = mask.next
    while node.op == "placeholder":
        node = node.next
    return node


def _apply(graph: Graph, site: Node, found: Normalised) -> None:
    if found.key is not site.args[_MASK]:
        site.update_arg(_MASK, found.key)
        # Describes the arguments of the call as it was; Inductor would match it to the new ones.
        site.meta.pop("eager_input_vals", None)
    if found.query is None:
        return
    builder = Builder(graph, site.next, site)
    # In the order of storage, so that the result has the strides of what it replaces.
    swap = [0, 2, 1, 3]
    swapped = builder.call(aten.permute.default, site, swap)
    rows = builder.call(aten.permute.default, found.query, swap)
    out = tensor_of(site)
    zero = builder.call(aten.full.default, [], 0, dtype=out.dtype, device=out.device)
    kept = builder.call(aten.where.self, rows, swapped, zero)
    result = builder.call(aten.permute.default, kept, swap)
    site.replace_all_uses_with(result, delete_user_cb=lambda user: user is not swapped)


def _erase_unused(graph: Graph, masks: list[Node]) -> None:
    """Remove what only served to make `masks`."""
    pending = list(masks)
    while pending:
        node = pending.pop()
        if not node.users and not node._erased and not node.is_impure():
            pending += node.all_input_nodes
            graph.erase_node(node)
