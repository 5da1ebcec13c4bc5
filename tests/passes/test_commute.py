"""Both tables of what commutes with a permutation of tokens, against real tensors: one op at a time.

The law: if the rule of an op says that its output is permuted when these inputs are, then running the op on permuted
inputs gives the permuted output. It is asked of every op of many small functions, for every dimension and every place
of the video in it. The verifier's rule must then say the same, or nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from jenga_compile.config import Options
from jenga_compile.curve import CutCurve, curve_order
from jenga_compile.grid import TokenGrid
from jenga_compile.passes.graph import shape_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.links import is_view
from jenga_compile.passes.reorder import forward
from jenga_compile.passes.reorder.commute import candidates, consumer_of, indifferent, needs
from jenga_compile.passes.reorder.order import Cut, Label, Order, place_of
from jenga_compile.passes.reorder.runs import Fault, met, on_curve
from jenga_compile.passes.reorder.seen import Moved, Seen
from jenga_compile.passes.slice_splits import slice_splits
from tests.passes.test_rules import KEEPS_ROWS, MIXES_TOKENS, TOKENS, WEIGHT, WIDTH

GRID = (3, 2, 2)
ORDERS = (Order(GRID, "gilbert"), Order(GRID, "gilbert", (1,)))
MORE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over features": lambda x: x.softmax(-1) + x.log_softmax(-1),
    "reductions": lambda x: x.amax(-1, keepdim=True) + x.amin(-1, keepdim=True) + x.logsumexp(-1, keepdim=True),
    "norms": lambda x: x / x.norm(dim=-1, keepdim=True) + F.group_norm(x.transpose(1, 2), 2).transpose(1, 2),
    "comparisons": lambda x: torch.where(x > 0, x, x.new_full((), 2.0)).clamp(-1, 1),
    "first frame apart": lambda x: torch.cat([x[:, :4] * 2, x[:, 4:] + 1], 1),
    "half a frame apart": lambda x: torch.cat([x[:, :2] * 2, x[:, 2:]], 1),
    "text before": lambda x: torch.cat([x.new_ones(2, 5, WIDTH), x], 1).tanh()[:, 5:],
    "text after": lambda x: torch.cat([x, x.new_ones(2, 4, WIDTH)], 1).sin()[:, :TOKENS],
    "text written": lambda x: torch.cat([x, x.new_ones(2, 4, WIDTH)], 1).select_scatter(x[:, 0], 1, 13)[:, :TOKENS],
    "video written": lambda x: torch.zeros(2, 16, WIDTH).slice_scatter(x, 1, 2, 14).slice_scatter(x[:, :2], 1, 0, 2),
    "padded": lambda x: F.pad(x, (0, 0, 3, 2)),
    "cropped": lambda x: F.pad(torch.cat([x, x.new_ones(2, 4, WIDTH)], 1), (0, 0, 0, -3)),
    "padded features": lambda x: F.pad(x, (1, 2)),
    "gathered rows": lambda x: torch.randn(50, 4)[torch.arange(TOKENS) * 2][None] + x[..., :4],
    "embedded": lambda x: F.embedding(torch.arange(TOKENS), torch.ones(20, WIDTH)) + x,
    "taken features": lambda x: x.gather(2, torch.zeros(2, TOKENS, 2, dtype=torch.int64)),
    "products of itself": lambda x: (x @ x.mT) @ x,
    "attention to itself": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
    "attention under a mask": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], attn_mask=torch.arange(TOKENS)[None] < 9
    )[:, 0],
    "merged batch": lambda x: x.reshape(-1, WIDTH).tanh().add(1).view(2, TOKENS, WIDTH),
    "batch behind the tokens": lambda x: torch.addmm(
        torch.ones(WIDTH), x.transpose(0, 1).reshape(-1, WIDTH).tanh(), WEIGHT
    ).view(TOKENS, 2, WIDTH),
    "rows behind the tokens": lambda x: torch.addmm(
        torch.arange(2.0 * TOKENS)[:, None], x.transpose(0, 1).reshape(-1, WIDTH), WEIGHT
    ).view(TOKENS, 2, WIDTH),
    "merged heads": lambda x: x.view(2, TOKENS, 2, 3).transpose(1, 2).reshape(4, TOKENS, 3).softmax(-1),
    "biased": lambda x: torch.baddbmm(x, x, WEIGHT.expand(2, WIDTH, WIDTH)),
    "sorted": lambda x: x.sort(dim=1).values + x.argmax(1, keepdim=True),
    "stacked": lambda x: torch.stack([x, x * 2], 1)[:, 0] + torch.stack([x, x], -1).sum(-1),
    "repeated": lambda x: x.repeat(1, 1, 2) + x.repeat(1, 1, 2),
    "moved by one": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "random": lambda x: x + torch.rand_like(x),
    "copied": lambda x: torch.empty_like(x).copy_(x),
}
FUNCTIONS = KEEPS_ROWS | MIXES_TOKENS | MORE


class Recorder(Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[Node, Any] = {}

    def run_node(self, node: Node) -> Any:
        torch.manual_seed(0)
        self.values[node] = super().run_node(node)
        return self.values[node]


def traced(function: Callable[[Tensor], Tensor]) -> tuple[GraphModule, dict[Node, Any]]:
    sample = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    gm = make_fx(torch.func.functionalize(function), tracing_mode="fake", _allow_non_fake_inputs=True)(sample)
    slice_splits(gm, Ledger(Options()))
    recorder = Recorder(gm)
    with torch.no_grad():
        recorder.run(sample)
    return gm, recorder.values


def labels(node: Node) -> Iterator[Label]:
    """Every way in which some dimension of the output could hold the video, whole or but for its first frame.

    A dimension that is long enough may hold two sequences, or one whose every token is two neighbours.
    """
    shape = shape_of(node)
    for order, (dim, size), before, first in itertools.product(ORDERS, enumerate(shape), (0, 2, 4, 5), (0, 1)):
        video = (GRID[0] - first) * order.frame
        for tokens, within in [(size, 1)] if size < 2 * TOKENS else [(size, 1), (size // 2, 1), (size // 2, 2)]:
            if tokens >= before + video and (first == 0 or order.cuts):
                yield Label(order, first, GRID[0], before, tokens - before - video, 1).at(shape, dim, within)


def permuted(value: Tensor, label: Label) -> Tensor:
    frames = TokenGrid(label.last - label.first, *label.order.grid[1:])
    cuts = tuple(cut - label.first for cut in label.order.cuts if label.first < cut < label.last)
    video = label.before + curve_order(frames, CutCurve(label.order.curve, cuts))
    after = torch.arange(label.before + label.video, label.tokens)
    index = torch.cat([torch.arange(label.before), video, after])
    return value.reshape(-1, label.tokens, label.inner)[:, index].reshape(value.shape)


def rerun(node: Node, values: dict[Node, Any], changed: dict[Node, Tensor]) -> Any:
    """The op on its recorded inputs, but for some; of an item of a tuple, the op that made the tuple."""
    call = consumer_of(node)
    args, kwargs = torch.fx.node.map_arg((call.args, call.kwargs), lambda arg: changed.get(arg, values[arg]))
    torch.manual_seed(0)
    with torch.no_grad():
        out = call.target(*args, **kwargs)  # type: ignore[operator]
    return out[node.args[1]] if call is not node else out


def is_op(node: Node) -> bool:
    """Whether a node computes a tensor, and always the same one."""
    random = (torch.ops.aten.empty_like.default, torch.ops.aten.empty.memory_format)
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and node.target not in random


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_rule_claims_is_true(name: str) -> None:
    gm, values = traced(FUNCTIONS[name])
    for node in filter(is_op, gm.graph.nodes):
        for label in labels(node):
            if place_of(label, shape_of(node)) is None:
                continue
            try:
                asked = needs(node, label, {})
            except Cut:
                continue
            if asked is not None:
                inputs = {source: permuted(values[source], need) for source, need in asked.items()}
                expected = permuted(values[node], label)
                torch.testing.assert_close(rerun(node, values, inputs), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
                assert_the_verifier_agrees(node, label, asked)


def assert_the_verifier_agrees(node: Node, label: Label, asked: dict[Node, Label]) -> None:
    if is_view(node) or any(place_of(need, shape_of(source)) is None for source, need in asked.items()):
        return
    seen = Seen()
    for source, need in asked.items():
        seen.enter(source, moved(source, need))
    try:
        forward.step(node, seen)
    except Fault:
        return
    if asked:
        expected = moved(node, label)
        assert expected is not None
        assert seen.place(node) == (expected.dim, expected.each)
        assert met([seen.sequence(node), expected.runs]) == expected.runs


def moved(node: Node, label: Label) -> Moved | None:
    place = place_of(label, shape_of(node))
    assert place is not None
    cuts = [cut - label.first for cut in label.order.cuts if label.first < cut < label.last]
    grid = (label.last - label.first, *label.order.grid[1:])
    return Moved(place.dim, on_curve(grid, label.order.curve, cuts, label.before, label.after), place.inner)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_an_op_is_indifferent_to_does_not_change_it(name: str) -> None:
    gm, values = traced(FUNCTIONS[name])
    for node in filter(is_op, gm.graph.nodes):
        tensors = [source for source in consumer_of(node).all_input_nodes if isinstance(values[source], Tensor)]
        for source in tensors:
            for label in labels(source):
                if place_of(label, shape_of(source)) is None:
                    continue
                known = {other: label for other in tensors if shape_of(other) == shape_of(source)}
                if indifferent(node, source, known):
                    inputs = {
                        other: permuted(values[other], label) for other in known if indifferent(node, other, known)
                    }
                    out = rerun(node, values, inputs)
                    if node.target not in forward.UNIFORM:
                        torch.testing.assert_close(out, values[node], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_verifier_that_accepts_is_right(name: str) -> None:
    """One input permuted at a time: the verifier refuses, or tells the order of the output truly."""
    gm, values = traced(FUNCTIONS[name])
    for node in filter(is_op, gm.graph.nodes):
        for source in consumer_of(node).all_input_nodes:
            if not isinstance(values.get(source), Tensor) or not values[source].is_floating_point():
                continue
            for label in labels(source):
                state = moved(source, label) if place_of(label, shape_of(source)) is not None else None
                if state is None:
                    continue
                seen = Seen()
                seen.enter(source, state)
                if node.target in forward.SHAPE_ONLY | forward.UNIFORM:
                    continue
                try:
                    forward.step(node, seen)
                except Fault:
                    continue
                out = rerun(node, values, {source: permuted(values[source], label)})
                expected = ordered(seen, node, values[node], label) if seen.is_permuted(node) else values[node]
                if expected is None:
                    continue
                torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def ordered(seen: Seen, node: Node, value: Tensor, like: Label) -> Tensor | None:
    """`value` in the order that the verifier says the op's output is in; None where no one label says it."""
    for label in labels(node):
        state = moved(node, label) if place_of(label, shape_of(node)) is not None else None
        if state is not None and label.order == like.order and state.runs == seen.sequence(node):
            try:
                if seen.place(node) == (state.dim, state.each):
                    return permuted(value, label)
            except Fault:
                break
    return None


def test_candidates_lead_where_needs_lead_back() -> None:
    found = 0
    for function in FUNCTIONS.values():
        gm, _ = traced(function)
        for node in filter(is_op, gm.graph.nodes):
            for label in labels(node):
                try:
                    asked = needs(node, label, {})
                except Cut:
                    continue
                for source, need in (asked or {}).items():
                    try:
                        found += any(candidate == label for candidate in candidates(node, source, need))
                    except Cut:
                        continue
    assert found > 1000
