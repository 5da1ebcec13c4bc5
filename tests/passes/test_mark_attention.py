"""SDPA is marked in every call form; what is no plain self-attention is entered with its reason and not touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from jenga_compile.config import Options
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
    "three_dimensions": (lambda q, k, v: sdpa(q[:, 0], k[:, 0], v[:, 0]), "3 dimensions: expected [batch"),
}


class Caller(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.call(q, k, v)


def marked(call: Call, *, requires_grad: bool = False) -> tuple[GraphModule, Ledger, Tensor, Tensor]:
    torch._dynamo.reset()
    ledger = Ledger(Options())
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
