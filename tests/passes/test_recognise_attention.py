"""Attention written out becomes one call in every spelling, rounds as it did, and what is no plain attention stays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from jenga_compile import Report
from jenga_compile.backend import jenga
from jenga_compile.config import Carving, Options
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.recognise_attention import recognise_attention
from tests.passes.dynamo_graphs import Caller, Outcome, after_pass
from tests.tolerance import assert_rounding, eager_attention

sdpa = F.scaled_dot_product_attention
Call = Callable[..., Any]
BATCH, HEADS, TOKENS, WIDTH = 2, 3, 144, 8
SCALE = WIDTH**-0.5
INF = math.inf
GRID = (4, 6, 6)


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, HEADS, TOKENS, WIDTH, generator=generator).to(dtype) for _ in range(3)]


def padding() -> Tensor:
    """[B, 1, 1, L]: True where a key counts."""
    mask = torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool)
    mask[0, ..., -9:] = False
    return mask


def bias(*shape: int) -> Tensor:
    shape = shape or (HEADS, TOKENS, TOKENS)
    return torch.arange(math.prod(shape)).mul(1.7).sin().view(shape)


def recognise(call: Call, *inputs: Tensor, min_blocks: int = 2, grad: bool = False, dynamic: bool = False) -> Outcome:
    copies = [tensor.detach().clone().requires_grad_(grad) for tensor in inputs]
    for tensor in copies if dynamic else []:
        torch._dynamo.mark_dynamic(tensor, 2)
    return after_pass(recognise_attention, Caller(call), *copies, min_blocks=min_blocks, grad=grad)


def check(call: Call, q: Tensor, k: Tensor, v: Tensor, truth: Tensor, calls: int = 1) -> Outcome:
    """The pass fires, nothing of the old spelling is left, and the numbers are as near to the truth as eager's."""
    outcome = recognise(call, q, k, v)
    assert outcome.calls == calls, outcome.reasons()
    assert "softmax" not in outcome.after
    assert "exp" not in outcome.after.replace("expand", "")
    with torch.no_grad():
        eager = call(q.clone(), k.clone(), v.clone())
    assert outcome.out.dtype == eager.dtype
    assert outcome.out.stride() == eager.stride()
    assert_rounding(outcome.out, truth, eager, v.to(eager.dtype))
    return outcome


def exact(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None = None, scale: float = SCALE) -> Tensor:
    return eager_attention(q.double(), k.double(), v.double(), added, scale)


def merged(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def tokens_first(x: Tensor) -> Tensor:
    """[B, L, H, D], contiguous"""
    return x.transpose(1, 2).contiguous()


PRODUCTS: dict[str, Call] = {
    "operator": lambda q, k, v: (q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v,
    "functions": lambda q, k, v: torch.matmul(torch.softmax(torch.matmul(q, k.mT) * SCALE, dim=3), v),
    "methods": lambda q, k, v: q.matmul(k.permute(0, 1, 3, 2)).mul(SCALE).softmax(dim=-1).matmul(other=v),
    "keywords": lambda q, k, v: torch.matmul(input=F.softmax(input=torch.mul(q @ k.mT, SCALE), dim=-1), other=v),
    "overloads": lambda q, k, v: (
        torch.ops.aten._softmax.default(
            torch.ops.aten.mul.Tensor(torch.ops.aten.matmul.default(q, k.mT), SCALE), -1, False
        )
        @ v
    ),
    "reversed": lambda q, k, v: (k @ q.mT * SCALE).softmax(-2).mT @ v,
    "values_first": lambda q, k, v: (v.mT @ (SCALE * (q @ k.mT)).softmax(-1).mT).mT,
    "keys_stored_turned": lambda q, k, v: ((q @ k.mT.contiguous()) * SCALE).softmax(-1) @ v,
    "bmm": lambda q, k, v: torch.bmm((torch.bmm(merged(q), merged(k).mT) * SCALE).softmax(-1), merged(v)).view(v.shape),
    "baddbmm": lambda q, k, v: torch.bmm(
        torch.baddbmm(
            torch.empty(BATCH * HEADS, TOKENS, TOKENS), merged(q), merged(k).transpose(1, 2), beta=0, alpha=SCALE
        ).softmax(dim=-1),
        merged(v),
    ).view(v.shape),
    "einsum": lambda q, k, v: torch.einsum(
        "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).mul(SCALE).softmax(-1), v
    ),
    "einsum_tokens_first": lambda q, k, v: torch.einsum(
        "bhij,bjhd->bihd",
        (torch.einsum("bihd,bjhd->bhij", tokens_first(q), tokens_first(k)) * SCALE).softmax(-1),
        tokens_first(v),
    ).transpose(1, 2),
    "einsum_scores_turned": lambda q, k, v: torch.einsum(
        "xyzh,xhzc->xhyc", (torch.einsum("xhya, xhza -> xyzh", [q, k]) * SCALE).softmax(2), v
    ),
    "einsum_ellipsis": lambda q, k, v: torch.einsum(
        "...ij,...jd->...id", (torch.einsum("...id,...jd->...ij", q, k) * SCALE).softmax(-1), v
    ),
    "regrouped": lambda q, k, v: torch.bmm(
        (merged(q) @ merged(k).mT * SCALE).view(BATCH, HEADS, TOKENS, TOKENS).view(-1, TOKENS, TOKENS).softmax(-1),
        merged(v),
    ).unflatten(0, (BATCH, HEADS)),
    "five_dimensions": lambda q, k, v: (
        ((q.unsqueeze(1) @ k.unsqueeze(1).mT) * SCALE).softmax(-1) @ v.unsqueeze(1)
    ).squeeze(1),
    "one_head": lambda q, k, v: torch.stack(
        [
            torch.stack([(one[h] @ two[h].t() * SCALE).softmax(-1) @ three[h] for h in range(HEADS)])
            for one, two, three in zip(q, k, v, strict=True)
        ]
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_in_every_spelling(name: str) -> None:
    q, k, v = tensors()
    check(PRODUCTS[name], q, k, v, exact(q, k, v), calls=BATCH * HEADS if name == "one_head" else 1)


SCALES: dict[str, tuple[Call, float]] = {
    "none": (lambda q, k: q @ k.mT, 1.0),
    "queries": (lambda q, k: (q * SCALE) @ k.mT, SCALE),
    "keys": (lambda q, k: q @ (k / 4).mT, 0.25),
    "turned_keys": (lambda q, k: q @ (k.mT / 4), 0.25),
    "both": (lambda q, k: (q * WIDTH**-0.25) @ (WIDTH**-0.25 * k).transpose(-2, -1), SCALE),
    "divided": (lambda q, k: q @ k.mT / math.sqrt(WIDTH), SCALE),
    "in_place": (lambda q, k: (q @ k.mT).mul_(SCALE), SCALE),
    "constant_tensor": (lambda q, k: q @ k.mT / torch.sqrt(torch.tensor(float(WIDTH))), SCALE),
    "computed_tensor": (lambda q, k: q @ k.mT * q.new_ones(()).mul(SCALE), SCALE),
    "everywhere": (lambda q, k: ((q / 2) @ (k * 3).mT).div(2) * 2.5 / 5, 0.375),
    "heads_own": (lambda q, k: q @ k.mT * torch.full((HEADS, 1, 1), SCALE), SCALE),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_wherever_they_stand(name: str) -> None:
    q, k, v = tensors()
    logits, scale = SCALES[name]
    check(lambda q, k, v: logits(q, k).softmax(-1) @ v, q, k, v, exact(q, k, v, scale=scale))


def statement(scores: Tensor, keep: Tensor) -> Tensor:
    scores.masked_fill_(~keep, -INF)
    return scores


def built(scores: Tensor, keep: Tensor) -> Tensor:
    added = torch.zeros(BATCH, 1, 1, TOKENS)
    added.masked_fill_(keep.logical_not(), -INF)
    scores += added
    return scores


KEY_MASKS: dict[str, Call] = {
    "fill": lambda s, keep: s.masked_fill(~keep, -INF),
    "fill_by_number": lambda s, keep: torch.masked_fill(s, keep == 0, -1e9),
    "fill_by_least": lambda s, keep: s.masked_fill(mask=keep.logical_not(), value=torch.finfo(s.dtype).min),
    "fill_by_tensor": lambda s, keep: s.masked_fill(~keep, torch.tensor(-INF)),
    "fill_in_place": lambda s, keep: s.masked_fill_(~keep, -INF),
    "statement": statement,
    "where": lambda s, keep: torch.where(keep, s, -INF),
    "where_not": lambda s, keep: torch.where(~keep, -1e9, s),
    "where_method": lambda s, keep: s.where(keep, torch.tensor(-1e9)),
    "where_full": lambda s, keep: torch.where(keep, s, torch.full_like(s, -INF)),
    "where_filled": lambda s, keep: torch.where(keep, s, torch.full([], torch.finfo(s.dtype).min, dtype=s.dtype)),
    "stretched": lambda s, keep: s.masked_fill(~keep.expand(s.shape), -INF),
    "twice": lambda s, keep: s.masked_fill(~keep, -INF).masked_fill(~keep[:1], -1e9),
    "no_batch": lambda s, keep: s.masked_fill(~keep[:, 0, 0, None, None], -INF),
}


@pytest.mark.parametrize("name", KEY_MASKS)
def test_key_masks_stay_boolean(name: str) -> None:
    q, k, v = tensors()
    keep = padding()
    both = keep & keep[:1] if name == "twice" else keep
    added = torch.zeros(both.shape, dtype=torch.double).masked_fill(~both, -INF)
    mask = KEY_MASKS[name]
    outcome = check(lambda q, k, v: mask(q @ k.mT * SCALE, keep).softmax(-1) @ v, q, k, v, exact(q, k, v, added))
    (call,) = outcome.gm.graph.find_nodes(op="call_function", target=sdpa)
    assert call.kwargs["attn_mask"].meta["example_value"].dtype is torch.bool


BIASES: dict[str, tuple[Call, Call]] = {
    "added": (lambda s: s + bias(), lambda: bias()),
    "in_place": (lambda s: s.add_(bias()), lambda: bias()),
    "rows": (lambda s: s - bias(TOKENS), lambda: -bias(TOKENS)),
    "one_matrix": (lambda s: bias(TOKENS, TOKENS) + s, lambda: bias(TOKENS, TOKENS)),
    "samples": (lambda s: torch.add(s, bias(BATCH, 1, 1, TOKENS), alpha=2), lambda: 2 * bias(BATCH, 1, 1, TOKENS)),
    "scaled_after": (lambda s: (s + bias()) * 0.5, lambda: bias() * 0.5),
    "number": (lambda s: s + 3 - 1, lambda: bias() * 0),
    "two": (lambda s: s + bias() + bias(TOKENS), lambda: bias() + bias(TOKENS)),
    "maximum": (lambda s: s - s.amax(-1, keepdim=True), lambda: bias() * 0),
    "built": (lambda s: built(s, padding()), lambda: torch.zeros(()).masked_fill(~padding(), -INF)),
    "and_mask": (
        lambda s: (s + bias()).masked_fill(~padding(), -INF),
        lambda: bias().masked_fill(~padding(), -INF),
    ),
    "and_mask_before": (
        lambda s: torch.where(padding(), s, -1e9) + bias(),
        lambda: bias().masked_fill(~padding(), -INF),
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name: str) -> None:
    q, k, v = tensors()
    add, added = BIASES[name]
    scale = SCALE * (0.5 if name == "scaled_after" else 1)
    check(lambda q, k, v: add(q @ k.mT * SCALE).softmax(-1) @ v, q, k, v, exact(q, k, v, added().double(), scale))


def exponentials(s: Tensor) -> Tensor:
    e = s.exp()
    return e.div(e.sum(-1, True))


def stable(s: Tensor) -> Tensor:
    e = (s - s.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def stable_by_max(s: Tensor) -> Tensor:
    e = torch.exp(s - s.max(dim=-1, keepdim=True)[0].detach())
    return e / torch.sum(e, dim=-1, keepdim=True)


def stable_in_place(s: Tensor) -> Tensor:
    s -= s.max()
    e = s.exp_()
    e /= e.sum(dim=[-1], keepdim=True)
    return e


SOFTMAXES: dict[str, Call] = {
    "exponentials": exponentials,
    "stable": stable,
    "stable_by_max": stable_by_max,
    "stable_in_place": stable_in_place,
    "logsumexp": lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(),
    "log_softmax": lambda s: s.log_softmax(-1).exp(),
    "stabilised": lambda s: (s - s.amax(-1, keepdim=True)).softmax(-1),
    "module": nn.Softmax(dim=-1),
    "typed": lambda s: F.softmax(s, dim=-1, dtype=torch.float32),
    "special": lambda s: torch.special.softmax(s, 3),
    "dropout": lambda s: nn.Dropout(0.1).eval()(s.softmax(-1)),
    "dropout_function": lambda s: torch.dropout(s.softmax(-1), 0.3, False),
    "no_dropout": lambda s: F.dropout(s.softmax(-1), 0.0, training=True),
    "copied": lambda s: s.contiguous().softmax(-1).contiguous().clone(),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmaxes(name: str) -> None:
    q, k, v = tensors()
    softmax = SOFTMAXES[name]
    check(lambda q, k, v: softmax(q @ k.mT * SCALE) @ v, q, k, v, exact(q, k, v))


def late(s: Tensor, v: Tensor) -> Tensor:
    e = (s - s.amax(-1, keepdim=True)).exp()
    return e @ v / e.sum(-1, keepdim=True)


def late_in_place(s: Tensor, v: Tensor) -> Tensor:
    e = s.sub_(s.amax(-1, True)).exp_()
    total = e.sum((-1,), True)
    out = e @ v
    out /= total
    return out


def late_keys_first(s: Tensor, v: Tensor) -> Tensor:
    e = s.mT.exp()
    return (v.mT @ e / e.sum(-2, keepdim=True)).mT


def late_typed(s: Tensor, v: Tensor) -> Tensor:
    e = torch.exp(s.float())
    return torch.div(e.to(v.dtype) @ v, e.sum(-1, keepdim=True))


LATE: dict[str, Call] = {
    "late": late,
    "late_in_place": late_in_place,
    "late_keys_first": late_keys_first,
    "late_typed": late_typed,
    "late_masked": lambda s, v: late(s.masked_fill(~padding(), -INF), v),
}


@pytest.mark.parametrize("name", LATE)
def test_exponentials_that_are_divided_behind_the_values(name: str) -> None:
    q, k, v = tensors()
    added = torch.zeros(padding().shape, dtype=torch.double)
    added = added.masked_fill(~padding(), -INF) if name == "late_masked" else added
    check(lambda q, k, v: LATE[name](q @ k.mT * SCALE, v), q, k, v, exact(q, k, v, added))


@pytest.mark.parametrize("name", ["late", "late_in_place", "late_typed"])
def test_exponentials_that_are_divided_late_in_other_types(name: str) -> None:
    q, k, v = tensors(HALF)
    outcome = recognise(lambda q, k, v: LATE[name](q @ k.mT * SCALE, v), q, k, v)
    assert outcome.calls == 1
    eager = LATE[name](q @ k.mT * SCALE, v)
    assert outcome.out.dtype == eager.dtype
    assert_rounding(outcome.out.to(HALF), exact(q, k, v), eager.to(HALF), v)


HALF = torch.bfloat16
CASTS: dict[str, Call] = {
    "none": lambda q, k, v: (q @ k.mT * SCALE).softmax(-1) @ v,
    "softmax_in_float": lambda q, k, v: F.softmax(q @ k.mT * SCALE, -1, dtype=torch.float32).to(q.dtype) @ v,
    "scores_in_float": lambda q, k, v: (q @ k.mT * SCALE).float().softmax(-1).type_as(v) @ v,
    "queries_in_float": lambda q, k, v: (q.float() @ k.float().mT * SCALE).softmax(-1).to(v.dtype) @ v,
    "scaled_in_float": lambda q, k, v: ((q.float() * SCALE) @ k.to(torch.float32).mT).softmax(-1).bfloat16() @ v,
    "all_in_float": lambda q, k, v: (q.float() @ k.float().mT * SCALE).softmax(-1) @ v.float(),
    "all_in_float_and_back": lambda q, k, v: ((q.float() @ k.float().mT * SCALE).softmax(-1) @ v.float()).to(v.dtype),
    "float_bias": lambda q, k, v: ((q @ k.mT * SCALE) + bias() * 0).softmax(-1).to(v.dtype) @ v,
    "bias": lambda q, k, v: ((q @ k.mT * SCALE).float() + (bias() * 0).to(q.dtype)).softmax(-1).to(v.dtype) @ v,
    "least_of_float": lambda q, k, v: (
        (q.float() @ k.float().mT * SCALE)
        .masked_fill(~padding().new_ones(1, TOKENS), torch.finfo(torch.float32).min)
        .softmax(-1)
        .type_as(v)
        @ v
    ),
}


@pytest.mark.parametrize("name", CASTS)
def test_types(name: str) -> None:
    q, k, v = tensors(HALF)
    check(CASTS[name], q, k, v, exact(q, k, v))


def test_queries_that_are_more_precise_than_values_stay_so() -> None:
    q, k, _ = tensors()
    v = tensors(HALF)[2]
    outcome = check(lambda q, k, v: (q @ k.mT * SCALE).softmax(-1).to(v.dtype) @ v, q, k, v, exact(q, k, v))
    (call,) = outcome.gm.graph.find_nodes(op="call_function", target=sdpa)
    assert call.meta["example_value"].dtype is torch.float32


def test_an_upcast_is_left_out() -> None:
    outcome = recognise(CASTS["queries_in_float"], *tensors(HALF))
    (call,) = outcome.gm.graph.find_nodes(op="call_function", target=sdpa)
    assert [node.op for node in call.args] == ["placeholder"] * 3


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["none", "softmax_in_float", "scores_in_float", "queries_in_float"])
def test_autocast(name: str, inside: bool) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        with torch.autocast("cpu", HALF):
            return CASTS[name](q, k, v)

    q, k, v = tensors()
    if inside:
        check(call, q, k, v, exact(q, k, v))
    else:
        with torch.autocast("cpu", HALF):
            check(CASTS[name], q, k, v, exact(q, k, v))


def precise_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", HALF):
        with torch.autocast("cpu", enabled=False):
            weights = (q.float() @ k.float().mT * SCALE).softmax(-1)
        return weights @ v


def mutated_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.clone()
    scores = q @ k.mT
    q.zero_()
    return scores.softmax(-1) @ v + q


def mutated_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[:, :, :5] = 0
    return scores.softmax(-1) @ v


def mutated_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    added = bias()
    scores = q @ k.mT + added
    added.neg_()
    return scores.softmax(-1) @ v + added.mean()


def mutated_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scaled = q * SCALE
    scaled.view(-1)[0] = 3
    return (scaled @ k.mT).softmax(-1) @ v


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.new_empty(BATCH, HEADS, TOKENS, TOKENS)
    torch.matmul(q, k.mT, out=scores)
    return scores.softmax(-1) @ v


def returned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = (q @ k.mT).softmax(-1)
    return weights @ v, weights


def scores_seen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores.mean()


def late_seen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    e = (q @ k.mT * SCALE).exp()
    out = e @ v
    return out / e.sum(-1, keepdim=True), out


def late_sum_seen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ k.mT * SCALE).exp()
    total = e.sum(-1, keepdim=True)
    return e @ v / total + total


def late_values_changed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e, v = (q @ k.mT * SCALE).exp(), v * 1
    out = e @ v
    v.zero_()
    return out / e.sum(-1, keepdim=True) + v


def late_exponentials_changed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ k.mT * SCALE).exp()
    out = e @ v
    e.mul_(2)
    return out / e.sum(-1, keepdim=True)


def late_by_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e, v = (q @ k.mT * SCALE).exp(), v.repeat(1, 1, 1, TOKENS // WIDTH)
    return e @ v / e.sum(-2, keepdim=True)


def floored(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ k.mT * SCALE).exp()
    return torch.div(e, e.sum(-1, keepdim=True), rounding_mode="floor") @ v


UNREAD = "written out: its exponentials and their sum are not read as a softmax"
TALK = torch.eye(HEADS).flip(0)
COLUMN = torch.randn(TOKENS, generator=torch.Generator().manual_seed(3))

LEFT: dict[str, tuple[Call, str]] = {
    "returned": (returned, "written out: the weights are used elsewhere too"),
    "scores_seen": (scores_seen, "written out: the scores are used elsewhere too"),
    "partly_normalised": (
        lambda q, k, v: torch.sub(s := q @ k.mT, s.logsumexp(-1, keepdim=True), alpha=0.9).exp() @ v,
        "written out: ",
    ),
    "gated": (
        lambda q, k, v: ((q @ k.mT).softmax(-1) * 0.5) @ v,
        "written out: mul between the softmax and the values",
    ),
    "mask_after": (
        lambda q, k, v: (q @ k.mT).softmax(-1).masked_fill(~padding(), 0.0) @ v,
        "written out: masked_fill between the softmax and the values",
    ),
    "capped": (lambda q, k, v: (q @ k.mT).tanh().softmax(-1) @ v, "written out: tanh between the product and"),
    "clamped": (lambda q, k, v: (q @ k.mT).clamp(-5, 5).softmax(-1) @ v, "written out: clamp between the product"),
    "talking": (
        lambda q, k, v: F.linear((q @ k.mT).movedim(1, -1), TALK).movedim(-1, 1).softmax(-1) @ v,
        "written out: movedim between the product and the softmax",
    ),
    "wrong_keys": (
        lambda q, k, v: (q @ k.mT).softmax(-2) @ v,
        "written out: the values broadcast, or are not summed over the keys",
    ),
    "shared_keys": (
        lambda q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v,
        "written out: queries, keys and values broadcast",
    ),
    "shared_values": (lambda q, k, v: (q @ k.mT).softmax(-1) @ v[:, :1], "written out: queries, keys and values"),
    "shared_values_regrouped": (
        lambda q, k, v: (merged(q) @ merged(k).mT).view(BATCH, HEADS, TOKENS, TOKENS).softmax(-1) @ v[:, :1],
        "written out: queries, keys and values broadcast",
    ),
    "shared_values_merged": (
        lambda q, k, v: torch.matmul((merged(q) @ merged(k).mT).softmax(-1), v[0, :1]),
        "written out: queries, keys and values broadcast",
    ),
    "one_key_head": (
        lambda q, k, v: torch.einsum("bhid,bjd->bhij", q, k[:, 0]).softmax(-1) @ v,
        "written out: queries and keys broadcast",
    ),
    "key_factor": (
        lambda q, k, v: (q @ k.mT * COLUMN).softmax(-1) @ v,
        "written out: scores multiplied by a tensor that differs between keys",
    ),
    "small_fill": (
        lambda q, k, v: (q @ k.mT).masked_fill(~padding(), -5.0).softmax(-1) @ v,
        "written out: masked scores filled with -5, which still has weight",
    ),
    "fill_made_small": (
        lambda q, k, v: ((q @ k.mT).masked_fill(~padding(), -1e4) * 0.01).softmax(-1) @ v,
        "written out: masked scores filled with -100",
    ),
    "fill_turned": (
        lambda q, k, v: ((q @ k.mT).masked_fill(~padding(), -1e9) * -1).softmax(-1) @ v,
        "written out: masked scores filled with 1e+09",
    ),
    "dropout": (lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.1) @ v, "written out: dropout 0.1"),
    "regrouped_tokens": (
        lambda q, k, v: (
            (q @ k.mT).view(BATCH, HEADS, TOKENS * TOKENS // 16, 16).softmax(-1).view(BATCH, HEADS, 144, 144) @ v
        ),
        "written out: view across queries and keys",
    ),
    "mutated_queries": (mutated_queries, "written out: a tensor it reads is changed in place"),
    "mutated_view": (mutated_view, "written out: setitem between the product and the softmax"),
    "mutated_mask": (mutated_mask, "written out: a tensor it reads is changed in place"),
    "mutated_scaled": (mutated_scaled, "written out: a tensor it reads is changed in place"),
    "late_seen": (late_seen, "written out: the weights are used elsewhere too"),
    "late_sum_seen": (late_sum_seen, "written out: the weights are used elsewhere too"),
    "late_values_changed": (late_values_changed, "written out: a tensor it reads is changed in place"),
    "late_exponentials_changed": (late_exponentials_changed, "written out: the weights are used elsewhere too"),
    "late_by_queries": (late_by_queries, "written out: the values broadcast, or are not summed over the keys"),
    "floored": (floored, UNREAD),
    "part": (
        lambda q, k, v: (q[:, :, :140] @ k.mT).softmax(-1) @ v,
        "part of the queries: 140 of 144",
    ),
    "part_by_bmm": (
        lambda q, k, v: torch.bmm((merged(q).chunk(2, 1)[1] @ merged(k).mT).softmax(-1), merged(v)),
        "part of the queries: 72 of 144",
    ),
    "cross": (
        lambda q, k, v: (q @ k[:, :, :140].mT).softmax(-1) @ v[:, :, :140],
        "cross-attention: 144 queries, 140 keys",
    ),
    "precise_scores": (precise_scores, "torch.float32 scores and torch.bfloat16 values under autocast"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_plain_attention_is_left_with_its_reason(name: str) -> None:
    call, reason = LEFT[name]
    q, k, v = tensors()
    torch.manual_seed(0)
    outcome = recognise(call, q, k, v)
    assert outcome.before == outcome.after
    reasons = outcome.reasons()
    assert len(reasons) == 1
    assert reasons[0].startswith(reason)
    torch.manual_seed(0)
    torch.testing.assert_close(outcome.out, call(q.clone(), k.clone(), v.clone()))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch on attention under vmap
def test_transformed_functions_are_left() -> None:
    outcome = recognise(lambda q, k, v: torch.vmap(PRODUCTS["operator"])(q[None], k[None], v[None]), *tensors())
    assert outcome.before == outcome.after


def test_gradients_keep_it_as_it_is() -> None:
    outcome = recognise(PRODUCTS["operator"], *tensors(), grad=True)
    assert outcome.before == outcome.after
    assert outcome.reasons()[0].startswith("gradients required")
    outcome.out.sum().backward()


def test_short_sites_are_not_touched() -> None:
    outcome = recognise(PRODUCTS["operator"], *tensors(), min_blocks=3)
    assert outcome.before == outcome.after
    assert outcome.reasons() == ["short: 144 tokens are fewer than min_blocks=3 blocks of 128"]


def test_symbolic_sizes_stay_symbolic() -> None:
    """Another length runs the same graph, also where the stack is reshaped."""
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        recognise_attention(gm, Ledger(Options(carving=Carving(min_blocks=1))))
        graphs.append(gm)
        return gm.forward

    def call(x: Tensor) -> Tensor:
        weights = (merged(x) @ merged(x / 2).mT * x.shape[-1] ** -0.5).view(BATCH, HEADS, x.shape[2], -1).softmax(-1)
        return (weights @ x).transpose(1, 2)

    torch._dynamo.reset()
    compiled = torch.compile(Caller(call), backend=backend, fullgraph=True)
    for tokens in (144, 137, 129):
        x = tensors()[0][:, :, :tokens].contiguous()
        torch._dynamo.mark_dynamic(x, 2)
        with torch.no_grad():
            assert_rounding(compiled(x), exact(x, x / 2, x).transpose(1, 2), call(x), x)
    (gm,) = graphs
    assert len(gm.graph.find_nodes(op="call_function", target=sdpa)) == 1


def test_lengths_that_are_equal_by_chance_are_left() -> None:
    outcome = recognise(PRODUCTS["operator"], *tensors(), dynamic=True)
    assert outcome.before == outcome.after
    assert outcome.reasons() == ["cross-attention: 144 queries, 144 keys, as many only by chance"]


def test_later_views_find_the_strides_they_were_traced_with() -> None:
    q, k, v = tensors()
    check(
        lambda q, k, v: PRODUCTS["operator"](q, k, v).view(BATCH * HEADS, -1),
        q,
        k,
        v,
        exact(q, k, v).flatten(0, 1).flatten(1),
    )
    turned = PRODUCTS["einsum_tokens_first"]
    check(
        lambda q, k, v: turned(q, k, v).transpose(1, 2).flatten(2), q, k, v, exact(q, k, v).transpose(1, 2).flatten(2)
    )


class Block(nn.Module):
    """Self-attention over a grid of video tokens, written out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name = name
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        if self.name in KEY_MASKS:
            out = KEY_MASKS[self.name](query @ key.mT * SCALE, padding()).softmax(-1) @ value
        else:
            out = PRODUCTS[self.name](query, key, value)
        return x + out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", ["operator", "baddbmm", "einsum_tokens_first", "five_dimensions", "fill", "where"])
def test_the_backend_carves_it(name: str) -> None:
    reports: list[Report] = []
    model, x = Block(name).eval(), torch.randn(BATCH, TOKENS, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))
    options = {"inner": "eager", "keep": 1.0, "min_blocks": 2, "grid": GRID, "on_report": reports.append}
    torch._dynamo.reset()
    with torch.no_grad():
        out = torch.compile(model, backend=jenga, options=options, fullgraph=True)(x)
        eager = model(x)
        model.name = name if name in KEY_MASKS else "operator"
        truth = model.double()(x.double())
    assert_rounding(out, truth, eager, eager)
    (report,) = reports
    assert (report.seen, report.carved) == (1, 1), report


def test_every_site_of_a_graph_is_entered_once() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        v = PRODUCTS["operator"](q, k, v)
        v = sdpa(q, k, v)
        v, weights = returned(q, k, v)
        v = v + weights.mean()
        return PRODUCTS["bmm"](q, k, v)

    outcome = recognise(call, *tensors())
    reasons = outcome.reasons()
    assert len(reasons) == 4
    assert sum("used elsewhere" in reason for reason in reasons) == 1


LOGITS: tuple[Call, ...] = (
    lambda q, k, by: q @ k.transpose(-1, -2) * by,
    lambda q, k, by: torch.einsum("bhid,bhjd->bhij", q * by**0.5, k * by**0.5),
    lambda q, k, by: torch.baddbmm(merged(q)[:, :, :1], merged(q), merged(k).mT, beta=0, alpha=by).view(
        BATCH, HEADS, TOKENS, TOKENS
    ),
    lambda q, k, by: torch.einsum("bihd,bjhd->bhij", q.transpose(1, 2) / 2, k.transpose(1, 2)).mul_(2 * by),
)
RESULTS: tuple[Call, ...] = (
    lambda w, v: w @ v,
    lambda w, v: torch.bmm(w.view(-1, TOKENS, TOKENS), merged(v)).view(v.shape),
    lambda w, v: torch.einsum("bhij,bjhd->bihd", w.contiguous(), tokens_first(v)).transpose(1, 2),
)


@pytest.mark.parametrize("seed", range(8))
def test_any_spelling_of_a_part_goes_with_any_other(seed: int) -> None:
    draw = random.Random(seed)
    q, k, v = tensors(draw.choice([torch.float32, torch.float64, HALF]), seed)
    logits, results, mask = draw.choice(LOGITS), draw.choice(RESULTS), draw.choice([*KEY_MASKS.values()])
    softmax = SOFTMAXES[draw.choice(["stable", "log_softmax", "module", "typed", "dropout"])]
    keep = padding()
    added = torch.zeros(keep.shape, dtype=torch.double).masked_fill(~(keep & keep[:1]), -INF)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return results(softmax(mask(mask(logits(q, k, SCALE), keep), keep[:1])).to(v.dtype), v)

    check(call, q, k, v, exact(q, k, v, added))
