"""One random DiT and how it is compiled, as a frozen value. Every field's default is its plainest value.

`draw(seed)` gives the configuration of a seed, always the same one; `settled` resolves what fields forbid each other.
"""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any, Literal

import torch

from jenga_compile.block_mask import Adjacency, Importance, Mask, Own, PerHead, Spatial, Temporal, Tile, Window
from jenga_compile.grid import BLOCK, CurveKind

Grid = tuple[int, int, int]
Blocks = Literal["window", "tile", "per_head", "importance_in_window", "importance_or_spatial"]
MaskForm = Literal[
    "none", "key", "stretched", "key_query", "minus_inf", "minus_1e4", "lowest", "given", "given_wide", "given_bias"
]
Spelling = Literal[
    "sdpa", "sdpa_keyword", "sdpa_scale", "matmul", "scaled_queries", "bmm", "baddbmm", "einsum", "einsum_tokens_first"
]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADDITIVE = frozenset({"minus_inf", "minus_1e4", "lowest", "given_bias"})
"""Masks that are added to the logits."""

MERGES_HEADS = frozenset({"bmm", "baddbmm"})
"""Spellings in which heads and batch are one dimension."""

UNREADABLE = {"given_wide": "mask", "given_bias": "additive mask of unknown values"}
"""Masks that no graph proves to be of keys alone, and how the reason then begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """A small DiT, its inputs, and the options it is compiled with."""

    seed: int = 0
    """Of the weights and the inputs."""

    grid: Grid = (2, 8, 12)
    """Token grid (t, h, w)."""

    second_grid: Grid | None = None
    """Grid of a second call of the model, which is then compiled with `dynamic=True`."""

    patch: Grid = (1, 2, 2)
    batch: int = 1
    heads: int = 1
    head_dim: int = 8
    layers: int = 1

    text: int = 0
    """Condition tokens."""

    side: Literal["after", "before"] = "after"
    registers: int = 0
    """Learned tokens in front of the video."""

    streams: Literal["single", "dual", "dual_then_single", "cross"] = "single"
    """Text on the video's token axis, with weights of its own or not; or reached by cross-attention."""

    refiner: bool = False
    """Whether the text has a self-attention of its own first."""

    embed: Literal["conv3d", "conv2d", "linear", "tokens"] = "conv3d"
    """How latents become tokens; or tokens are what the model is given."""

    unembed: bool = False
    """Whether the output is latents again."""

    positions: Literal["none", "table", "sincos", "rotary"] = "none"
    rotary: Literal["complex", "halves", "pairs", "written"] = "complex"
    rotary_span: Literal["video", "joint"] = "video"
    angles: Literal["computed", "stored", "given"] = "computed"
    heads_first: bool = False
    """Whether heads stand before tokens already where positions are applied."""

    modulation: Literal["none", "sample", "first_frame", "frame", "token"] = "none"
    norm: Literal["layer", "rms"] = "layer"
    qk_norm: Literal["none", "head", "wide"] = "none"
    projection: Literal["separate", "chunk", "unflatten", "view"] = "separate"
    feed_forward: Literal["none", "gelu", "gated", "parallel"] = "none"

    mask: MaskForm = "none"
    valid: Literal["lengths", "bool", "integers"] = "lengths"
    """How the model is told which text is padding."""

    mask_each: bool = False
    """Whether every block builds the mask anew."""

    fill: Literal["masked_fill", "where"] = "masked_fill"
    spelling: Spelling = "sdpa"
    precise_softmax: bool = False
    """Whether attention written out takes its softmax in float32 at least."""

    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float64"
    autocast: bool = False
    inference_mode: bool = False

    keep: float = 1.0
    cutoff: float = 0.0
    adjacency: bool = True
    curve: CurveKind | None = None
    blocks: Blocks | None = None
    live_knobs: bool = False
    """Whether `keep` and `cutoff` are set on a `Knobs` after a first call that keeps all."""

    min_blocks: int = 1
    grid_given: bool = False
    strict: bool = False
    inner: Literal["eager", "aot_eager"] = "eager"

    @property
    def video(self) -> int:
        return math.prod(self.grid)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def is_joint(self) -> bool:
        return self.text > 0 and self.streams != "cross"

    @property
    def start(self) -> int:
        """Tokens before the video on its axis."""
        return self.registers + (self.text if self.is_joint and self.side == "before" else 0)

    @property
    def tokens(self) -> int:
        """Tokens on the video's axis."""
        return self.registers + self.video + (self.text if self.is_joint else 0)

    @property
    def is_written(self) -> bool:
        return not self.spelling.startswith("sdpa")

    @property
    def is_lossless(self) -> bool:
        """Whether all blocks are kept, so that attention is dense attention."""
        return self.blocks is None and self.keep == 1.0

    @property
    def chooses(self) -> bool:
        """Whether importance decides what is seen."""
        return not self.is_lossless and (self.blocks is None or self.blocks.startswith("importance"))

    def block_mask(self) -> Mask:
        """What `blocks` names, or what the options mean without it."""
        importance = Importance(self.keep, self.cutoff)
        window = Window(3.0) | Own()
        named: dict[str | None, Mask] = {
            None: importance | (Adjacency() if self.adjacency else Own()),
            "window": window,
            "tile": Tile((2, 4, 4), (3, 1, 3)) | Own(),
            "per_head": PerHead((Spatial(0) | Own(), Temporal(1.0) | Own())),
            "importance_in_window": (importance & Window(6.0)) | Own(),
            "importance_or_spatial": importance | Spatial(0, first_frame=False),
        }
        return named[self.blocks]

    def differences(self) -> dict[str, Any]:
        """The fields that are not at their plainest."""
        plain = Configuration()
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}

    def __str__(self) -> str:
        return "Configuration(" + ", ".join(f"{name}={value!r}" for name, value in self.differences().items()) + ")"


def draw(seed: int) -> Configuration:
    """The configuration of a seed."""
    pick = random.Random(seed)

    def often(plain: Any, *others: Any, share: float = 0.5) -> Any:
        return pick.choice(others) if pick.random() < share else plain

    dynamic = pick.random() < 0.04
    drawn = Configuration(
        seed=seed,
        grid=_grid(pick),
        second_grid=_grid(pick) if dynamic else None,
        patch=(often(1, 2, share=0.15), *((often(2, 1, share=0.25),) * 2)),
        batch=pick.randint(1, 3),
        heads=pick.randint(1, 3),
        head_dim=pick.choice((8, 10, 12, 16, 20, 24, 32, 40)),
        layers=often(2, 1, share=0.4),
        text=often(pick.randint(1, 40), 0, 128, 131, share=0.2),
        side=often("after", "before", share=0.35),
        registers=often(0, pick.randint(1, 6), share=0.15),
        streams=pick.choice(("single", "single", "dual", "dual_then_single", "cross")),
        refiner=pick.random() < 0.1,
        embed=pick.choice(("conv3d", "conv3d", "conv3d", "conv2d", "conv2d", "linear", "linear", "tokens")),
        unembed=pick.random() < 0.5,
        positions=pick.choice(("none", "table", "sincos", "rotary", "rotary", "rotary")),
        rotary=pick.choice(("complex", "halves", "pairs", "written")),
        rotary_span=often("video", "joint"),
        angles=pick.choice(("computed", "stored", "given")),
        heads_first=pick.random() < 0.5,
        modulation=pick.choice(("none", "sample", "sample", "first_frame", "frame", "token")),
        norm=often("layer", "rms"),
        qk_norm=pick.choice(("none", "head", "wide")),
        projection=pick.choice(("separate", "chunk", "unflatten", "view")),
        feed_forward=often("none", "gelu", "gated", "parallel"),
        mask=often("none", *("key", "stretched", "key_query", "given") * 2, *ADDITIVE_DRAWN, share=0.7),
        valid=pick.choice(("lengths", "bool", "integers")),
        mask_each=pick.random() < 0.3,
        fill=often("masked_fill", "where"),
        spelling=pick.choice(SPELLINGS),
        precise_softmax=pick.random() < 0.4,
        dtype=pick.choice(("float64", "float32", "float32", "bfloat16", "float16")),
        autocast=pick.random() < 0.15,
        inference_mode=pick.random() < 0.2,
        keep=often(1.0, 0.2, 0.5, 0.7),
        cutoff=often(0.0, 0.3, 0.9),
        adjacency=pick.random() < 0.5,
        curve=often(None, "gilbert", "sliced", "linear"),
        blocks=often(None, *BLOCKS, share=0.25),
        live_knobs=pick.random() < 0.1,
        min_blocks=often(1, *(2,) * 7, 8),
        grid_given=pick.random() < 0.1,
        strict=pick.random() < 0.2,
        inner=often("eager", "aot_eager", share=0.2),
    )
    return settled(drawn)


SPELLINGS: tuple[Spelling, ...] = (
    *("sdpa", "sdpa", "sdpa_keyword", "sdpa_keyword", "sdpa_scale"),
    *("matmul", "scaled_queries", "bmm", "baddbmm", "einsum", "einsum_tokens_first"),
)
BLOCKS: tuple[Blocks, ...] = ("window", "tile", "per_head", "importance_in_window", "importance_or_spatial")
ADDITIVE_DRAWN: tuple[MaskForm, ...] = (*("minus_inf", "minus_1e4", "lowest") * 2, "given_wide", "given_bias")


def _grid(pick: random.Random) -> Grid:
    """100 to 700 tokens; in one of five, whole blocks."""
    if pick.random() < 0.2:
        return pick.choice(((1, 8, 16), (2, 8, 8), (2, 16, 8), (4, 8, 8), (3, 8, 16), (2, 16, 16), (5, 8, 16)))
    while True:
        grid = (pick.randint(1, 7), pick.randint(3, 16), pick.randint(3, 16))
        if 100 <= math.prod(grid) <= 700:
            return grid


def settled(c: Configuration) -> Configuration:
    """The nearest configuration whose fields go together."""
    for rule in (_sizes, _grid_shown, _text, _masks, _numbers):
        c = dataclasses.replace(c, **rule(c))
    return c


def _sizes(c: Configuration) -> dict[str, Any]:
    if c.second_grid is None:
        return {}
    apart = tuple(max(1, size) for size in c.second_grid) != c.grid
    return {
        "grid_given": False,
        "embed": "conv3d" if c.embed == "tokens" else c.embed,
        "positions": "sincos" if c.positions == "table" else c.positions,
        "angles": "computed" if c.angles == "stored" else c.angles,
        # Sizes of 1 are constants to Dynamo.
        "grid": _at_least_two(c.grid),
        "second_grid": _at_least_two(c.second_grid) if apart else (c.grid[0] + 1, *c.grid[1:]),
    }


def _at_least_two(grid: Grid) -> Grid:
    return max(2, grid[0]), *grid[1:]


def _grid_shown(c: Configuration) -> dict[str, Any]:
    """What the graph must show, or must not where the grid is meant to be unknown."""
    if c.embed == "tokens":
        changes: dict[str, Any] = {"unembed": False, "registers": 0}
        if not c.grid_given:
            silent = "table" if c.positions == "sincos" else c.positions
            changes |= {"positions": silent, "angles": "stored" if c.angles == "computed" else c.angles}
            changes |= {"modulation": "token" if c.modulation == "frame" else c.modulation}
        return changes
    changes = {"patch": (1, *c.patch[1:]) if c.embed == "conv2d" else c.patch}
    if c.grid[0] == 1:
        # A single frame is proven by a convolution that slides over rows and columns, and by nothing else.
        changes |= {"embed": "conv3d" if c.embed == "linear" or c.patch[1] == 1 else c.embed}
        changes |= {"modulation": "sample" if c.modulation in ("first_frame", "frame") else c.modulation}
    return changes


def _text(c: Configuration) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.text == 0:
        changes |= {"streams": "single", "mask": "none", "refiner": False, "side": "after", "rotary_span": "video"}
    elif c.streams == "cross":
        changes |= {"side": "after", "rotary_span": "video"}
        # As many keys as queries would look like self-attention.
        changes |= {"text": c.text + (c.text == c.tokens)}
    if c.registers and c.modulation == "frame":
        changes |= {"modulation": "token"}
    if c.grid[0] == 1 and c.modulation in ("first_frame", "frame"):
        changes |= {"modulation": "sample"}
    if c.refiner and c.grid_given:
        # A given grid is believed of any sequence that is long enough.
        changes |= {"text": min(c.text, math.prod(c.grid) - 1)}
    if c.streams != "single" and c.feed_forward == "parallel":
        changes |= {"feed_forward": "gelu"}
    return changes


def _masks(c: Configuration) -> dict[str, Any]:
    mask = c.mask
    if c.is_written and mask == "key_query":
        mask = "key"  # a softmax over no keys is NaN where the call gives 0
    if c.streams == "cross" and mask in ("stretched", "key_query", *UNREADABLE):
        mask = "key"
    return {"mask": mask}


def _numbers(c: Configuration) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.chooses:
        changes |= {"dtype": "float64"}
    if c.dtype != "float32" or c.chooses:
        changes |= {"autocast": False}
    if not c.is_written:
        changes |= {"precise_softmax": False, "fill": "masked_fill"}
    if c.blocks is not None and not c.chooses:
        changes |= {"keep": 1.0, "live_knobs": False}
    if c.video <= BLOCK * (c.min_blocks - 1) or c.keep == 1.0:
        changes |= {"live_knobs": False}
    return changes
