"""Attention whose heads are merged with the batch gets four dimensions under any mask; other calls stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from jenga_compile.config import Carving, Options
from jenga_compile.passes.add_heads import add_heads
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.mark_attention import mark_attention
from jenga_compile.passes.site import ATTENTION
from tests.passes.dynamo_graphs import Caller, Outcome, after_pass, compiled_as_eager
from tests.tolerance import assert_rounding, eager_attention

sdpa = F.scaled_dot_product_attention
Call = Callable[..., Any]
BATCH, HEADS, TOKENS, WIDTH = 2, 3, 144, 8
STACK = BATCH * HEADS
GRID = (4, 6, 6)


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[B*H, L, D]"""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(STACK, TOKENS, WIDTH, generator=generator).to(dtype) for _ in range(3)]


def keep(*shape: int) -> Tensor:
    """True where a key counts; every query sees some."""
    return torch.arange(math.prod(shape)).mul(2.3).sin().view(shape) > -0.6


def bias(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape)).mul(1.7).sin().view(shape)


def ranks(outcome: Outcome) -> list[int]:
    """Dimensions of the queries of every call."""
    calls = outcome.gm.graph.find_nodes(op="call_function", target=sdpa)
    queries = [call.args[0] if call.args else call.kwargs["query"] for call in calls]
    return [query.meta["example_value"].dim() for query in queries]


MASKS: dict[str, Tensor] = {
    "pairs": keep(TOKENS, TOKENS),
    "keys": keep(1, TOKENS),
    "stack": keep(STACK, TOKENS, TOKENS),
    "stack_keys": keep(STACK, 1, TOKENS),
    "one": keep(1, TOKENS, TOKENS),
    "one_keys": keep(1, 1, TOKENS),
    "stack_queries": bias(STACK, TOKENS, 1),
    "added_pairs": bias(TOKENS, TOKENS),
    "added_stack": bias(STACK, TOKENS, TOKENS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*MASKS, "none"])
def test_masks_get_the_dimension_that_they_lack(name: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype)
    mask, added = MASKS.get(name), None
    if mask is not None and mask.dtype is torch.bool:
        added = torch.zeros(mask.shape, dtype=torch.double).masked_fill(~mask, -math.inf)
    elif mask is not None:
        mask = mask.to(dtype)
        added = mask.double()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return sdpa(q, k, v, mask, scale=0.3)

    outcome = after_pass(add_heads, Caller(call), q, k, v)
    assert ranks(outcome) == [4]
    assert outcome.out.stride() == outcome.stride == call(q, k, v).stride()
    assert_rounding(outcome.out, eager_attention(q.double(), k.double(), v.double(), added, 0.3), call(q, k, v), v)
    assert outcome.reasons() == ["the compiler removed the call"]
    assert len(outcome.gm.graph.find_nodes(op="call_function", target=ATTENTION)) == 1


FIRES: dict[str, Call] = {
    "keywords": lambda q, k, v: sdpa(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=False),
    "values_of_another_width": lambda q, k, v: sdpa(q, k, v[..., :5]).view(STACK, -1),
    "gqa_of_one_head": lambda q, k, v: sdpa(q, k, v, enable_gqa=True),
    "seen_flat": lambda q, k, v: sdpa(q, k, v).view(STACK * TOKENS, WIDTH),
    "turned": lambda q, k, v: sdpa(q.mT.contiguous().mT, k, v.mT.contiguous().mT),
}


@pytest.mark.parametrize("name", FIRES)
def test_every_call_form(name: str) -> None:
    q, k, v = tensors()
    outcome = after_pass(add_heads, Caller(FIRES[name]), q, k, v)
    assert ranks(outcome) == [4]
    eager, truth = FIRES[name](q, k, v), FIRES[name](q.double(), k.double(), v.double())
    assert outcome.out.stride() == eager.stride()
    assert_rounding(outcome.out, truth, eager, v)


def test_autocast() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return sdpa(q, k, v)

    q, k, v = tensors()
    outcome = after_pass(add_heads, Caller(call), q, k, v)
    eager = call(q, k, v)
    assert ranks(outcome) == [4]
    assert outcome.out.dtype == eager.dtype == torch.bfloat16
    assert_rounding(outcome.out, sdpa(q.double(), k.double(), v.double()), eager, eager)


LEFT: dict[str, tuple[Call, str]] = {
    "four_dimensions": (lambda q, k, v: sdpa(q[None], k[None], v[None]), "the compiler removed the call"),
    "five_dimensions": (lambda q, k, v: sdpa(q[None, None], k[None, None], v[None, None]), "5 dimensions: expected"),
    "two_dimensions": (lambda q, k, v: sdpa(q[0], k[0], v[0]), "2 dimensions: expected"),
    "mask_of_one": (lambda q, k, v: sdpa(q, k, v, bias(TOKENS)), "1-dimensional mask for 3-dimensional queries"),
    "causal": (lambda q, k, v: sdpa(q, k, v, is_causal=True), "causal attention"),
    "dropout": (lambda q, k, v: sdpa(q, k, v, dropout_p=0.5), "dropout 0.5"),
    "cross": (lambda q, k, v: sdpa(q, k[:, :40], v[:, :40]), "cross-attention: 144 queries, 40 keys"),
    "part": (lambda q, k, v: sdpa(q[:, :40], k, v), "part of the queries: 40 of 144"),
    "grouped": (lambda q, k, v: sdpa(q, k[:1], v[:1], enable_gqa=True), "grouped-query attention: 6 query heads, 1"),
    "broadcast": (lambda q, k, v: sdpa(q, k[:1], v[:1]), "broadcast: keys [1, 144, 8] and values [1, 144, 8]"),
    "short": (lambda q, k, v: sdpa(q[:, :50], k[:, :50], v[:, :50]), "short: 50 tokens are fewer than min_blocks=2"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_carved_is_left_with_its_reason(name: str) -> None:
    call, reason = LEFT[name]
    torch.manual_seed(0)
    outcome = after_pass(add_heads, Caller(call), *tensors())
    assert outcome.before == outcome.after
    (found,) = outcome.reasons()
    assert found.startswith(reason)
    torch.manual_seed(0)
    assert torch.equal(outcome.out, call(*tensors()))


def test_gradients_keep_it_as_it_is() -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    outcome = after_pass(add_heads, Caller(sdpa), *inputs, grad=True)
    assert outcome.before == outcome.after
    assert outcome.reasons()[0].startswith("gradients required")


def test_symbolic_sizes_stay_symbolic() -> None:
    """Another length runs the same graph."""
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        ledger = Ledger(Options(carving=Carving(min_blocks=1)))
        add_heads(gm, ledger)
        mark_attention(gm, ledger)
        graphs.append(gm)
        return gm.forward

    torch._dynamo.reset()
    compiled = torch.compile(Caller(lambda x: sdpa(x, x / 2, x, keep(1, 1, 1))), backend=backend, fullgraph=True)
    for tokens in (144, 137):
        x = tensors()[0][:, :tokens].contiguous()
        torch._dynamo.mark_dynamic(x, 1)
        with torch.no_grad():
            assert_rounding(compiled(x), eager_attention(x.double(), x.double() / 2, x.double()), sdpa(x, x / 2, x), x)
    (gm,) = graphs
    assert len(gm.graph.find_nodes(op="call_function", target=ATTENTION)) == 1


class Block(nn.Module):
    """Self-attention over a grid of video tokens, heads merged with the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        query, key, value = (one.reshape(STACK, TOKENS, WIDTH) for one in packed.unbind(0))
        padding = torch.arange(TOKENS, device=x.device).expand(BATCH, TOKENS) < TOKENS - 9
        mask = padding[:, None, None].expand(-1, HEADS, -1, -1).flatten(0, 1)
        out = sdpa(query, key, value, mask).view(BATCH, HEADS, TOKENS, WIDTH)
        return x + out.transpose(1, 2).flatten(2)


def test_the_backend_carves_it() -> None:
    model, x = Block().eval(), torch.randn(BATCH, TOKENS, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))
    options = {"inner": "eager", "keep": 1.0, "min_blocks": 2, "grid": GRID}
    report = compiled_as_eager(model, x, options)
    assert (report.seen, report.carved) == (1, 1), report
