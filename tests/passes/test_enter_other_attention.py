"""What is attention but no SDPA call is in the report too, with its sizes; what only looks like it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from jenga_compile import Report, explain
from jenga_compile.backend import jenga

WEIGHT = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
CODEBOOK = nn.Parameter(WEIGHT)
Call = Callable[[Tensor], Tensor]


def heads(x: Tensor) -> Tensor:
    """[B, L, 16] -> [B, 2, L, 8]"""
    return x.unflatten(-1, (2, 8)).transpose(1, 2)


def matmul(x: Tensor) -> Tensor:
    q = heads(x)
    return (q @ q.mT).softmax(-1) @ q


def mixed_precision(x: Tensor) -> Tensor:
    q = heads(x).bfloat16()
    weights = F.softmax(torch.matmul(q, q.mT), dim=-1, dtype=torch.float32)
    return torch.matmul(F.dropout(weights, 0.1, training=False).to(q.dtype), q)


def batched(x: Tensor) -> Tensor:
    q = heads(x).flatten(0, 1)
    return torch.bmm(torch.softmax(torch.baddbmm(torch.zeros(1), q, q.mT), dim=2), q)


def einsum(x: Tensor) -> Tensor:
    q = heads(x)
    weights = torch.einsum("bhld,bhsd->bhls", q, q).softmax(dim=-1)
    return torch.einsum("bhls,bhsd->blhd", weights, q)


def keys_first(x: Tensor) -> Tensor:
    q = heads(x)
    return (q @ q.mT).softmax(-2).mT @ q


WRITTEN_OUT: dict[str, Call] = {
    "matmul": matmul,
    "float32 softmax": mixed_precision,
    "einsum": einsum,
    "keys first": keys_first,
    "special": lambda x: torch.special.softmax(heads(x) @ heads(x).mT, dim=-1) @ heads(x),
    "aten": lambda x: torch.ops.aten._softmax(heads(x) @ heads(x).mT, -1, False) @ heads(x),
    "in a checkpoint": lambda x: checkpoint(matmul, x, use_reentrant=False),
}

NO_ATTENTION: dict[str, Call] = {
    "softmax of features": lambda x: F.linear(x, WEIGHT).softmax(-1) * x,
    "over another dimension": lambda x: x.softmax(1) @ WEIGHT,
    "gate before a projection": lambda x: (x.softmax(-1) * x) @ WEIGHT,
    "codebook": lambda x: (x @ CODEBOOK).softmax(-1) @ CODEBOOK,
    "a module with the name": lambda x: F.linear(x, WEIGHT),
}


def scores(x: Tensor) -> Tensor:
    return heads(x) @ heads(x).mT * 0.3


def sink(x: Tensor) -> Tensor:
    s = scores(x)
    return torch.cat([s, s.new_zeros(3, 2, 24, 1)], -1).softmax(-1)[..., :-1] @ heads(x)


def sink_ahead(x: Tensor) -> Tensor:
    s = torch.cat((torch.ones(1, 2, 1, 1).expand(3, 2, 24, 1), scores(x)), dim=-1)
    s = s - s.max(dim=-1, keepdim=True).values
    return F.softmax(s, dim=-1, dtype=torch.float32).narrow(-1, 1, 24) @ heads(x)


def sink_late(x: Tensor) -> Tensor:
    s = scores(x)
    top = s.amax(-1, keepdim=True)
    e = (s - top).exp()
    return e @ heads(x) / (e.sum(-1, keepdim=True) + (0.5 - top).exp())


def softmax1(x: Tensor) -> Tensor:
    e = scores(x).exp()
    return e / (1 + e.sum(-1, keepdim=True)) @ heads(x)


def masked_exponentials(x: Tensor) -> Tensor:
    e = scores(x).exp() * torch.ones(24)
    return (e @ heads(x)) * e.sum(dim=[-1])[..., None].reciprocal()


def manual_logarithm(x: Tensor) -> Tensor:
    s = scores(x)
    return (s - s.exp().sum(-1, keepdim=True).log()).exp() @ heads(x)


def logarithm_and_sink(x: Tensor) -> Tensor:
    s = scores(x)
    return (s - F.softplus(s.logsumexp(-1, keepdim=True))).exp() @ heads(x)


def two_values(x: Tensor) -> Tensor:
    e = scores(x).exp()
    total = e.sum(-1, keepdim=True)
    return (e @ heads(x)) / total + (e @ heads(x * 2)) / total


UNREAD = "its exponentials and their sum are not read as a softmax"
NORMALISED: dict[str, tuple[Call, str]] = {
    "sink": (sink, "cat between the product and the softmax"),
    "sink ahead": (sink_ahead, "cat between the product and the softmax"),
    "sink padded": (
        lambda x: F.pad(scores(x), (0, 1)).softmax(-1).split([24, 1], -1)[0] @ heads(x),
        "pad between the product and the softmax",
    ),
    "sink late": (sink_late, UNREAD),
    "softmax1": (softmax1, UNREAD),
    "masked exponentials": (masked_exponentials, UNREAD),
    "powers of two": (lambda x: (e := scores(x).exp2()) / e.sum(-1, True) @ heads(x), UNREAD),
    "manual logarithm": (manual_logarithm, UNREAD),
    "logarithm and sink": (logarithm_and_sink, UNREAD),
    "two values": (two_values, "the weights are used elsewhere too"),
}

NOT_NORMALISED: dict[str, Call] = {
    "exponentials": lambda x: scores(x).exp() @ heads(x),
    "kernel": lambda x: (scores(x) - heads(x).square().sum(-1, keepdim=True)).exp() @ heads(x),
    "sum of something else": lambda x: scores(x).exp() @ heads(x) / heads(x).sum(-1, keepdim=True),
    "no values": lambda x: (e := scores(x).exp()) / e.sum(-1, keepdim=True),
    "of no product": lambda x: (e := heads(x).exp()) / (1 + e.sum(-1, keepdim=True)) @ heads(x).mT,
    "of a projection": lambda x: (e := (x @ CODEBOOK).exp()) / (1 + e.sum(-1, keepdim=True)) @ x.mT,
    "cut from features": lambda x: x[..., :4].softmax(-1) @ WEIGHT[:4],
    "cut from a projection": lambda x: torch.cat([x @ CODEBOOK, x], -1).softmax(-1)[..., :16] @ WEIGHT,
}


class Attention(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def sites(model: nn.Module, **options: object) -> Report:
    torch._dynamo.reset()
    return explain(model.eval(), torch.randn(3, 24, 16), options={"min_blocks": 1, **options})


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_attention_written_out_is_entered(name: str) -> None:
    (site,) = sites(Attention(WRITTEN_OUT[name]), min_blocks=8).sites
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (3, 2, 24, 24, 8)
    assert site.decision == "left"
    assert site.reason == "short: 24 tokens are fewer than min_blocks=8 blocks of 128"
    assert not site.intended


def with_weights(x: Tensor) -> Tensor:
    weights = (heads(x) @ heads(x).mT).softmax(-1)
    return (weights @ heads(x)) * weights.sum()


def test_large_attention_that_cannot_be_rewritten_is_meant_to_be_carved() -> None:
    (site,) = sites(Attention(with_weights)).sites
    assert site.reason == "written out: the weights are used elsewhere too"
    assert site.intended


@pytest.mark.parametrize("name", NORMALISED)
def test_attention_with_another_normalisation_is_entered_once(name: str) -> None:
    call, reason = NORMALISED[name]
    (site,) = sites(Attention(call)).sites
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (3, 2, 24, 24, 8)
    assert site.reason == f"written out: {reason}"
    assert site.intended
    assert not sites(Attention(call), min_blocks=8).sites[0].intended


@pytest.mark.parametrize("name", NOT_NORMALISED)
def test_what_is_not_normalised_over_keys_is_not_entered(name: str) -> None:
    assert sites(Attention(NOT_NORMALISED[name])).seen == 0


def test_keys_of_two_kinds_are_entered_once() -> None:
    def joint(x: Tensor) -> Tensor:
        text = heads(x[:, :5])
        weights = torch.cat([heads(x) @ text.mT, scores(x)], -1).softmax(-1)
        return weights[..., :5] @ text + weights[..., 5:] @ heads(x)

    (site,) = sites(Attention(joint)).sites
    assert (site.queries, site.keys) == (24, 24)
    assert site.reason == "written out: cat between the product and the softmax"
    assert site.intended


def test_strict_finds_a_sink() -> None:
    torch._dynamo.reset()
    options = {"inner": "eager", "min_blocks": 1, "strict": True}
    compiled = torch.compile(Attention(sink), backend=jenga, options=options)
    with (
        torch.no_grad(),
        pytest.raises(BackendCompilerFailed, match="written out: cat between the product"),
    ):
        compiled(torch.randn(3, 24, 16))


def part(x: Tensor) -> Tensor:
    q = heads(x)
    return torch.cat([(one @ q.mT).softmax(-1) @ q for one in q.chunk(2, 2)], 2)


def test_parts_of_the_queries_are_meant_to_be_carved() -> None:
    found = sites(Attention(part)).sites
    assert [site.reason for site in found] == ["part of the queries: 12 of 24"] * 2
    assert [(site.queries, site.keys, site.intended) for site in found] == [(12, 24, True)] * 2


def test_parts_of_queries_that_cannot_be_read_are_meant_to_be_carved() -> None:
    def call(x: Tensor) -> Tensor:
        e = (heads(x)[:, :, :7] @ heads(x).mT).exp()
        return e / (1 + e.sum(-1, keepdim=True)) @ heads(x)

    (site,) = sites(Attention(call)).sites
    assert (site.queries, site.keys, site.intended) == (7, 24, True)


def test_a_part_of_the_queries_of_other_functions_is_meant_to_be_carved() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    flex, own = sites(
        Attention(lambda x: layer(x[:, :9], x, x)[0] + flex_attention(heads(x)[:, :, :9], heads(x), heads(x)).sum())
    ).sites
    assert {flex.reason, own.reason} >= {"part of the queries: 9 of 24"}
    assert flex.intended
    assert own.intended


def test_the_path_is_that_of_the_product_with_the_values() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Inner()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attn(heads(x))
            return out

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.Softmax(dim=-1)

        def forward(self, q: Tensor) -> Tensor:
            out: Tensor = self.attend(q @ q.mT) @ q
            return out

    (site,) = sites(Outer(), min_blocks=8).sites
    assert site.path == "attn"


def test_batched_heads_count_as_batch() -> None:
    (site,) = sites(Attention(batched), min_blocks=8).sites
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (6, 1, 24, 24, 8)


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_is_no_attention_is_not_entered(name: str) -> None:
    assert sites(Attention(NO_ATTENTION[name])).seen == 0


class Layer(nn.Module):
    """PyTorch's layer, tokens first or batch first."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.attn = nn.MultiheadAttention(16, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        key = x[:, :5] if self.batch_first else x[:5]
        out: Tensor = self.attn(x, key, key)[0]
        return out


@pytest.mark.parametrize("batch_first", [True, False])
def test_pytorchs_attention_layer_is_entered(batch_first: bool) -> None:
    (site,) = sites(Layer(batch_first=batch_first)).sites
    assert site.path == "attn"
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (3, 2, 24, 5, 8)
    assert site.reason == "cross-attention: 24 queries, 5 keys"
    assert not site.intended


def test_pytorchs_encoder_layer_is_entered() -> None:
    (site,) = sites(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), min_blocks=8).sites
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (3, 2, 24, 24, 8)
    assert site.reason == "short: 24 tokens are fewer than min_blocks=8 blocks of 128"


def test_a_large_layer_that_cannot_be_opened_is_meant_to_be_carved() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    (site,) = sites(Attention(lambda x: layer(x, x, x)[1])).sites
    assert site.reason == "need_weights: the weights are asked for"
    assert site.intended


def test_keywords_are_read_as_well() -> None:
    layer = nn.MultiheadAttention(16, 2)

    def call(x: Tensor) -> Tensor:
        weights = (layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0)
        named = {"embed_dim_to_check": 16, "num_heads": 2, "out_proj_weight": layer.out_proj.weight}
        names = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p")
        named |= dict(zip(names, weights, strict=True)) | {"out_proj_bias": layer.out_proj.bias}
        x = x.transpose(0, 1)
        out: Tensor = F.multi_head_attention_forward(query=x, key=x, value=x, training=False, **named)[0]
        return out

    (site,) = sites(Attention(call), min_blocks=8).sites
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (3, 2, 24, 24, 8)


def test_flex_attention_is_entered() -> None:
    (site,) = sites(Attention(lambda x: flex_attention(heads(x), heads(x), heads(x)))).sites
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (3, 2, 24, 24, 8)
    assert site.reason.startswith("flex_attention")
