"""Small latents in the top left corner of full-size tensors, and their resizing.

Legend: B batch, C channels, T frames, H x W full size and h x w small size, all in latents.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Layout = Literal["channels_first", "frames_first", "tokens"]
"""[B, C, T, H, W], [B, T, C, H, W], or [B, T*H*W, C]."""

Resize = Literal["trilinear", "area"]
"""How latents are enlarged: smoothly, or by means over areas, which on enlarging is close to nearest (paper: area; its
code: trilinear for text-to-video). Frames stay as many, so both act on each frame alone."""


@dataclasses.dataclass(frozen=True)
class Corner:
    """A part h x w of latents of H x W."""

    layout: Layout
    frames: int
    full: tuple[int, int]
    part: tuple[int, int]

    @property
    def whole(self) -> bool:
        return self.part == self.full

    def crop(self, x: Tensor) -> Tensor:
        """The small tensor in the corner; `x` itself where there is nothing to crop."""
        if self.whole:
            return x
        h, w = self.part
        if self.layout == "tokens":
            return self._spread(x, self.full)[:, :, :h, :w].flatten(1, 3)
        return x[..., :h, :w].contiguous()

    def pad(self, x: Tensor) -> Tensor:
        """The full-size tensor with `x` in its corner and zeros around it: `crop(pad(x)) == x`."""
        if self.whole:
            return x
        down, right = (full - part for full, part in zip(self.full, self.part, strict=True))
        if self.layout == "tokens":
            return F.pad(self._spread(x, self.part), (0, 0, 0, right, 0, down)).flatten(1, 3)
        return F.pad(x, (0, right, 0, down))

    def _spread(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, T*h*w, C] -> [B, T, h, w, C]."""
        return tokens.reshape(tokens.shape[0], self.frames, *size, tokens.shape[-1])

    def is_small(self, x: object) -> bool:
        """Whether `x` is a tensor of the small size, such as a scheduler returns."""
        if not isinstance(x, Tensor):
            return False
        if self.layout == "tokens":
            return x.dim() == 3 and x.shape[1] == self.frames * self.part[0] * self.part[1]
        return x.dim() == 5 and x.shape[-2:] == self.part

    def in_tokens(self, patch: tuple[int, int]) -> Corner:
        """The same part of a row of one value a token, [B, T*(H/p)*(W/q)], seen as [B, T*..., 1]."""
        rows, columns = patch
        full, part = ((h // rows, w // columns) for h, w in (self.full, self.part))
        return Corner("tokens", self.frames, full, part)


def resize(x: Tensor, source: Corner, target: Corner, mode: Resize) -> Tensor:
    """Small latents `x` of `source` at the small size of `target`; computed in float32 and returned in x's type."""
    if source.part == target.part:
        return x
    video = _channels_first(x, source)
    large = F.interpolate(video.float(), size=(source.frames, *target.part), mode=mode).to(x.dtype)
    return _laid_out(large, source.layout)


def _channels_first(x: Tensor, corner: Corner) -> Tensor:
    match corner.layout:
        case "channels_first":
            return x
        case "frames_first":
            return x.transpose(1, 2)
        case "tokens":
            return corner._spread(x, corner.part).movedim(-1, 1)


def _laid_out(video: Tensor, layout: Layout) -> Tensor:
    match layout:
        case "channels_first":
            return video
        case "frames_first":
            return video.transpose(1, 2).contiguous()
        case "tokens":
            return video.movedim(1, -1).flatten(1, 3).contiguous()


def noise_like(x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Normal noise of x's shape and type, from the pipeline's generator where there is one."""
    from diffusers.utils.torch_utils import randn_tensor

    made: Tensor = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return made
