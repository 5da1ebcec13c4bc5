"""The layout is read off the graph, whatever the spelling; and nothing is read where nothing is shown."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from jenga_compile import Report, explain
from jenga_compile.config import Options
from jenga_compile.passes.infer_layout import LayoutInference, Unproven
from tests.passes.plain_dit import Block, PlainDiT, latents, prompt

ANY_SIZE = {"min_blocks": 1}


def sites(model: nn.Module, *args: Any, **options: Any) -> Report:
    torch._dynamo.reset()
    return explain(model, *args, options={**ANY_SIZE, **options})


@pytest.mark.parametrize("patch", ["conv3d", "conv2d", "linear"])
@pytest.mark.parametrize("side", ["before", "after", "none"])
def test_every_patch_embedding_and_text_side(patch: Any, side: Any) -> None:
    report = sites(PlainDiT(patch, side), latents(), prompt())
    assert (report.seen, report.carved) == (2, 2)
    for site in report.sites:
        assert site.grid == (3, 8, 6)
        assert site.text == (0 if side == "none" else 5)
        assert site.video == ((5, 149) if side == "before" else (0, 144))


@settings(max_examples=8, deadline=None)
@given(
    t=st.integers(2, 5),
    h=st.integers(2, 7),
    w=st.integers(2, 7),
    text=st.integers(1, 9),
    side=st.sampled_from(["before", "after"]),
)
def test_any_grid_is_found(t: int, h: int, w: int, text: int, side: Any) -> None:
    report = sites(PlainDiT("conv3d", side, layers=1), latents(t, 2 * h, 2 * w), prompt(text))
    (site,) = report.sites
    assert site.grid == (t, h, w)
    assert site.video is not None
    assert site.video[1] - site.video[0] == t * h * w


def test_sequence_without_a_grid_is_left() -> None:
    (site,) = sites(Block(), prompt(300)).sites
    assert site.decision == "left"
    assert site.reason.startswith("no grid: nothing in the graph splits these 300 tokens")


class CrossOfEqualLength(nn.Module):
    """Video queries over as many text keys: the shapes say self-attention, the data flow does not."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        query = self.embed(x).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(query, text[:, None], text[:, None])


def test_cross_attention_of_equal_length_is_left() -> None:
    (site,) = sites(CrossOfEqualLength(nn.Identity()), torch.randn(2, 4, 3, 8, 6), torch.randn(2, 144, 4)).sites
    assert site.decision == "left"
    assert site.reason.startswith("no grid")


class TwoGrids(nn.Module):
    """Queries in one raster, keys in another."""

    def forward(self, x: Tensor) -> Tensor:
        query = x.flatten(2).transpose(1, 2)[:, None]
        key = x.transpose(3, 4).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(query, key, key)


def test_queries_and_keys_in_different_order_are_left() -> None:
    (site,) = sites(TwoGrids(), torch.randn(2, 4, 3, 8, 6)).sites
    assert site.reason == "no grid: the tokens are in another order than the tensor that they come from"


class Windows(nn.Module):
    """The same tokens seen as frames x rows x columns and as windows that do not line up with them."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + tokens.view(2, 16, 3, 3, 4).flip(-1).view(2, 144, 4)
        query = tokens[:, None]
        return F.scaled_dot_product_attention(query, query, query)


def test_contradicting_views_are_left_as_ambiguous() -> None:
    (site,) = sites(Windows(), torch.randn(2, 4, 3, 8, 6)).sites
    assert site.decision == "left"
    assert site.reason == "ambiguous grid: the graph splits the tokens as (3, 8, 6) and as (16, 3, 3)"


class Packed(nn.Module):
    """Tokens patchified outside, as Flux does: the grid is nowhere in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.block(torch.cat([text, video], dim=1))
        return out[:, text.shape[1] :]


def test_a_given_grid_fills_in_what_the_graph_hides() -> None:
    (site,) = sites(Packed(), prompt(144), prompt(5), grid=(3, 8, 6), text="before").sites
    assert (site.decision, site.video, site.text) == ("carved", (5, 149), 5)


@pytest.mark.parametrize(("text", "video"), [("before", (5, 149)), ("after", (0, 144))])
def test_the_side_of_the_text_may_be_told(text: str, video: tuple[int, int]) -> None:
    (site,) = sites(Packed(), prompt(144), prompt(5), grid=(3, 8, 6), text=text).sites
    assert site.video == video


class Hidden(Packed):
    """Video and text arrive joined: not even the cut between them is in the graph."""

    def forward(self, joint: Tensor) -> Tensor:
        out: Tensor = self.block(joint)
        return out


def test_a_given_grid_that_fits_twice_asks_for_the_side() -> None:
    (site,) = sites(Hidden(), prompt(149), grid=(3, 8, 6)).sites
    assert site.reason == "the given grid (3, 8, 6) fits at tokens [0, 5]: say text='before' or 'after'"
    (site,) = sites(Hidden(), prompt(144), grid=(3, 8, 6)).sites
    assert site.decision == "carved"


def test_a_given_grid_that_the_graph_contradicts_is_refused() -> None:
    for site in sites(PlainDiT(), latents(), prompt(), grid=(3, 6, 8)).sites:
        assert site.reason == "the given grid (3, 6, 8) contradicts (3, 8, 6) from token 0, which the graph shows"
    assert sites(PlainDiT(), latents(), prompt(), grid=(3, 8, 6)).carved == 2


def test_a_given_grid_larger_than_the_sequence_is_left() -> None:
    (site,) = sites(Packed(), prompt(144), prompt(5), grid=(30, 8, 6)).sites
    assert site.reason == "the given grid (30, 8, 6) has 1440 tokens, the site 149"


class PerFrame(nn.Module):
    """Frames folded into the batch: attention within a frame."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, channels, t, h, w = x.shape
        tokens = x.transpose(1, 2).reshape(batch * t, channels, h * w).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_attention_within_frames_sees_a_grid_of_one_frame() -> None:
    (site,) = sites(PerFrame(nn.Conv3d(4, 4, 1)), torch.randn(2, 4, 3, 8, 6)).sites
    assert site.grid == (1, 8, 6)
    assert math.prod(site.grid) == site.queries


class Shown(nn.Module):
    """Tokens that one view shows in some shape, and nothing else does."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = (tokens.view(2, *self.shape, 4) * 2).view(2, -1, 4)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.parametrize("shape", [(3, 48), (16, 9), (1, 12, 12)])
def test_two_factors_prove_no_grid(shape: tuple[int, ...]) -> None:
    (site,) = sites(Shown(*shape), torch.randn(2, 144, 4)).sites
    assert site.decision == "left"
    assert site.reason.startswith(f"no grid: {shape[-2]} x {shape[-1]} tokens, of which nothing says")


def test_frames_not_shown_by_a_view_within_frames_prove_no_grid() -> None:
    (site,) = sites(PerFrame(nn.Identity()), torch.randn(2, 4, 3, 8, 6)).sites
    assert site.reason.startswith("no grid: 8 x 6 tokens")


@pytest.mark.parametrize("shape", [(1, 16, 12), (3, 2, 12), (3, 16, 2)])
def test_a_convolution_shows_sizes_of_one(shape: tuple[int, int, int]) -> None:
    t, h, w = shape
    (site,) = sites(PlainDiT("conv3d", layers=1), latents(t, h, w), prompt()).sites
    assert site.grid == (t, h // 2, w // 2)


class Chunked(PlainDiT):
    """A feed-forward that works on chunks of tokens, which have nothing to do with the grid."""

    def tokens(self, x: Tensor) -> Tensor:
        tokens = super().tokens(x)
        return tokens.view(2, 9, 16, -1).tanh().flatten(1, 2)


def test_a_convolutions_grid_survives_other_views() -> None:
    (site,) = sites(Chunked("conv3d", layers=1), latents(), prompt()).sites
    assert (site.decision, site.grid) == ("carved", (3, 8, 6))


class Mixed(nn.Module):
    """Video tokens [B, 144, C] on a grid of 3 x 8 x 6, five text tokens, and what a lambda makes of them."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor], embed: nn.Module | None = None) -> None:
        super().__init__()
        self.mix = mix
        self.embed = nn.Conv3d(4, 4, 1) if embed is None else embed

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        volume = self.embed(x)
        tokens = self.mix(volume, volume.flatten(2).transpose(1, 2), text)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def overwritten(volume: Tensor, video: Tensor, text: Tensor) -> Tensor:
    joint = torch.zeros(2, 149, 4)
    joint[:, :144] = video
    joint[:, 5:] = video * 2
    joint[:, :5] = text
    return joint


def shuffled_in_place(volume: Tensor, video: Tensor, text: Tensor) -> Tensor:
    tokens = video.clone()
    tokens[:, :72] = video[:, torch.arange(143, 71, -1)]
    tokens[:, 72:] = video[:, torch.arange(71, -1, -1)]
    return tokens


def shifted(volume: Tensor, video: Tensor, text: Tensor) -> Tensor:
    joint = torch.cat([text, video], dim=1)
    return joint + 0.1 * torch.cat([joint[:, 1:], torch.zeros(2, 1, 4)], dim=1)


def windows(volume: Tensor, video: Tensor, text: Tensor) -> Tensor:
    return volume.view(2, 4, 3, 2, 4, 2, 3).permute(0, 2, 3, 5, 4, 6, 1).flatten(1, 5)


def columns_first(volume: Tensor, video: Tensor, text: Tensor) -> Tensor:
    return volume.permute(0, 3, 4, 2, 1).flatten(1, 3)


def two_views(volume: Tensor, video: Tensor, text: Tensor) -> Tensor:
    frames = (text.repeat(1, 29, 1)[:, :144].view(2, 3, 48, 4) * 2).view(2, 144, 4)
    return (frames.view(2, 36, 4, 4) + 1).view(2, 144, 4)


def prompts(text: Tensor) -> Tensor:
    """[B, 160, C]: more tokens than the video, and seen in three sizes."""
    return text.repeat(1, 32, 1).view(2, 4, 5, 8, 4).tanh().flatten(1, 3)


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "shuffled in place": (shuffled_in_place, "no grid: nothing in the graph"),
    "shifted by one token": (shifted, "ambiguous: a grid at tokens 4 to 148, another at 5 to 149"),
    "windows": (windows, "no grid: the tokens are in another order"),
    "another raster": (columns_first, "no grid: the tokens are in another order"),
    "views that each show two sizes": (two_views, "no grid: 3 x 48 tokens, of which nothing says"),
}

PLACED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], tuple[int, int]]] = {
    "overwritten": (overwritten, (5, 149)),
    "a slice that asks for more than there is": (
        lambda volume, video, text: torch.cat([video, text], dim=1)[:, -170:],
        (0, 144),
    ),
    "an empty start": (lambda volume, video, text: torch.cat([torch.empty(0), video, text], dim=1), (0, 144)),
    "text that is wider and has sizes": (
        lambda volume, video, text: torch.cat([video, prompts(text)], dim=1),
        (0, 144),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokens_that_are_not_where_a_view_shows_them_prove_no_grid(name: str) -> None:
    mix, reason = REFUSED[name]
    (site,) = sites(Mixed(mix), torch.randn(2, 4, 3, 8, 6), torch.randn(2, 5, 4)).sites
    assert site.decision == "left"
    assert site.reason.startswith(reason)


@pytest.mark.parametrize("name", PLACED)
def test_the_video_is_found_where_it_is(name: str) -> None:
    mix, video = PLACED[name]
    (site,) = sites(Mixed(mix), torch.randn(2, 4, 3, 8, 6), torch.randn(2, 5, 4)).sites
    assert (site.decision, site.grid, site.video) == ("carved", (3, 8, 6), video)


class Temporal(nn.Module):
    """A convolution along time only: its second dimension is all tokens of a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.conv(tokens.transpose(1, 2).reshape(2, 4, 3, 48)).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_a_convolution_along_one_dimension_shows_no_rows() -> None:
    (site,) = sites(Temporal(), torch.randn(2, 144, 4)).sites
    assert site.reason.startswith("no grid: 3 x 48 tokens")


class Chain(nn.Module):
    """Attention after attention with nothing around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)[:, None]
        for _ in range(3):
            tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return tokens


def test_a_site_is_proven_through_the_sites_before_it() -> None:
    assert sites(Chain(), torch.randn(2, 4, 3, 8, 6)).carved == 3


def test_a_given_side_that_the_graph_contradicts_is_refused() -> None:
    for site in sites(PlainDiT(), latents(), prompt(), grid=(3, 8, 6), text="before").sites:
        assert site.reason == "the given grid (3, 8, 6) contradicts (3, 8, 6) from token 0, which the graph shows"


def test_a_given_grid_does_not_make_cross_attention_self_attention() -> None:
    inputs = (torch.randn(2, 4, 3, 8, 6), torch.randn(2, 144, 4))
    model = CrossOfEqualLength(nn.Conv3d(4, 4, 1))
    (site,) = sites(model, *inputs, grid=(3, 8, 6)).sites
    assert site.reason == "only one of queries and keys lies on grid (3, 8, 6)"


class Shifting(nn.Module):
    """Six token shifts a layer: every layer shows every tensor at more offsets than the last."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.embed = nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for _ in range(self.layers):
            padded = F.pad(tokens, (0, 0, 48, 48))
            parts = [torch.cat([padded[:, 48 + by :], padded[:, :by]], 1)[:, :144] for by in (1, 6, 48)]
            tokens = tokens + sum(parts)
        return tokens[:, None]


def test_the_walk_stays_linear_in_depth() -> None:
    graph = make_fx(Shifting(40), tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randn(2, 4, 3, 8, 6)).graph
    inference = LayoutInference(Options())
    (query,) = graph.output_node().all_input_nodes
    with contextlib.suppress(Unproven):
        inference.layout(query, query)
    assert len(inference._known) < 40 * len(graph.nodes)
