"""What is attention but no SDPA call is in the report too, with its sizes; what only looks like it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from jenga_compile import Report, explain

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
