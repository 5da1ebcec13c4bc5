"""What a graph must show before a grid is proven: tokens moved, mixed or overwritten on their way are not there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from jenga_compile.config import Options
from jenga_compile.passes.layout.proof import LayoutProof
from jenga_compile.passes.layout.reading import Unproven
from tests.passes.test_infer_layout import sites


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


class Shifting(nn.Module):
    """Six token shifts a layer: every layer shows every tensor at more offsets than the last."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.embed = nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for _ in range(self.layers):
            zeros = torch.zeros_like(tokens)
            later = [torch.cat([tokens[:, by:], zeros[:, :by]], 1) for by in (1, 6, 48)]
            earlier = [torch.cat([zeros[:, :by], tokens[:, :-by]], 1) for by in (1, 6, 48)]
            tokens = tokens + sum(later) + sum(earlier)
        return tokens[:, None]


def test_the_walk_stays_linear_in_depth() -> None:
    graph = make_fx(Shifting(40), tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randn(2, 4, 3, 8, 6)).graph
    inference = LayoutProof(Options())
    (query,) = graph.output_node().all_input_nodes
    with pytest.raises(Unproven, match="at more than 32 offsets"):
        inference.layout(query, query)
    assert len(inference._known) <= 2 * 32 * len(graph.nodes)


class Pieces(nn.Module):
    """Tokens put together from several embeddings; grid (3, 8, 6)."""

    def __init__(self, put_together: Callable[[Any, Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.image = (nn.Conv3d(4, 8, (1, 2, 2), stride=(1, 2, 2)) for _ in range(2))
        self.put_together = put_together

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        tokens = self.put_together(self.embed, self.image, x, given)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0]


def flat(volume: Tensor) -> Tensor:
    return volume.flatten(2).transpose(1, 2)


def written(embed: Any, image: Any, x: Tensor, given: Tensor) -> Tensor:
    tokens = flat(embed(x)).clone()
    tokens[:, :48] = flat(image(x[:, :, :1]))
    return tokens


PIECES: dict[str, tuple[Callable[[Any, Any, Tensor, Tensor], Tensor], tuple[tuple[int, int, int], int]]] = {
    "an image as first frame": (
        lambda embed, image, x, given: flat(torch.cat([image(x[:, :, :1]), embed(x)[:, :, 1:]], 2)),
        ((3, 8, 6), 0),
    ),
    "an image's tokens first": (
        lambda embed, image, x, given: torch.cat([flat(image(x[:, :, :1])), flat(embed(x))[:, 48:]], 1),
        ((3, 8, 6), 0),
    ),
    "an image's tokens last": (
        lambda embed, image, x, given: torch.cat([flat(embed(x))[:, :96], flat(image(x[:, :, :1]))], 1),
        ((3, 8, 6), 0),
    ),
    "an image's tokens written": (written, ((3, 8, 6), 0)),
    "frame by frame": (
        lambda embed, image, x, given: flat(torch.cat([embed(frame) for frame in x.split(1, 2)], 2)),
        ((3, 8, 6), 0),
    ),
    "later frames alone": (lambda embed, image, x, given: flat(embed(x))[:, 48:], ((2, 8, 6), 0)),
    "given tokens first": (
        lambda embed, image, x, given: torch.cat([given, flat(embed(x))[:, 48:]], 1),
        ((2, 8, 6), 48),
    ),
    "an image before the video": (
        lambda embed, image, x, given: torch.cat([flat(image(x[:, :, :1])), flat(embed(x))], 1),
        ((3, 8, 6), 48),
    ),
    "a smaller image before the video": (
        lambda embed, image, x, given: torch.cat([flat(image(x[:, :, :1, :8])), flat(embed(x))], 1),
        ((3, 8, 6), 24),
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_frames_of_several_embeddings_are_one_video(name: str) -> None:
    put_together, (grid, start) = PIECES[name]
    (site,) = sites(Pieces(put_together), torch.randn(2, 4, 3, 16, 12), torch.randn(2, 48, 8)).sites
    assert (site.decision, site.grid, site.video) == ("carved", grid, (start, start + math.prod(grid))), site.reason


SCATTERED: dict[str, tuple[Callable[[Any, Any, Tensor, Tensor], Tensor], str]] = {
    "two sizes in a batch": (
        lambda embed, image, x, given: torch.cat([flat(embed(x)), F.pad(flat(embed(x[..., :8])), (0, 0, 0, 48))]),
        "ambiguous grid: convolutions slide over (3, 8, 4) and over (3, 8, 6)",
    ),
    "some tokens of a frame": (
        lambda embed, image, x, given: flat(embed(x))[:, 7:],
        "no grid: tokens 0 to 137 are no whole frames of the convolution over (3, 8, 6)",
    ),
}


@pytest.mark.parametrize("name", SCATTERED)
def test_embeddings_that_make_no_video_are_left(name: str) -> None:
    put_together, reason = SCATTERED[name]
    (site,) = sites(Pieces(put_together), torch.randn(2, 4, 3, 16, 12), torch.randn(2, 48, 8)).sites
    assert site.decision == "left"
    assert reason in site.reason
