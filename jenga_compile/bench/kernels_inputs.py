"""What the kernels of `jenga bench kernels` are given: queries, keys, values and block lists, from a fixed seed.

Uniform noise has no structure to select by. So q and k are random Fourier features of the token's place in the video
(frame, row, column, on the curve), which makes q_i . k_j fall off with the distance as a Gaussian does, plus noise.
The length of that Gaussian grows with the head, from `LENGTHS[0]` to `LENGTHS[1]` tokens: the first heads are local,
the last ones see far. Values are such features of their own plus noise ("structured"), or noise alone ("random"), whose
mean over many keys is small and makes relative errors look large. All have unit variance, text is noise.

Lists are what `jenga::block_select` makes of these q and k with keep = density ("structured"), or as many blocks a row
drawn uniformly ("random"); both hold the own block and all text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal, TypeAlias

import torch

from jenga_compile.bench.kernels_pattern import Pattern
from jenga_compile.bench.kernels_shapes import Shape
from jenga_compile.block_mask import Adjacency
from jenga_compile.curve import CutCurve, curve_order
from jenga_compile.grid import CurveKind
from jenga_compile.kernels import static_masks
from jenga_compile.kernels.knobs import Knobs, lookup, register

MaskKind = Literal["structured", "random"]
ValueKind = Literal["structured", "random"]
Lists: TypeAlias = tuple[torch.Tensor, torch.Tensor]

CURVE: CurveKind = "gilbert"

LENGTHS = (1.5, 15.0)
"""Standard deviation, in tokens, of the Gaussian of the first and of the last head; geometric between."""

NOISE = 0.5
"""Standard deviation of the noise; the features have the rest of the unit variance."""

SEED = 0

HOW = {
    "q, k": "random Fourier features of the token's (frame, row, column), in curve order, with noise to unit variance",
    "lengths_in_tokens": LENGTHS,
    "noise": NOISE,
    "text": "normal noise",
    "seed": SEED,
    "curve": CURVE,
    "selection": "block_select with keep = density wanted, cutoff 0, adjacency always kept",
}
"""This docstring for a JSON file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """Tokens of one site, in curve order, [1, H, L, D] with the storage of [1, L, H, D] as models have it."""

    shape: Shape
    values: ValueKind
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.q.device


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Inputs with one set of block lists, and what each kind of kernel computes of them."""

    inputs: Inputs
    wanted: float
    """Fraction of the video blocks that was asked for."""
    kind: MaskKind
    indices: torch.Tensor
    counts: torch.Tensor
    masks: int
    """Handle of the static masks."""
    knobs: int
    """Handle of the knobs, with keep = `wanted`."""

    @functools.cached_property
    def ours(self) -> Pattern:
        return Pattern.listed(self.inputs.shape.blocks, self.indices[0], self.counts[0])

    @functools.cached_property
    def flat(self) -> Pattern:
        return self.ours.flat()

    @functools.cached_property
    def dense(self) -> Pattern:
        return Pattern.dense(self.inputs.shape.blocks, self.inputs.shape.heads, self.inputs.device)

    @property
    def knob_values(self) -> torch.Tensor:
        return lookup(self.knobs, self.inputs.device)

    @property
    def always(self) -> torch.Tensor:
        """The static mask, bool [R, R]."""
        return _always(self.masks, self.inputs)


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype, values: ValueKind) -> Inputs:
    """q, k and v of one site."""
    random = torch.Generator(device).manual_seed(SEED)
    drawn = torch.Generator().manual_seed(SEED)
    places = _places(shape).to(device)
    q, k, v = (torch.empty(1, shape.length, shape.heads, shape.dim, device=device, dtype=dtype) for _ in range(3))
    for head, length in enumerate(_lengths(shape.heads)):
        shared = _features(places, length, shape.dim, drawn)
        of_values = _features(places, length, shape.dim, drawn) if values == "structured" else None
        for tensor, features in ((q, shared), (k, shared), (v, of_values)):
            tensor[0, :, head] = _with_noise(features, shape, random)
    return Inputs(shape, values, *(x.transpose(1, 2) for x in (q, k, v)))


def make_work(inputs: Inputs, wanted: float, kind: MaskKind) -> Work:
    """Block lists for these inputs, at about that density."""
    masks = static_masks.register(static_masks.StaticMasks(Adjacency()))
    knobs = register(_knobs(wanted))
    values = lookup(knobs, inputs.device)
    lists = torch.ops.jenga.block_select(inputs.q, inputs.k, _always(masks, inputs), values, inputs.shape.grid.tokens)
    if kind == "random":
        lists = _random_lists(inputs, lists[1])
    indices, counts = lists
    return Work(inputs, wanted, kind, indices, counts, masks, knobs)


def _random_lists(inputs: Inputs, counts: torch.Tensor) -> Lists:
    """As many blocks a row as `counts` [1, H, R] says, drawn uniformly, with the own block and all text."""
    blocks, heads = inputs.shape.blocks, inputs.shape.heads
    random = torch.Generator(inputs.device).manual_seed(SEED)
    draws = torch.rand(heads, blocks.rows, blocks.rows, generator=random, device=inputs.device)
    draws.diagonal(dim1=1, dim2=2).fill_(2.0)
    rank = draws.argsort(-1, descending=True).argsort(-1)
    chosen = rank < counts[0, :, :, None] - (blocks.keys - blocks.rows)
    text = chosen.new_ones(heads, blocks.rows, blocks.keys - blocks.rows)
    return Pattern.ordered(torch.cat((chosen, text), -1)[None])


@functools.lru_cache(maxsize=64)
def _knobs(keep: float) -> Knobs:
    return Knobs(keep=keep, cutoff=0.0)


def _always(masks: int, inputs: Inputs) -> torch.Tensor:
    found = static_masks.lookup(masks)
    curve = CutCurve(CURVE, ())
    return static_masks.cached_tensors(found, inputs.shape.grid, curve, inputs.device)[0]


def _lengths(heads: int) -> list[float]:
    first, last = LENGTHS
    return [first * (last / first) ** (head / max(heads - 1, 1)) for head in range(heads)]


def _places(shape: Shape) -> torch.Tensor:
    """Frame, row and column of each video token in curve order, float32 [video, 3]."""
    order = curve_order(shape.grid, CURVE)
    _, h, w = shape.grid.shape
    return torch.stack((order // (h * w), order // w % h, order % w), -1).float()


def _features(places: torch.Tensor, length: float, dim: int, drawn: torch.Generator) -> torch.Tensor:
    """Random Fourier features [video, D] of unit variance: f(x) . f(y) / D is near exp(-|x - y|^2 / (2 length^2))."""
    frequencies = torch.randn(3, dim, generator=drawn) / length
    phases = 2 * math.pi * torch.rand(dim, generator=drawn)
    return math.sqrt(2) * torch.cos(places @ frequencies.to(places) + phases.to(places))


def _with_noise(features: torch.Tensor | None, shape: Shape, random: torch.Generator) -> torch.Tensor:
    """Features and noise for the video, noise for the text, float32 [L, D]."""
    noise = torch.randn(shape.length, shape.dim, generator=random, device=random.device)
    if features is not None:
        noise[: shape.grid.tokens] *= NOISE
        noise[: shape.grid.tokens] += math.sqrt(1 - NOISE**2) * features
    return noise
