"""Each rule against real tensors: what `follow` claims about an op's rows is checked by changing one token.

The law: if the axis of the output is found in an input, then changing token c of the input changes the output at
token c and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from jenga_compile.config import Options
from jenga_compile.passes.layout.axis import Axis, Digit
from jenga_compile.passes.layout.follow import follow
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.slice_splits import slice_splits
from tests.passes.test_layout_axis import token_of_element

TOKENS, WIDTH = 12, 6
WEIGHT = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
GRID = (3, 2, 2)


def in_place(x: Tensor) -> Tensor:
    out = x.clone()
    out[..., 0::2] = x[..., 1::2] * 2
    return out


def in_place_on_tokens(x: Tensor) -> Tensor:
    out = torch.cat([x, x], dim=1)
    out[:, TOKENS:] = x * 3
    return out[:, TOKENS:]


KEEPS_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "pointwise": lambda x: (x * 2 + 1).sin() + x,
    "broadcast": lambda x: x * torch.arange(TOKENS).view(1, TOKENS, 1),
    "linear": lambda x: F.linear(x, WEIGHT, WEIGHT[0]),
    "matmul": lambda x: x @ WEIGHT,
    "matmul_from_the_right": lambda x: (WEIGHT @ x.transpose(1, 2)).transpose(1, 2),
    "bmm": lambda x: torch.bmm(x, WEIGHT.expand(2, WIDTH, WIDTH)),
    "layer_norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "rms_norm": lambda x: F.rms_norm(x, (WIDTH,)),
    "variance": lambda x: x - torch.var_mean(x, dim=-1, keepdim=True)[1],
    "mean_of_features": lambda x: x.mean(dim=-1, keepdim=True) + x,
    "sum_without_keepdim": lambda x: x.sum(dim=2).unsqueeze(2) * x,
    "softmax": lambda x: x.softmax(dim=-1),
    "heads": lambda x: x.view(2, TOKENS, 2, 3).transpose(1, 2).reshape(2, 2, TOKENS, 3).transpose(1, 2).flatten(2),
    "permute": lambda x: x.permute(2, 0, 1).permute(1, 2, 0),
    "merge_batch": lambda x: x.reshape(2 * TOKENS, WIDTH).tanh().view(2, TOKENS, WIDTH),
    "grid_and_back": lambda x: x.view(2, *GRID, WIDTH).permute(0, 4, 1, 2, 3).flatten(2).transpose(1, 2),
    "split_features": lambda x: torch.cat([part * 2 for part in x.split(2, dim=-1)], dim=-1),
    "chunk_features": lambda x: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1),
    "unbind_features": lambda x: torch.stack(x.unbind(-1), dim=-1),
    "select_feature": lambda x: x.select(2, 1).unsqueeze(-1) + x,
    "complex_pairs_kept": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(2, TOKENS, 3, 2)) * 1j).sum(-1),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(2, TOKENS, 3, 2)) * 1j).flatten(2),
    "join_and_cut_tokens": lambda x: torch.cat([x.new_zeros(2, 5, WIDTH), x], dim=1)[:, 5:],
    "split_tokens": lambda x: torch.cat([x.new_zeros(2, 4, WIDTH), x], dim=1).split_with_sizes([4, TOKENS], dim=1)[1],
    "in_place_features": in_place,
    "in_place_tokens": in_place_on_tokens,
    "rolled_features": lambda x: x.roll(1, dims=2).flip(2),
    "padded_tokens": lambda x: F.pad(x, (0, 0, 3, 2))[:, 3 : 3 + TOKENS],
    "table_of_positions": lambda x: x + torch.arange(30.0).view(15, 2)[torch.arange(TOKENS)][None, :, :1],
    "repeated_batch": lambda x: x[:1].repeat(2, 1, 1) + x,
    "pointwise_convolution": lambda x: F.conv1d(x.transpose(1, 2), WEIGHT[..., None]).transpose(1, 2),
    "transposed_view": lambda x: x.transpose(1, 2).reshape(2, TOKENS, WIDTH),
    "frames_swapped": lambda x: x.view(2, *GRID, WIDTH).permute(0, 2, 1, 3, 4).reshape(2, TOKENS, WIDTH),
    "cast": lambda x: x.double().float(),
    "queries_of_attention": lambda x: F.scaled_dot_product_attention(
        x[:, None], WEIGHT.expand(2, 1, 6, 6), WEIGHT.expand(2, 1, 6, 6)
    )[:, 0],
}

MIXES_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "keys_of_attention": lambda x: F.scaled_dot_product_attention(
        WEIGHT.repeat(2, 1)[None, None].expand(2, 1, 12, 6), x[:, None], x[:, None]
    )[:, 0],
    "cumsum": lambda x: x.cumsum(dim=1),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, dims=1),
    "softmax_over_tokens": lambda x: x.softmax(dim=1),
    "mean_over_tokens": lambda x: x.mean(dim=1, keepdim=True).expand(2, TOKENS, WIDTH),
    "token_matmul": lambda x: torch.ones(TOKENS, TOKENS) @ x,
    "reversed_gather": lambda x: x[:, torch.arange(TOKENS - 1, -1, -1)],
    "convolution": lambda x: F.conv1d(x.transpose(1, 2), WEIGHT[..., None].repeat(1, 1, 3), padding=1).transpose(1, 2),
    "repeated_tokens": lambda x: x[:, :6].repeat(1, 2, 1),
    "rolled": lambda x: x.roll(1),
    "causal": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0],
    "strided_slice": lambda x: torch.cat([x, x], dim=1)[:, ::2],
}


def axes_in_input(function: Callable[[Tensor], Tensor], sample: Tensor) -> list[Axis]:
    """All axes at which a walk from the output arrives in the input."""
    gm = make_fx(torch.func.functionalize(function), tracing_mode="fake", _allow_non_fake_inputs=True)(sample)
    slice_splits(gm, Ledger(Options()))
    graph = gm.graph
    (output,) = graph.output_node().args
    assert isinstance(output, Node)
    pending, arrived = [(output, Axis((Digit(1, TOKENS),), 0, 0, TOKENS))], []
    while pending:
        node, axis = pending.pop()
        if node.op == "placeholder":
            arrived.append(axis)
        pending += follow(node, axis)
    return arrived


@pytest.mark.parametrize("name", KEEPS_ROWS)
def test_the_walk_arrives_and_what_it_claims_is_true(name: str) -> None:
    function = KEEPS_ROWS[name]
    sample = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    arrived = axes_in_input(function, sample)
    assert arrived, "the walk ended before the input"
    for axis in arrived:
        assert_rows_are_rows(function, sample, axis)


@pytest.mark.parametrize("name", MIXES_TOKENS)
def test_the_walk_claims_nothing_where_tokens_mix(name: str) -> None:
    sample = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    assert axes_in_input(MIXES_TOKENS[name], sample) == []


def assert_rows_are_rows(function: Callable[[Tensor], Tensor], sample: Tensor, axis: Axis) -> None:
    tokens = token_of_element(axis, tuple(sample.shape)) + axis.offset
    before = function(sample)
    for token in range(axis.start, axis.stop):
        changed = torch.where(tokens == token, sample + 1.7, sample)
        differs = (function(changed) - before).abs().amax(dim=(0, 2)) > 0
        assert differs.nonzero().flatten().tolist() in ([token], []), f"token {token} reached other rows"
