"""The attention sites that `jenga bench kernels` measures, by name: grids and text of the models' own calls.

A site is self-attention over the latent grid. Text stands beside the video where the model attends to both together;
where it has a cross-attention of its own for the text, the site has none.
"""

from __future__ import annotations

import dataclasses

from jenga_compile.errors import NotKnownToBench, hint
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.models.catalogue import find_model

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Fractions of the video blocks to keep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One attention site: a batch of one, `heads` heads over `grid` and then `text` tokens."""

    name: str

    grid: TokenGrid
    """The video's tokens."""

    text: int
    """Tokens that follow the video in the same attention."""

    heads: int

    dim: int
    """Head dim, of queries, keys and values."""

    source: str
    """What has such a site, for people."""

    @property
    def blocks(self) -> BlockLayout:
        return BlockLayout(self.grid.tokens + self.text, self.grid.tokens)

    @property
    def length(self) -> int:
        """L, tokens in all."""
        return self.grid.tokens + self.text

    @property
    def all_pairs(self) -> int:
        """Pairs of a query and a key, of all heads."""
        return self.heads * self.length**2

    def __str__(self) -> str:
        beside = f" + {self.text} text" if self.text else ""
        return f"{self.name}: {self.grid} video tokens{beside}, {self.heads} heads x {self.dim}"


def _of_model(name: str, model: str, heads: int, dim: int, *, joint: bool, scale: float = 1.0) -> Shape:
    """The site of a model of the catalogue at its own size, or at that size times `scale` as stages take it."""
    entry = find_model(model)
    height, width = entry.scaled(*entry.size, scale)
    return Shape(
        name=name,
        grid=entry.sizes(height, width, entry.frames).grid,
        text=entry.text if joint else 0,
        heads=heads,
        dim=dim,
        source=f"{entry.frames} frames of {height}x{width}",
    )


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _of_model("hunyuan-video-720p", "hunyuan-video", 24, 128, joint=True),
        _of_model("hunyuan-video-540p", "hunyuan-video", 24, 128, joint=True, scale=0.75),
        _of_model("hunyuan-video-360p", "hunyuan-video", 24, 128, joint=True, scale=0.5),
        _of_model("hunyuan-video-i2v-720p", "hunyuan-video-i2v-concat", 24, 128, joint=True),
        _of_model("wan-1.3b-480p", "wan2.1-t2v-1.3b", 12, 128, joint=False),
        _of_model("wan-14b-720p", "wan2.1-t2v-14b", 40, 128, joint=False),
        _of_model("cogvideox-5b", "cogvideox-5b", 48, 64, joint=True),
        _of_model("ltx-video", "ltx-video", 32, 64, joint=False),
        # For tests and a first try on a CPU: a partial last video block and a partial second text block.
        Shape(name="tiny", grid=TokenGrid(6, 14, 17), text=150, heads=2, dim=32, source="no model"),
    )
}


def find_shape(name: str) -> Shape:
    """The site of that name, in any case.

    Raises:
        NotKnownToBench: there is none.
    """
    found = SHAPES.get(name.lower())
    if found is None:
        raise NotKnownToBench(kind="site", name=name, hint=hint(name.lower(), SHAPES), valid=", ".join(SHAPES))
    return found
