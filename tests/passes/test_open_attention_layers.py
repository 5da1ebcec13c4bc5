"""PyTorch's attention layers become projections around one call, round as they did, and what is more stays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from jenga_compile.config import Carving, Options
from jenga_compile.passes.enter_other_attention import enter_other_attention
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.open_attention_layers import open_attention_layers
from tests.passes.dynamo_graphs import Outcome, after_pass, compiled_as_eager
from tests.tolerance import assert_rounding

Call = Callable[..., Any]
BATCH, HEADS, TOKENS, WIDTH = 3, 2, 144, 16
LAYERS = ("multi_head_attention_forward", "_native_multi_head_attention", "_transformer_encoder_layer_fwd")


def tokens(batch: int = BATCH, width: int = WIDTH, seed: int = 0) -> Tensor:
    """[B, L, E]"""
    return torch.randn(batch, TOKENS, width, generator=torch.Generator().manual_seed(seed))


def ignored() -> Tensor:
    """[B, L]: True where a key does not count."""
    mask = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    mask[0, -9:] = mask[1, 3] = True
    return mask


def forbidden(*stack: int) -> Tensor:
    """[*stack, L, L]: True where a query does not see a key."""
    shape = (*stack, TOKENS, TOKENS)
    return torch.arange(math.prod(shape)).mul(2.3).sin().view(shape) > 0.6


def added(mask: Tensor) -> Tensor:
    """Numbers to add to the logits, some of them -inf."""
    numbers = torch.arange(mask.numel()).mul(1.7).sin().view(mask.shape)
    return numbers.masked_fill(mask, -math.inf)


class Layer(nn.Module):
    """`nn.MultiheadAttention` and the way it is called; biases are not zero."""

    def __init__(self, call: Call, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.call = call
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, **settings)
        for name, parameter in self.attn.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.attn, *inputs)


def opened(model: nn.Module, *inputs: Tensor, min_blocks: int = 2, grad: bool = False) -> Outcome:
    return after_pass(open_attention_layers, model, *inputs, min_blocks=min_blocks, grad=grad)


def double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def check(model: nn.Module, *inputs: Tensor) -> Outcome:
    """The pass fires, nothing of the layer is left, and the numbers are as near to the truth as eager's."""
    model.eval()
    outcome = opened(model, *inputs)
    assert outcome.calls == 1, outcome.reasons()
    assert not any(name in outcome.after for name in LAYERS)
    with torch.no_grad():
        eager = model(*inputs)
        truth = model.double()(*map(double, inputs))
    assert outcome.out.dtype == eager.dtype
    assert outcome.out.stride() == outcome.stride
    assert_rounding(outcome.out, truth, eager, eager)
    return outcome


def itself(attn: Call, x: Tensor, *others: Tensor, **named: Any) -> Any:
    return attn(x, *(others or (x, x)), **named)[0]


SETTINGS: dict[str, tuple[dict[str, Any], Call]] = {
    "tokens first": ({}, lambda attn, x: itself(attn, x.transpose(0, 1))),
    "batch first": ({"batch_first": True, "dropout": 0.3}, itself),
    "no weights": ({"batch_first": True}, lambda attn, x: itself(attn, x, need_weights=False)),
    "no batch": ({"batch_first": True}, lambda attn, x: itself(attn, x[0], average_attn_weights=False)),
    "no batch, masked": ({}, lambda attn, x: itself(attn, x[0], key_padding_mask=ignored()[0], need_weights=False)),
    "no batch, masks of heads": ({}, lambda attn, x: itself(attn, x[0], attn_mask=forbidden(HEADS))),
    "no bias": ({"bias": False}, lambda attn, x: itself(attn, x.transpose(0, 1))),
    "own widths": ({"kdim": 8, "vdim": 12, "batch_first": True}, lambda attn, x: attn(x, x[..., :8], x[..., 4:])[0]),
    "own widths, no bias": ({"kdim": 8, "bias": False}, lambda attn, x: attn(x[0], x[0, :, :8], x[0])[0]),
    "values apart": ({"batch_first": True}, lambda attn, x: attn(x + 1, x + 1, x)[0]),
    "keys apart": ({"bias": False}, lambda attn, x: itself(attn, *(t.transpose(0, 1) for t in (x, x.sin(), x.cos())))),
    "weights of no use": ({"batch_first": True}, lambda attn, x: (lambda out, _: out)(*attn(x, x, x))),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    settings, call = SETTINGS[name]
    check(Layer(call, **settings), tokens())


MASKS: dict[str, dict[str, Tensor]] = {
    "keys": {"key_padding_mask": ignored()},
    "keys by numbers": {"key_padding_mask": added(ignored())},
    "pairs": {"attn_mask": forbidden()},
    "pairs by numbers": {"attn_mask": added(forbidden())},
    "pairs of heads": {"attn_mask": forbidden(BATCH * HEADS)},
    "pairs of heads by numbers": {"attn_mask": added(forbidden(BATCH * HEADS))},
    "both": {"key_padding_mask": ignored(), "attn_mask": forbidden()},
    "both, of heads": {"key_padding_mask": ignored(), "attn_mask": forbidden(BATCH * HEADS)},
    "both by numbers": {"key_padding_mask": added(ignored()), "attn_mask": added(forbidden())},
}


@pytest.mark.parametrize(("name", "batch_first"), [(name, place % 2 == 0) for place, name in enumerate(MASKS)])
def test_masks(name: str, batch_first: bool) -> None:
    names, masks = list(MASKS[name]), list(MASKS[name].values())

    def call(attn: Call, x: Tensor, *given: Tensor) -> Any:
        x = x if batch_first else x.transpose(0, 1)
        return itself(attn, x, need_weights=batch_first, **dict(zip(names, given, strict=True)))

    check(Layer(call, batch_first=batch_first), tokens(), *masks)


MIXED = {
    "keys by numbers": {"key_padding_mask": added(ignored()), "attn_mask": forbidden()},
    "pairs by numbers": {"key_padding_mask": ignored(), "attn_mask": added(forbidden(BATCH * HEADS))},
}


def function(attn: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Any:
    """The function that the layer calls, on tokens first."""
    given = (attn.embed_dim, HEADS, attn.in_proj_weight, attn.in_proj_bias, attn.bias_k, attn.bias_v)
    out = attn.out_proj.weight, attn.out_proj.bias
    named = {"training": False, **named}
    return F.multi_head_attention_forward(query, key, value, *given, attn.add_zero_attn, attn.dropout, *out, **named)


def function_by_batch(attn: nn.MultiheadAttention, x: Tensor, **named: Any) -> Any:
    x = x.transpose(0, 1)
    return function(attn, x, x, x, **named)[0]


@pytest.mark.parametrize("name", ["keys", "pairs", "both, of heads"])
def test_the_function_takes_boolean_masks_and_they_stay_boolean(name: str) -> None:
    names, masks = list(MASKS[name]), list(MASKS[name].values())
    outcome = check(
        Layer(lambda attn, x, *given: function_by_batch(attn, x, **dict(zip(names, given, strict=True)))),
        tokens(),
        *masks,
    )
    (call,) = outcome.gm.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)
    assert call.kwargs["attn_mask"].meta["example_value"].dtype is torch.bool


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("name", MIXED)
def test_masks_of_two_types(name: str) -> None:
    names, masks = list(MIXED[name]), list(MIXED[name].values())
    check(
        Layer(lambda attn, x, *given: function_by_batch(attn, x, **dict(zip(names, given, strict=True)))),
        tokens(),
        *masks,
    )


def native(attn: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *given: Any) -> Any:
    weights = (attn.in_proj_weight, attn.in_proj_bias, attn.out_proj.weight, attn.out_proj.bias)
    return torch._native_multi_head_attention(query, key, value, WIDTH, HEADS, *weights, *given)


NATIVE: dict[str, Call] = {
    "weights of no use": lambda attn, x: native(attn, x, x, x)[0],
    "keys": lambda attn, x: native(attn, x, x, x, ignored(), False, True, 1)[0],
    "pairs": lambda attn, x: native(attn, x, x, x, forbidden(), True, True, 0)[0],
    "pairs of heads": lambda attn, x: native(attn, x, x, x, forbidden(BATCH, HEADS), False, True, 2)[0],
    "numbers count as a boolean": lambda attn, x: native(attn, x, x, x, forbidden().to(x.dtype) * 0.1, False, True, 0)[
        0
    ],
    "operator": lambda attn, x: torch.ops.aten._native_multi_head_attention.default(
        x, x, x, WIDTH, HEADS, attn.in_proj_weight, attn.in_proj_bias, attn.out_proj.weight, attn.out_proj.bias
    )[0],
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_layer(name: str) -> None:
    check(Layer(NATIVE[name]), tokens())


ENCODER_MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "keys": {"src_key_padding_mask": ignored()},
    "pairs": {"src_mask": forbidden()},
    "numbers count as a boolean": {"src_mask": forbidden() * 0.5},
    "both": {"src_mask": forbidden(BATCH * HEADS), "src_key_padding_mask": ignored()},
}


class Encoder(nn.Module):
    def __init__(self, masks: dict[str, Tensor], **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.masks = masks
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, **settings)
        for name, parameter in self.layer.named_parameters():
            if "norm" in name or "bias" in name:
                nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x, **{name: self.match(mask, x) for name, mask in self.masks.items()})
        return out

    def match(self, mask: Tensor, x: Tensor) -> Tensor:
        return mask.to(x.dtype) if mask.is_floating_point() else mask


@pytest.mark.parametrize(
    ("masks", "norm_first", "activation"),
    [
        ("none", False, "relu"),
        ("keys", False, "gelu"),
        ("pairs", True, "relu"),
        ("numbers count as a boolean", False, "gelu"),
        ("both", True, "gelu"),
    ],
)
def test_encoder_layer(masks: str, norm_first: bool, activation: str) -> None:
    settings = {"norm_first": norm_first, "activation": activation, "batch_first": True}
    outcome = check(Encoder(ENCODER_MASKS[masks], **settings), tokens())
    assert outcome.before.count("_transformer_encoder_layer_fwd") > 0


def test_encoder_layer_on_transposed_tokens() -> None:
    model, x = Encoder({}, batch_first=True, norm_first=True).eval(), tokens().mT.contiguous().mT
    outcome = opened(model, x)
    with torch.no_grad():
        eager, truth = model(x), model.double()(x.double())
    assert outcome.calls == 1
    assert outcome.out.stride() == eager.stride()
    assert_rounding(outcome.out, truth, eager, eager)


def test_encoder_layer_in_other_spellings() -> None:
    check(Encoder({}, batch_first=False), tokens(batch=TOKENS)[:, :BATCH])
    check(Encoder({}, batch_first=True, bias=False), tokens())
    check(Encoder({}, batch_first=True, activation=F.silu), tokens())


def test_half_precision() -> None:
    x = tokens()
    model = Layer(lambda attn, x: itself(attn, x, key_padding_mask=ignored()), batch_first=True).to(torch.bfloat16)
    check(model, x.to(torch.bfloat16))


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool) -> None:
    def call(attn: Call, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16) if inside else contextlib.nullcontext():
            return itself(attn, x.transpose(0, 1), key_padding_mask=ignored(), need_weights=inside)

    model, x = Layer(call).eval(), tokens()
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        outcome = opened(model, x)
        with torch.no_grad():
            eager = model(x)
    assert outcome.calls == 1
    (call_node,) = outcome.gm.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)
    assert call_node.meta["example_value"].dtype is torch.bfloat16
    assert outcome.out.stride() == eager.stride()
    with torch.no_grad():
        truth = itself(model.attn.double(), x.double().transpose(0, 1), key_padding_mask=ignored())
    assert_rounding(outcome.out, truth, eager, eager)


def test_in_the_body_of_a_checkpoint() -> None:
    model = Layer(lambda attn, x: checkpoint(lambda x: itself(attn, x), x, use_reentrant=False), batch_first=True)
    outcome = opened(model.eval(), tokens())
    assert outcome.reasons() == ["the compiler removed the call"]
    with torch.no_grad():
        eager, truth = model(tokens()), itself(model.attn.double(), tokens().double())
    assert_rounding(outcome.out, truth, eager, eager)


def test_later_views_find_the_strides_they_were_traced_with() -> None:
    model = Layer(lambda attn, x: itself(attn, x.transpose(0, 1)).view(BATCH * TOKENS, -1))
    assert opened(model.eval(), tokens()).calls == 1


def test_the_path_is_that_of_the_layer() -> None:
    outcome = opened(Layer(itself, batch_first=True).eval(), tokens())
    outcome.reasons()
    (site,) = outcome.ledger.report().sites
    assert site.path == "attn"
    assert (site.batch, site.heads, site.queries, site.keys, site.head_dim) == (BATCH, HEADS, TOKENS, TOKENS, 8)


def weights_too(attn: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = attn(x, x, x)
    return out


def under_autocast(attn: nn.MultiheadAttention, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return native(attn, x, x, x, None, False)[0]


def static(attn: nn.MultiheadAttention, x: Tensor) -> Any:
    heads = x.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1)
    return function_by_batch(attn, x, static_k=heads)


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)

LEFT: dict[str, tuple[dict[str, Any], Call, str]] = {
    "weights": ({}, weights_too, "need_weights: the weights are asked for"),
    "native weights": ({}, lambda attn, x: native(attn, x, x, x), "need_weights: the weights are asked for"),
    "causal": (
        {"batch_first": True},
        lambda attn, x: itself(attn, x, attn_mask=CAUSAL, is_causal=True, need_weights=False),
        "causal attention",
    ),
    "added key": ({"add_bias_kv": True}, itself, "add_bias_kv: a learned key joins the tokens"),
    "added zero": ({"add_zero_attn": True}, itself, "add_zero_attn: a key of zeros joins the tokens"),
    "static keys": ({}, static, "static_k, static_v: keys or values are no projection of tokens"),
    "dropout": (
        {"dropout": 0.1, "batch_first": True},
        lambda attn, x: function_by_batch(attn, x, training=True),
        "dropout 0.1",
    ),
    "cross": (
        {"batch_first": True},
        lambda attn, x: attn(x, x[:, :140], x[:, :140])[0],
        "cross-attention: 144 queries, 140 keys",
    ),
    "native under autocast": ({}, under_autocast, "_native_multi_head_attention under autocast: its type is not"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_more_than_self_attention_is_left_with_its_reason(name: str) -> None:
    settings, call, reason = LEFT[name]
    model, x = Layer(call, **settings).eval(), tokens(batch=TOKENS if name in TOKENS_FIRST else BATCH)
    torch.manual_seed(0)
    outcome = opened(model, x)
    assert outcome.before == outcome.after
    (found,) = outcome.reasons()
    assert found.startswith(reason)
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(outcome.out, model(x))


TOKENS_FIRST = ("weights", "added key", "added zero")
"""Whose first dimension is the tokens'."""


def test_short_layers_are_not_touched() -> None:
    for model in (Layer(itself, batch_first=True), Encoder({}, batch_first=True)):
        outcome = opened(model.eval(), tokens(), min_blocks=3)
        assert outcome.before == outcome.after
        assert outcome.reasons() == ["short: 144 tokens are fewer than min_blocks=3 blocks of 128"]


def test_gradients_keep_it_as_it_is() -> None:
    outcome = opened(Layer(itself, batch_first=True).eval(), tokens(), grad=True)
    assert outcome.before == outcome.after
    assert outcome.reasons()[0].startswith("gradients required")
    outcome.out.sum().backward()


def test_transformed_functions_are_left() -> None:
    outcome = opened(Layer(lambda attn, x: torch.vmap(lambda one: itself(attn, one))(x)).eval(), tokens())
    assert outcome.before == outcome.after
    assert outcome.reasons() == ["inside a torch.func transform"]


def test_sizes_that_depend_on_data_are_left() -> None:
    model = Layer(lambda attn, x: itself(attn, x[:, x[0, :, 0].nonzero().flatten()], need_weights=False))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        outcome = opened(model.eval(), tokens())
    assert outcome.before == outcome.after
    assert outcome.reasons() == ["a size that depends on data"]


def test_tensors_of_other_classes_are_left() -> None:
    x = tokens(batch=TOKENS)[:, :BATCH]
    outcome = opened(Layer(itself).eval(), TwoTensor(x, x))
    assert outcome.before == outcome.after
    assert outcome.reasons() == ["a tensor subclass: TwoTensor"]


class Both(nn.Module):
    """A layer of each kind, one after the other."""

    def __init__(self, encoder: bool) -> None:
        super().__init__()
        first, self.attn = Encoder({}, batch_first=True).layer, Layer(itself, batch_first=True).attn
        self.encoder = first if encoder else None

    def forward(self, x: Tensor, ignore: Tensor) -> Tensor:
        x = x if self.encoder is None else self.encoder(x, src_key_padding_mask=ignore)
        out: Tensor = self.attn(x, x, x, key_padding_mask=ignore)[0]
        return out


KNOWS_SYMBOLIC = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_transformer_encoder_layer_fwd", "Meta")


@pytest.mark.parametrize(
    "encoder",
    [False, pytest.param(True, marks=pytest.mark.skipif(not KNOWS_SYMBOLIC, reason="PyTorch cannot trace it"))],
)
def test_symbolic_sizes_stay_symbolic(encoder: bool) -> None:
    """Another length and another batch run the same graph."""
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        open_attention_layers(gm, Ledger(Options(carving=Carving(min_blocks=1))))
        graphs.append(gm)
        return gm.forward

    torch._dynamo.reset()
    model = Both(encoder).eval()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch, count in ((3, 144), (2, 137), (3, 129)):
        inputs = tokens()[:batch, :count].contiguous(), ignored()[:batch, -count:].contiguous()
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
            torch._dynamo.mark_dynamic(tensor, 1)
        with torch.no_grad():
            out, eager, truth = compiled(*inputs), model(*inputs), model.double()(*map(double, inputs))
            model.float()
        assert_rounding(out, truth, eager, eager)
    (gm,) = graphs
    assert len(gm.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)) == 1 + encoder


def test_lengths_that_are_equal_by_chance_are_left() -> None:
    torch._dynamo.reset()
    reasons: list[str] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        ledger = Ledger(Options(carving=Carving(min_blocks=1)))
        open_attention_layers(gm, ledger)
        enter_other_attention(gm, ledger)
        reasons.extend(site.reason for site in ledger.report().sites)
        return gm.forward

    model = Layer(lambda attn, x, y: attn(x, y, y)[0], batch_first=True).eval()
    inputs = tokens(), tokens(seed=1)
    for tensor in inputs:
        torch._dynamo.mark_dynamic(tensor, 1)
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(*inputs)
    assert reasons == ["cross-attention: 144 queries, 144 keys, as many only by chance"]


def test_every_layer_of_a_graph_is_entered_once() -> None:
    def call(attn: Call, x: Tensor) -> Any:
        x = itself(attn, x)
        x, weights = attn(x, x, x)
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return attn(x, x[:, :5], x[:, :5])[0] + weights.mean()

    reasons = opened(Layer(call, batch_first=True).eval(), tokens()).reasons()
    assert sorted(reason.split(":")[0] for reason in reasons) == [
        "cross-attention",
        "need_weights",
        "the compiler removed the call",
        "the compiler removed the call",
    ]


CHANNELS, GRID = 4, (3, 8, 6)


class LayerDiT(nn.Module):
    """Latents [B, C, T, H, W] in, video tokens [B, L, E] out; patches of 1 x 2 x 2, then PyTorch's layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.embed = nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2), stride=(1, 2, 2))
        first = "tokens first" not in kind
        self.layers: Any = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 32, norm_first=True, activation="gelu", batch_first=first)
            if "encoder" in kind
            else nn.MultiheadAttention(WIDTH, HEADS, batch_first=first)
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        video = self.embed(x).flatten(2)
        video = video.permute(2, 0, 1) if "tokens first" in self.kind else video.transpose(1, 2)
        mask = ignored()[:2] if "masked" in self.kind else None
        for layer in self.layers:
            if "encoder" in self.kind:
                video = layer(video, src_key_padding_mask=mask)
            else:
                normed = F.layer_norm(video, (WIDTH,))
                video = video + layer(normed, normed, normed, key_padding_mask=mask)[0]
        return video


@pytest.mark.parametrize(
    "kind",
    [
        "attention",
        "attention, masked",
        "attention, tokens first, masked",
        "encoder",
        "encoder, masked",
        "encoder, tokens first",
        "encoder, tokens first, masked",
    ],
)
def test_the_backend_carves_it(kind: str) -> None:
    model = LayerDiT(kind).eval()
    x = torch.randn(2, CHANNELS, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    options = {"inner": "eager", "keep": 1.0, "min_blocks": 1}
    report = compiled_as_eager(model, x, options)
    assert (report.seen, report.carved) == (2, 2), report
    assert all(site.reordered for site in report.sites)
    assert {site.grid for site in report.sites} == {GRID}
    assert [site.path.split(".")[:2] for site in report.sites] == [["layers", "0"], ["layers", "1"]]
