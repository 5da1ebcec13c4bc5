"""softmax(q k^T * s + m) v written out  ->  scaled_dot_product_attention(q, k, v, attn_mask=m, scale=s).   [ROUNDING]

Before   scores:  [B, H, L, L] = q @ k^T * s, masked or biased            q, k, v [B, H, L, D]
         weights: [B, H, L, L] = softmax(scores, dim=-1)
         out:     [B, H, L, D] = weights @ v
After    out:     [B, H, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=m, scale=s)

So too exponentials that are multiplied by v first and divided by their sum then.

Legal because the call is the same function; it rounds in other places: it keeps scores in float32 where the model may
not. Types are those of the most precise of what goes in, the result's type and memory format stay as they were.
Fires on   large self-attention by matmul, bmm, baddbmm or einsum in any order of dimensions, a softmax or exponentials
           over their sum, scaled anywhere, masked by fill, by `where` or by addition.
Leaves     weights or scores that are used elsewhere or changed otherwise, dropout, broadcasting, learned factors,
           writes in between, gradients, cross-attention, a part of the queries and short sequences;
           `enter_other_attention` says which.
Loses      a sample whose every key is dropped: 0 here, not the mean value or NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.config import Carving
from jenga_compile.kernels.dispatch import without_autocast
from jenga_compile.passes.eligibility import not_meant, not_rewritable
from jenga_compile.passes.graph import graphs_of, tensor_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.sizes import hint_of
from jenga_compile.passes.written.attention import Operand, WrittenAttention, is_stacked, read_attention
from jenga_compile.passes.written.mutation import Timeline
from jenga_compile.passes.written.product import Labels
from jenga_compile.passes.written.scores import Size, Term
from jenga_compile.passes.written.softmax import softmax_of
from jenga_compile.passes.written.stacks import stack_labels


def recognise_attention(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        graph = graph_module.graph
        timeline = Timeline(graph)
        for softmax in [found for node in graph.nodes if (found := softmax_of(node))]:
            written = read_attention(softmax, timeline)
            if not isinstance(written, str) and check(written, ledger.options.carving) is None:
                _Rewriter(graph, written).run()
                timeline = Timeline(graph)
        graph_module.recompile()


def check(written: WrittenAttention, carving: Carving) -> str | None:
    """Why an attention that could be one call is not made one; None if it is."""
    out = tensor_of(written.end)
    inputs = (operand.node for operand in (written.query, written.key, written.value))
    tokens = written.query.labels.index(written.queries)
    keys = tensor_of(written.key.node).shape[written.key.labels.index(written.scores.keys)]
    rejection = not_rewritable(inputs, out) or not_meant(written.query.node, tokens, keys, carving)
    if rejection is not None:
        return rejection
    if _dtype(written) != out.dtype and _is_autocast(written.end):
        return f"{_dtype(written)} scores and {out.dtype} values under autocast"
    return None


def _dtype(written: WrittenAttention) -> torch.dtype:
    """The least precise type that holds what the scores and the result are made of."""
    product, out = written.scores.product.node, written.end
    dtype = tensor_of(out).dtype
    for operand in (written.query, written.key):
        dtype = torch.promote_types(dtype, _narrower(operand.node, product))
    for term in written.scores.terms:
        if term.kind not in ("keep", "drop"):
            dtype = torch.promote_types(dtype, _narrower(term.node, term.read))
    return dtype


def _narrower(source: Node, reader: Node) -> torch.dtype:
    """The least precise type that a value has between two nodes."""
    types = tensor_of(source).dtype, tensor_of(reader).dtype
    return min(types, key=lambda dtype: torch.finfo(dtype).bits) if types[0].is_floating_point else types[1]


def _is_autocast(node: Node) -> bool:
    """Whether autocast is on where a node runs: in the graph, or around all of it."""
    device = tensor_of(node).device.type
    entered: dict[Node, tuple[Any, ...]] = {}
    for earlier in node.graph.nodes:
        if earlier is node:
            break
        if earlier.target is torch.amp.autocast_mode._enter_autocast:
            entered[earlier] = earlier.args
        if earlier.target is torch.amp.autocast_mode._exit_autocast:
            entered.pop(earlier.args[0])
    enabled = [bool(args[2]) for args in entered.values() if args[0] == device]
    return enabled[-1] if enabled else torch.is_autocast_enabled(device)


class _Rewriter:
    """Puts the call in place of one written attention."""

    def __init__(self, graph: Graph, written: WrittenAttention) -> None:
        self.graph = graph
        self.written = written
        self.dtype = _dtype(written)
        self.groupings = written.scores.groupings

    def run(self) -> None:
        written, out = self.written, self.written.end
        example = tensor_of(out)
        assert isinstance(example, FakeTensor)
        with self.graph.inserting_before(out), example.fake_mode, without_autocast(example), torch.no_grad():
            arguments = (
                self._scaled(self._operand(written.query, (written.queries, "c"), 0)),
                self._operand(written.key, (written.scores.keys, "c"), 0),
                self._operand(written.value, (written.scores.keys, "d"), -1),
            )
            named = {"attn_mask": self._mask(), "scale": written.scale}
            result = self._call(F.scaled_dot_product_attention, *arguments, **named)
            result = self._as_it_lay(self._to(result, example.dtype))
        out.replace_all_uses_with(result)
        self._erase()

    def _operand(self, operand: Operand, ends: Labels, grouping: int) -> Node:
        """An operand as [B, H, L, D]."""
        sizes, chosen = self.groupings[grouping], self.groupings[self.written.grouping]
        turned = self._turned(operand.node, operand.labels, (*stack_labels(len(sizes)), *ends))
        return self._to(self._in_two(self._regrouped(turned, sizes, chosen), len(chosen)), self.dtype)

    def _scaled(self, query: Node) -> Node:
        for term in self.written.scores.terms:
            if term.kind in ("factor", "divisor"):
                with_factor = torch.mul if term.kind == "factor" else torch.div
                query = self._call(with_factor, query, self._to(self._term(term), self.dtype))
        return query

    def _mask(self) -> Node | None:
        """One mask for all terms: boolean where nothing is added, else added."""
        keep, bias, filling = None, None, -math.inf
        for term in self.written.scores.terms:
            if term.kind in ("keep", "drop"):
                mask = self._term(term)
                mask = mask if term.kind == "keep" else self._call(torch.logical_not, mask)
                keep = mask if keep is None else self._call(torch.logical_and, keep, mask)
                filling = max(filling, term.number)
            elif term.kind == "bias":
                added = self._to(self._term(term), self.dtype)
                added = added if term.number == 1 else self._call(torch.mul, added, term.number)
                bias = added if bias is None else self._call(torch.add, bias, added)
        if keep is None or bias is None:
            return bias if keep is None else keep
        if math.isfinite(filling):
            filling = max(filling, torch.finfo(self.dtype).min)
        return self._call(torch.where, keep, bias, filling)

    def _term(self, term: Term) -> Node:
        """A term as [B, H, L, L], where a size may be 1."""
        sizes = self.groupings[term.grouping]
        order = (*stack_labels(len(sizes)), self.written.queries, self.written.scores.keys)
        labels = term.labels[len(term.labels) - tensor_of(term.node).dim() :]
        full = self._turned(term.node, labels, tuple(label for label in order if label in labels))
        for place, label in enumerate(order):
            full = full if label in labels else self._method("unsqueeze", full, place)
        if len(sizes) > 2 and is_stacked(term):
            full = self._method("expand", full, (*map(int, sizes), -1, -1))
        return self._in_two(full, len(sizes))

    def _as_it_lay(self, result: Node) -> Node:
        """The result with the shape and the strides of the product that it replaces."""
        written, out = self.written, tensor_of(self.written.end)
        sizes, chosen = self.groupings[-1], self.groupings[written.grouping]
        shaped = self._regrouped(self._out_of_two(result, chosen), chosen, sizes)
        turned = self._turned(shaped, (*stack_labels(len(sizes)), written.queries, "d"), written.out_labels)
        strides = zip(out.shape, tensor_of(turned).stride(), out.stride(), strict=True)
        if all(statically_known_true(size == 1) or statically_known_true(one == other) for size, one, other in strides):
            return turned
        lies = [hint_of(stride) for stride in out.stride()]
        order = sorted(range(out.dim()), key=lambda dim: (-lies[dim], dim))
        dense = self._method("contiguous", self._permuted(turned, order))
        return self._permuted(dense, [order.index(dim) for dim in range(out.dim())])

    def _in_two(self, node: Node, count: int) -> Node:
        """A stack of `count` dimensions as one of two."""
        for place in range(count, 2):
            node = self._method("unsqueeze", node, place)
        return self._method("flatten", node, 0, count - 2) if count > 2 else node

    def _out_of_two(self, node: Node, sizes: tuple[Size, ...]) -> Node:
        for place in reversed(range(len(sizes), 2)):
            node = self._method("squeeze", node, place)
        return self._method("unflatten", node, 0, (-1, *map(int, sizes[1:-1]))) if len(sizes) > 2 else node

    def _regrouped(self, node: Node, sizes: tuple[Size, ...], wanted: tuple[Size, ...]) -> Node:
        """A stack of some sizes as one of others."""
        if len(sizes) == len(wanted) and all(map(statically_known_true, map(operator.eq, sizes, wanted))):
            return node
        if len(sizes) == 0:
            node = self._method("unsqueeze", node, 0)
        elif len(sizes) > 1:
            node = self._method("flatten", node, 0, len(sizes) - 1)
        if len(wanted) == 0:
            return self._method("squeeze", node, 0)
        return self._method("unflatten", node, 0, (-1, *map(int, wanted[1:]))) if len(wanted) > 1 else node

    def _turned(self, node: Node, labels: Labels, wanted: Labels) -> Node:
        return self._permuted(node, [labels.index(label) for label in wanted])

    def _permuted(self, node: Node, order: list[int]) -> Node:
        return node if order == sorted(order) else self._method("permute", node, tuple(order))

    def _to(self, node: Node, dtype: torch.dtype) -> Node:
        return node if tensor_of(node).dtype == dtype else self._method("to", node, dtype)

    def _method(self, name: str, node: Node, *args: Any) -> Node:
        made = self.graph.call_method(name, (node, *args))
        return self._described(made, getattr(tensor_of(node), name)(*args))

    def _call(self, function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Node:
        made = self.graph.call_function(function, args, kwargs)
        named = {name: _example(value) for name, value in kwargs.items()}
        return self._described(made, function(*map(_example, args), **named))

    def _described(self, made: Node, example: torch.Tensor) -> Node:
        made.meta = {**self.written.end.meta, "example_value": example}
        return made

    def _erase(self) -> None:
        written = self.written
        doomed = {*written.nodes, *written.query.peeled, *written.key.peeled, *written.value.peeled}
        self.graph.erase_node(written.end)
        for node in reversed([node for node in self.graph.nodes if node in doomed]):
            if not node.users:
                self.graph.erase_node(node)


def _example(value: Any) -> Any:
    return tensor_of(value) if isinstance(value, Node) else value
