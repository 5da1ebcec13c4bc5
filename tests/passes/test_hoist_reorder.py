"""Reordering once a graph: the numbers stay, the gathers do not grow with depth, and none of them is for show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from jenga_compile.passes.hoist_reorder import hoist_reorder
from jenga_compile.passes.site import CURVE_INDEX
from tests.passes.aten_graphs import Stopped, stopped_before
from tests.passes.plain_dit import Block, PlainDiT, latents, prompt
from tests.toys import TOYS, Toy

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")
EVERYTHING = {"keep": 1.0, "min_blocks": 2}
HOISTED = {
    "hunyuan": (5, 1),
    "hunyuan_latent_concat": (5, 1),
    "hunyuan_token_replace": (5, 1),
    "wan": (3, 1),
    "wan_image": (3, 1),
    "wan_ti2v": (4, 1),
    "wan_vace": (4, 1),
    "chronoedit": (3, 1),
    "cogvideox": (3, 1),
    "cogvideox_sincos": (2, 1),
    "cogvideox15": (3, 1),
    "ltx": (2, 1),
    "kandinsky5": (2, 1),
    "sd3": (2, 1),
    "sd35": (2, 1),
    "qwenimage": (2, 1),
    "flux": (2, 1),
    "mochi": (2, 1),
    "helios": (2, 1),
}
"""Gathers in and out of each toy, whatever its depth."""


def gathers(gm: GraphModule) -> list[torch.fx.Node]:
    indices = list(gm.graph.find_nodes(op="call_function", target=CURVE_INDEX))
    return [user for index in indices for user in index.users]


def stopped(toy: Toy, before: str | None, **more: Any) -> Stopped:
    with toy.settings():
        return stopped_before(before, toy.model, options={**EVERYTHING, **toy.options}, **more, **toy.inputs)


@pytest.mark.parametrize("name", HOISTED)
def test_gathers_do_not_grow_with_depth(name: str) -> None:
    report = stopped(TOYS[name](layers=3), None).ledger.report()
    assert report.carved
    assert all(site.reordered for site in report.sites if site.decision == "carved")
    assert (report.gathers_in, report.gathers_out) == HOISTED[name]


@pytest.mark.parametrize(
    ("name", "decompose"), [*((name, False) for name in HOISTED), ("hunyuan", True), ("wan", True)]
)
def test_the_reordered_graph_computes_the_same_and_needs_every_gather(name: str, decompose: bool) -> None:
    toy = TOYS[name]()
    toy.options["curve"] = "gilbert"  # a curve a frame would not show whether values that a frame shares are moved
    before = stopped(toy, "hoist_reorder", decompose=decompose)
    expected = before.run()
    hoist_reorder(before.gm, before.ledger)
    found = gathers(before.gm)
    assert found
    assert_close(before.run(), expected)
    for gather in found:
        kept = gather.target, gather.args
        gather.target, gather.args = torch.ops.aten.clone.default, (gather.args[0],)
        before.gm.recompile()
        assert difference(before.run(), expected) > 1e-4 or hides_text_only(gather), (
            f"{gather} moves nothing that matters"
        )
        gather.target, gather.args = kept


def hides_text_only(gather: torch.fx.Node) -> bool:
    """Whether a gather permutes positions that only a mask of the text is made of, whose video is all True anyway."""
    return not gather.meta["val"].is_floating_point()


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert difference(actual, expected) < 1e-5


def difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("side", ["before", "after", "none"])
@pytest.mark.parametrize("patch", ["conv3d", "conv2d", "linear"])
def test_plain_models_reorder_once(patch: Any, side: Any) -> None:
    before = stopped_before("hoist_reorder", PlainDiT(patch, side, layers=3), latents(), prompt(), options=EVERYTHING)
    expected = before.run()
    hoist_reorder(before.gm, before.ledger)
    report = before.ledger.report()
    assert (report.gathers_in, report.gathers_out) == (1, 1)
    assert_close(before.run(), expected)


class Mixing(nn.Module):
    """A DiT whose every layer does something to its tokens between two blocks."""

    def __init__(self, between: Callable[[Tensor], Tensor], layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, 16, (1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = self.between(block(tokens))
        return tokens


def convolved(tokens: Tensor) -> Tensor:
    """A depthwise convolution over the grid, as some feed-forward layers have it."""
    volume = tokens.transpose(1, 2).unflatten(2, (3, 8, 6))
    return F.avg_pool3d(volume, 3, stride=1, padding=1).flatten(2).transpose(1, 2)


def attention_over_frames(tokens: Tensor) -> Tensor:
    frames = tokens.unflatten(1, (3, 48)).transpose(1, 2).flatten(0, 1)[:, None]
    return (
        F.scaled_dot_product_attention(frames, frames, frames)[:, 0]
        .unflatten(0, (-1, 48))
        .transpose(1, 2)
        .flatten(1, 2)
    )


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": convolved,
    "shift": lambda x: x.roll(1, dims=1),
    "per frame": lambda x: x.unflatten(1, (3, 48)).softmax(2).flatten(1, 2),
    "pooled over tokens": lambda x: x + x.mean(1, keepdim=True),
    "sorted": lambda x: x.sort(dim=1).values,
    "positions": lambda x: x * torch.arange(144.0)[:, None].sin(),
    "frames scaled": lambda x: (x.unflatten(1, (3, 48)) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]).flatten(1, 2),
    "first frame alone": lambda x: torch.cat([x[:, :48] * 2, x[:, 48:]], 1),
    "half a frame alone": lambda x: torch.cat([x[:, :24] * 2, x[:, 24:]], 1),
    "strided": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "written in place": lambda x: torch.index_fill(x, 1, torch.tensor([5]), 0.0),
    "as keys of its own": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
    "causal": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0],
    "strides": lambda x: x.as_strided(x.shape, x.stride()),
    "batch of rows": lambda x: (x.reshape(-1, 16) @ torch.eye(16)).view(x.shape),
    "outer product of itself": lambda x: (x @ x.mT).softmax(-1) @ x,
    "pairs of tokens": lambda x: x.unflatten(1, (72, 2)).flip(2).flatten(1, 2),
    "random": lambda x: x + torch.randn_like(x),
    "attention within places": lambda x: attention_over_frames(x),
    "repeated and folded": lambda x: x.repeat(1, 2, 1).unflatten(1, (2, 144)).sum(1),
}


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_tokens_between_layers_is_never_wrong(name: str) -> None:
    before = stopped_before("hoist_reorder", Mixing(MIXES[name]), latents(), options=EVERYTHING)
    expected = before.run()
    hoist_reorder(before.gm, before.ledger)
    assert_close(before.run(), expected)


def test_frames_with_a_part_of_their_own_stay_together() -> None:
    before = stopped_before("hoist_reorder", Mixing(MIXES["first frame alone"]), latents(), options=EVERYTHING)
    hoist_reorder(before.gm, before.ledger)
    report = before.ledger.report()
    assert (report.gathers_in, report.gathers_out) == (1, 1)
    (index, *_) = before.gm.graph.find_nodes(op="call_function", target=CURVE_INDEX)
    assert index.args[7] == [1]


def test_a_graph_in_which_hoisting_does_not_pay_is_left_as_it_was() -> None:
    before = stopped_before("hoist_reorder", Mixing(MIXES["strides"]), latents(), options=EVERYTHING)
    code = before.gm.code
    hoist_reorder(before.gm, before.ledger)
    assert before.gm.code == code
    report = before.ledger.report()
    assert (report.gathers_in, report.gathers_out) == (3 * report.carved, report.carved)
    why = "an op reads storage, or draws random numbers in its order"
    assert str(report).endswith(f"{report.carved} carved gather their tokens by themselves: {why}")


TEXT_MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "booleans": lambda m: joined(m.new_ones(2, 144), m),
    "scaled": lambda m: (1 - joined(torch.ones(2, 144), m.float())) * -1e4,
    "scaled apart": lambda m: joined(torch.zeros(2, 144), (1 - m.float()) * -1e4),
    "filled": lambda m: joined(torch.zeros(2, 144), torch.zeros(2, 5).masked_fill(~m, -math.inf)),
    "padded": lambda m: F.pad(m.float(), (144, 0), value=1.0) == 1,
}


def joined(video: Tensor, text: Tensor) -> Tensor:
    return torch.cat([video, text], 1)


class Masked(nn.Module):
    def __init__(self, make: Callable[[Tensor], Tensor], layers: int) -> None:
        super().__init__()
        self.model, self.make = PlainDiT(layers=layers), make

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return self.model(x, text, self.make(mask)[:, None, None])


@pytest.mark.parametrize("name", TEXT_MASKS)
def test_masks_of_text_cost_no_gather_a_layer(name: str) -> None:
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    counts = []
    for layers in (2, 4):
        model = Masked(TEXT_MASKS[name], layers)
        before = stopped_before("hoist_reorder", model, latents(), prompt(), mask, options=EVERYTHING)
        expected = before.run()
        hoist_reorder(before.gm, before.ledger)
        assert_close(before.run(), expected)
        report = before.ledger.report()
        assert report.carved == layers
        counts.append((report.gathers_in, report.gathers_out))
    assert counts[0] == counts[1]
    assert counts[0] in ((1, 1), (2, 1))


class Factorised(nn.Module):
    """Attention within frames, and between them at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, 16, (1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = attention_over_frames(block(tokens.reshape(-1, 48, 16)).view(-1, 144, 16))
        return tokens


def test_attention_within_a_place_takes_places_in_any_order() -> None:
    before = stopped_before("hoist_reorder", Factorised(), latents(), options={"keep": 1.0, "min_blocks": 1})
    expected = before.run()
    hoist_reorder(before.gm, before.ledger)
    assert_close(before.run(), expected)
    report = before.ledger.report()
    assert (report.carved, report.gathers_in, report.gathers_out) == (3, 1, 1)
