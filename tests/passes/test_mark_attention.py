"""SDPA is marked in every call form; what is no plain self-attention is entered with its reason and not touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from jenga_compile.config import Carving, Options
from jenga_compile.passes.graph import graphs_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.mark_attention import mark_attention
from jenga_compile.passes.site import ATTENTION

sdpa = F.scaled_dot_product_attention
Call = Callable[[Tensor, Tensor, Tensor], Tensor]

FIRES: dict[str, Call] = {
    "positional": lambda q, k, v: sdpa(q, k, v),
    "keywords": lambda q, k, v: sdpa(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=False),
    "mixed": lambda q, k, v: sdpa(q, k, value=v, scale=0.5, enable_gqa=False),
    "mask": lambda q, k, v: sdpa(q, k, v, torch.ones(1, 1, 1, 16, dtype=torch.bool)),
    "narrow_values_seen_flat": lambda q, k, v: sdpa(q, k, v[..., :5]).view(4, 80),
    "double_seen_flat": lambda q, k, v: sdpa(q.double(), k.double(), v.double()).view(4, 128),
    "torch_alias": lambda q, k, v: torch._C._nn.scaled_dot_product_attention(q, k, v),
}

STAYS_AWAY: dict[str, tuple[Call, str]] = {
    "cross": (lambda q, k, v: sdpa(q, k[:, :, :7], v[:, :, :7]), "cross-attention: 16 queries, 7 keys"),
    "causal": (lambda q, k, v: sdpa(q, k, v, is_causal=True), "causal attention"),
    "dropout": (lambda q, k, v: sdpa(q, k, v, dropout_p=0.5), "dropout 0.5"),
    "grouped": (
        lambda q, k, v: sdpa(q, k[:, :1], v[:, :1], enable_gqa=True),
        "grouped-query attention: 2 query heads, 1 key heads",
    ),
    "broadcast_batch": (
        lambda q, k, v: sdpa(q, k[:1], v[:1]),
        "broadcast: keys [1, 2, 16, 8] and values [1, 2, 16, 8]",
    ),
    "broadcast_value": (lambda q, k, v: sdpa(q, k, v[:1]), "broadcast: keys [2, 2, 16, 8] and values [1, 2, 16, 8]"),
    "empty_batch": (lambda q, k, v: sdpa(q[:0], k[:0], v[:0]), "empty: queries [0, 2, 16, 8]"),
    "transformed": (
        lambda q, k, v: torch.vmap(lambda x: sdpa(x, x, x))(q[:, None]),
        "inside a torch.func transform",
    ),
    "three_dimensions": (lambda q, k, v: sdpa(q[:, 0], k[:, 0], v[:, 0]), "short: 16 tokens"),
    "three_dimensions_cross": (lambda q, k, v: sdpa(q[0], k[0, :, :7], v[0, :, :7]), "cross-attention: 16 queries, 7"),
    "three_dimensions_grouped": (
        lambda q, k, v: sdpa(q[0], k[0, :1], v[0, :1], enable_gqa=True),
        "grouped-query attention: 2 query heads, 1 key heads",
    ),
    "three_dimensions_broadcast": (lambda q, k, v: sdpa(q[0], k[0, :1], v[0, :1]), "broadcast: keys [1, 16, 8]"),
    "keys_of_three_dimensions": (lambda q, k, v: sdpa(q, k[0], v[0]), "broadcast: keys [2, 16, 8] and values"),
    "mask_of_one_dimension": (
        lambda q, k, v: sdpa(q[0], k[0], v[0], torch.ones(16, dtype=torch.bool)),
        "1-dimensional mask for 3-dimensional queries",
    ),
    "two_dimensions": (lambda q, k, v: sdpa(q[0, 0], k[0, 0], v[0, 0]), "2 dimensions: expected [batch, heads"),
    "five_dimensions": (lambda q, k, v: sdpa(q[None], k[None], v[None]), "5 dimensions: expected [batch, heads"),
}

PARTS: dict[str, Call] = {
    "slice": lambda q, k, v: sdpa(q[:, :, 4:9], k, v),
    "ellipsis": lambda q, k, v: sdpa(q[..., 4:9, :], k, v),
    "index": lambda q, k, v: sdpa(q.unsqueeze(1)[:, 0, :, :5], k, v),
    "chunk": lambda q, k, v: sdpa(q.chunk(2, 2)[1], k, v),
    "split": lambda q, k, v: sdpa(torch.split(q, [5, 11], dim=-2)[0], k, v),
    "tensor_split": lambda q, k, v: sdpa(q.tensor_split(3, 2)[2], k, v),
    "narrow": lambda q, k, v: sdpa(q.narrow(2, 3, 7), k, v),
    "twice": lambda q, k, v: sdpa(q.narrow(2, 1, 14)[:, :, :3], k, v),
    "before_heads": lambda q, k, v: sdpa(
        q.transpose(1, 2).flatten(2).chunk(2, 1)[0].unflatten(-1, (2, 8)).transpose(1, 2), k, v
    ),
    "before_projection": lambda q, k, v: sdpa(F.linear(q[:, :, :9], torch.eye(8)).unbind(0)[0][None], k[:1], v[:1]),
    "before_rotation": lambda q, k, v: sdpa(0.5 * q[:, :, :9] + q[:, :, :9].flip(-1), k, v),
    "before_product": lambda q, k, v: sdpa(torch.einsum("bhld,de->bhle", q[:, :, :9], torch.eye(8)), k, v),
    "packed": lambda q, k, v: sdpa(torch.stack([q, k])[:, :, :, :5].select(0, 0), k, v),
    "two": lambda q, k, v: sdpa(q[0, :, :5], k[0], v[0]),
}

NO_PARTS: dict[str, Call] = {
    "of_more": lambda q, k, v: sdpa(q.repeat(1, 1, 3, 1)[:, :, :5], k, v),
    "of_heads": lambda q, k, v: sdpa(q.repeat(1, 1, 1, 2)[:, :, :5, :8].repeat(1, 1, 2, 1), k, v),
    "not_cut": lambda q, k, v: sdpa(torch.ones(2, 2, 5, 8), k, v),
    "mixed": lambda q, k, v: sdpa(torch.ones(5, 16) @ q, k, v),
    "gathered": lambda q, k, v: sdpa(q[:, :, torch.arange(5)], k, v),
    "more_queries": lambda q, k, v: sdpa(q, k[:, :, :7], v[:, :, :7]),
}


class Caller(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.call(q, k, v)


def marked(
    call: Call, *, requires_grad: bool = False, min_blocks: int = 8
) -> tuple[GraphModule, Ledger, Tensor, Tensor]:
    torch._dynamo.reset()
    ledger = Ledger(Options(carving=Carving(min_blocks=min_blocks)))
    kept: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Tensor]:
        mark_attention(gm, ledger)
        kept.append(gm)
        return gm.forward

    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 2, 16, 8, generator=random).requires_grad_(requires_grad) for _ in range(3)]
    with torch.set_grad_enabled(requires_grad):
        torch.manual_seed(0)
        plain = Caller(call)(*inputs)
        torch.manual_seed(0)
        out = torch.compile(Caller(call), backend=backend, fullgraph=True)(*inputs)
    return kept[0], ledger, plain, out


@pytest.mark.parametrize("name", FIRES)
def test_every_call_form_is_marked_and_bit_identical(name: str) -> None:
    gm, ledger, plain, out = marked(FIRES[name])
    assert len(gm.graph.find_nodes(op="call_function", target=ATTENTION)) == 1
    assert not gm.graph.find_nodes(op="call_function", target=sdpa)
    assert ledger.report().seen == 1
    assert torch.equal(plain, out)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch on attention under vmap
@pytest.mark.parametrize("name", STAYS_AWAY)
def test_other_attention_is_entered_and_not_touched(name: str) -> None:
    call, reason = STAYS_AWAY[name]
    gm, ledger, plain, out = marked(call)
    assert not gm.graph.find_nodes(op="call_function", target=ATTENTION)
    (site,) = ledger.report().sites
    assert site.decision == "left"
    assert site.reason.startswith(reason)
    assert torch.equal(plain, out)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_queries_is_large_self_attention(name: str) -> None:
    gm, ledger, plain, out = marked(PARTS[name], min_blocks=1)
    assert not gm.graph.find_nodes(op="call_function", target=ATTENTION)
    (site,) = ledger.report().sites
    assert site.reason == f"part of the queries: {site.queries} of 16"
    assert site.intended
    assert torch.equal(plain, out)


@pytest.mark.parametrize("name", NO_PARTS)
def test_queries_that_are_no_part_of_the_tokens_are_cross_attention(name: str) -> None:
    _, ledger, _, _ = marked(NO_PARTS[name], min_blocks=1)
    (site,) = ledger.report().sites
    assert site.reason == f"cross-attention: {site.queries} queries, {site.keys} keys"
    assert not site.intended


def test_a_part_of_short_self_attention_is_not_meant_to_be_carved() -> None:
    _, ledger, _, _ = marked(PARTS["chunk"])
    (site,) = ledger.report().sites
    assert site.reason == "part of the queries: 8 of 16"
    assert not site.intended


class Biased(nn.Module):
    """A learned bias is the only thing that needs gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return sdpa(x, x, x, attn_mask=self.bias)


def test_a_learned_mask_alone_needs_gradients() -> None:
    ledger, model, x = Ledger(Options()), Biased(), torch.randn(2, 2, 16, 8)

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Tensor]:
        mark_attention(gm, ledger)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(x).sum().backward()
    assert ledger[0].reason.startswith("gradients required")
    assert model.bias.grad is not None


def test_attention_inside_a_checkpoint_is_marked() -> None:
    gm, ledger, plain, out = marked(lambda q, k, v: checkpoint(sdpa, q, k, v, use_reentrant=False))
    bodies = [module for module in graphs_of(gm) if module is not gm]
    assert [len(body.graph.find_nodes(op="call_function", target=ATTENTION)) for body in bodies] == [1]
    assert ledger.report().seen == 1
    assert torch.equal(plain, out)


def test_gradients_keep_attention_dense_and_differentiable() -> None:
    gm, ledger, plain, out = marked(FIRES["positional"], requires_grad=True)
    assert not gm.graph.find_nodes(op="call_function", target=ATTENTION)
    assert ledger.report().sites[0].reason.startswith("gradients required")
    out.sum().backward()
    assert torch.equal(plain, out)
