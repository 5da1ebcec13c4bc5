"""The layout is read off the graph, whatever the spelling; and nothing is read where nothing is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jenga_compile import Report, explain
from jenga_compile.errors import GridUnfit
from tests.passes.plain_dit import Block, PlainDiT, latents, prompt

ANY_SIZE = {"min_blocks": 1}


@contextmanager
def refused(why: str) -> Iterator[None]:
    with pytest.raises(GridUnfit, match=re.escape(why)):
        yield


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
    assert site.reason.startswith("cross-attention: only the queries lie on the grid")


class TwoGrids(nn.Module):
    """Queries in one raster, keys in another."""

    def forward(self, x: Tensor) -> Tensor:
        query = x.flatten(2).transpose(1, 2)[:, None]
        key = x.transpose(3, 4).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(query, key, key)


def test_queries_and_keys_in_different_order_are_left() -> None:
    (site,) = sites(TwoGrids(), torch.randn(2, 4, 3, 8, 6)).sites
    assert "no grid: the tokens are in another order where the graph shows them" in site.reason


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
    with refused("the given grid (3, 8, 6) fits at tokens [0, 5]: say text='before' or 'after'"):
        sites(Hidden(), prompt(149), grid=(3, 8, 6))
    (site,) = sites(Hidden(), prompt(144), grid=(3, 8, 6)).sites
    assert site.decision == "carved"


def test_a_given_grid_that_the_graph_contradicts_is_refused() -> None:
    with refused("blocks.0: the given grid (3, 6, 8) contradicts (3, 8, 6) from token 0, which the graph shows"):
        sites(PlainDiT(), latents(), prompt(), grid=(3, 6, 8))
    assert sites(PlainDiT(), latents(), prompt(), grid=(3, 8, 6)).carved == 2


def test_a_given_grid_larger_than_the_sequence_is_refused() -> None:
    with refused("the given grid (30, 8, 6) has 1440 tokens, the site 149"):
        sites(Packed(), prompt(144), prompt(5), grid=(30, 8, 6))


class Refined(Packed):
    """The text has an attention of its own, which is shorter than the video."""

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        out: Tensor = super().forward(video, self.block(text))
        return out


def test_a_given_grid_need_not_fit_every_attention() -> None:
    report = sites(Refined(), prompt(144), prompt(130), grid=(3, 8, 6))
    assert (report.seen, report.carved) == (2, 1)
    assert report.sites[0].reason == "the given grid (3, 8, 6) has 144 tokens, the site 130"


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


def test_a_given_side_that_the_graph_contradicts_is_refused() -> None:
    with refused("the given grid (3, 8, 6) with text before contradicts (3, 8, 6) from token 0"):
        sites(PlainDiT(), latents(), prompt(), grid=(3, 8, 6), text="before")


def test_a_given_grid_does_not_make_cross_attention_self_attention() -> None:
    inputs = (torch.randn(2, 4, 3, 8, 6), torch.randn(2, 144, 4))
    model = CrossOfEqualLength(nn.Conv3d(4, 4, 1))
    (site,) = sites(model, *inputs, grid=(3, 8, 6)).sites
    assert site.reason == "only one of queries and keys lies on grid (3, 8, 6)"
