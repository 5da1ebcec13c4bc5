"""A named model as a value: its configuration as released, the sizes it takes, and one call of its transformer."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jenga_compile.errors import ExtraMissing, FramesDoNotFit, OutOfRange, SizeNotDivisible
from jenga_compile.grid import TextSide, TokenGrid
from jenga_compile.scalars import fitted


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a call of the transformer sees: latents [batch, channels, frames, height, width], and their grid."""

    batch: int
    frames: int
    height: int
    width: int
    grid: TokenGrid


class Values:
    """Makes the tensors of a call: normal noise from a fixed seed, nothing on `meta`, zeros where `hollow`."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype, hollow: bool = False) -> None:
        self.device, self.dtype, self.hollow = torch.device(device), dtype, hollow
        self._random = torch.Generator().manual_seed(0)

    def noise(self, *shape: int) -> Tensor:
        if self.hollow or self.device.type == "meta":
            return hollow(torch.empty(shape, device="meta", dtype=self.dtype), self.device)
        return torch.randn(shape, generator=self._random).to(self.device, self.dtype)

    def full(self, value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, device=self.device, dtype=self.dtype)

    def timestep(self, *shape: int) -> Tensor:
        return torch.full(shape, 500, device=self.device)

    def mask(self, *shape: int) -> Tensor:
        """Every token is a real one."""
        return torch.ones(shape, device=self.device, dtype=torch.long)

    def indices(self, batch: int, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.device).expand(batch, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the catalogue."""

    name: str

    transformer: str
    """Class of diffusers."""

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Arguments of the class, where the released checkpoint differs from the class's defaults."""

    depth: Mapping[str, int | tuple[int, ...]] = dataclasses.field(hash=False)
    """Arguments that say how deep the model is: a number of blocks, or the indices of blocks that have something."""

    call: Callable[[Entry, Sizes, Values], dict[str, Any]] = dataclasses.field(repr=False)
    """Makes the arguments of the transformer's `forward`, as the model's pipeline passes them."""

    compression: tuple[int, int] = (4, 8)
    """Frames and pixels a side that the VAE makes one of; of the frames, the first stands alone."""

    patch: tuple[int, int, int] = (1, 2, 2)
    """Latents (t, h, w) that make one token."""

    pads_frames: bool = False
    """Whether the pipeline fills the latent frames up to whole patches."""

    text: int
    """Condition tokens that the pipeline passes."""

    size: tuple[int, int]
    """Height and width in pixels of the pipeline's default, or of the paper's measurements."""

    frames: int
    """As `size`; 1 for a model of images."""

    shift: float | None = None
    """Flow shift of the released scheduler, where there is one for this size."""

    from_image: bool = False
    """Whether the video starts from an image or another video of full size."""

    sizes_from_data: bool = False
    """Whether a length inside the model depends on the call's values, for which Dynamo must be told to take them."""

    grid_unseen: TextSide | None = None
    """Set where the grid reaches the transformer as data, so that no graph shows it: the side of the text."""

    @property
    def unit(self) -> int:
        """Pixels that both height and width are multiples of."""
        return self.compression[1] * self.patch[1]

    @property
    def layers(self) -> int:
        """Blocks of the kind that the model has most of."""
        return max(value for value in self.depth.values() if isinstance(value, int))

    def sizes(self, height: int, width: int, frames: int, batch: int = 1) -> Sizes:
        """Latents and token grid of a video of `height` x `width` pixels.

        Raises:
            SizeNotDivisible: a side is no positive multiple of `unit`.
            FramesDoNotFit: VAE and patches do not divide the frames.
        """
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.unit:
                raise SizeNotDivisible(name=name, size=side, patch=self.unit, near=_near(side, self.unit))
        latent = self._latent_frames(frames)
        if latent is None:
            raise FramesDoNotFit(model=self.name, frames=frames, near=self._frames_near(frames))
        rows, columns = height // self.compression[1], width // self.compression[1]
        grid = TokenGrid(latent // self.patch[0], rows // self.patch[1], columns // self.patch[2])
        return Sizes(batch, latent, rows, columns, grid)

    def scaled(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """The largest size that fits into `scale` of this one, in pixels, as the paper's stages take it."""
        rows, columns = (fitted(side // self.unit, scale) for side in (height, width))
        return rows * self.unit, columns * self.unit

    def inputs(
        self,
        height: int,
        width: int,
        frames: int,
        device: torch.device | str = "meta",
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> dict[str, Any]:
        """Keyword arguments of one call of the transformer; raises as `sizes` does."""
        sizes = self.sizes(height, width, frames, batch)
        return {**self.call(self, sizes, Values(device, dtype)), "return_dict": False}

    def hollow_inputs(
        self, height: int, width: int, frames: int, *, batch: int = 1, dtype: torch.dtype = torch.bfloat16
    ) -> dict[str, Any]:
        """As `inputs`, on the CPU and without memory: all noise is zero. Masks and positions have their values."""
        sizes = self.sizes(height, width, frames, batch)
        return {**self.call(self, sizes, Values("cpu", dtype, hollow=True)), "return_dict": False}

    def build(
        self,
        layers: int | None = None,
        device: torch.device | str = "meta",
        *,
        dtype: torch.dtype = torch.bfloat16,
    ) -> nn.Module:
        """The transformer with random weights, of full depth or at most `layers` blocks of each kind.

        Raises:
            OutOfRange: the model has fewer than `layers` blocks, or `layers` is below 1.
            ExtraMissing: diffusers is not installed.
        """
        if layers is not None and not 1 <= layers <= self.layers:
            raise OutOfRange(
                name="layers", value=layers, expected=f"[1, {self.layers}]", way_out="Leave it out for full depth."
            )
        depth = {name: _at_most(value, layers) for name, value in self.depth.items()}
        transformer = _diffusers(self.transformer)
        with torch.device(device):
            model = transformer(**self.config, **depth)
        # Tables that diffusers makes with numpy are on the CPU still. Its own `to` warns about layers kept in float32.
        built: nn.Module = nn.Module.to(model, device=torch.device(device), dtype=dtype).eval()
        return built

    def build_hollow(self, layers: int | None = None, *, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        """As `build`, on the CPU and without memory: each weight is one zero, however large.

        For tracing. What `meta` cannot answer (`if (x == 0).all()`, autocast) has an answer here.
        """
        model = self.build(layers, dtype=dtype)
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(hollow(weight), requires_grad=False)
            for members in (module._buffers, vars(module)):
                members.update({name: hollow(value) for name, value in members.items() if isinstance(value, Tensor)})
        return model

    def _latent_frames(self, frames: int) -> int | None:
        """Latent frames of a video, or None where they do not come out whole."""
        latent, rest = divmod(frames - 1, self.compression[0])
        latent += 1
        if frames < 1 or rest or (self.frames == 1 and frames > 1):
            return None
        beyond = latent % self.patch[0]
        if beyond and not self.pads_frames:
            return None
        return latent + (self.patch[0] - beyond if beyond else 0)

    def _frames_near(self, frames: int) -> str:
        reach = self.compression[0] * self.patch[0]
        first = 1 if self.frames == 1 else max(1, frames - reach)
        fitting = [count for count in range(first, max(frames, 0) + reach + 1) if self._latent_frames(count)]
        below = [count for count in fitting if count < frames][-1:]
        above = [count for count in fitting if count > frames][:1]
        return " or ".join(str(count) for count in [*below, *above])


def hollow(tensor: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Zeros of the same shape and dtype that all lie in one element."""
    return torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)


def _at_most(value: int | tuple[int, ...], layers: int | None) -> int | tuple[int, ...]:
    """A depth cut down to `layers` blocks."""
    if layers is None:
        return value
    return min(value, layers) if isinstance(value, int) else tuple(block for block in value if block < layers)


def _near(side: int, unit: int) -> str:
    below = max(side, 0) // unit * unit
    return " or ".join(str(near) for near in (below, below + unit) if near > 0)


def _diffusers(name: str) -> Any:
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except ModuleNotFoundError as missing:
        raise ExtraMissing(module=missing.name, extra="diffusers") from missing
