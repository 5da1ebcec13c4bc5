"""Text-to-video sampling: Euler steps along the flow, with classifier-free guidance in one doubled batch.

v = v("") + guidance (v(prompt) - v(""));   x <- x + (s_next - s) v,   s from 1 to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jenga_compile.zoo.model import TextEncoder


@torch.no_grad()
def sample(
    transformer: Any,
    text_encoder: TextEncoder,
    scheduler: Any,
    prompts: Sequence[str],
    *,
    steps: int = 24,
    guidance: float = 4.0,
    size: int = 64,
    frames: int = 16,
    seed: int = 0,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample one clip per prompt; returns uint8 [B, T, H, W, 3] on the CPU.

    guidance: 1.0 switches guidance, and the doubled batch, off.
    generator: a CPU generator, so that the noise does not depend on the device; `seed` makes one if it is absent.
    callback: called after each step with its index and the clip so far, float [B, 3, T, H, W].
    """
    parameter = next(transformer.parameters())
    device, dtype = parameter.device, parameter.dtype
    generator = generator or torch.Generator().manual_seed(seed)
    shape = (len(prompts), transformer.config.in_channels, frames, size, size)
    clip = torch.randn(shape, generator=generator).to(device)

    guided = guidance != 1.0
    texts = [*prompts, *[""] * len(prompts)] if guided else list(prompts)
    hidden, mask, pooled = (value.to(device, dtype) for value in text_encoder.encode(texts))
    scheduler.set_timesteps(steps, device=device)
    for index, timestep in enumerate(scheduler.timesteps):
        batch = torch.cat([clip, clip]) if guided else clip
        velocity = transformer(
            hidden_states=batch.to(dtype),
            timestep=timestep.expand(len(texts)),
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()
        if guided:
            prompted, free = velocity.chunk(2)
            velocity = free + guidance * (prompted - free)
        clip = scheduler.step(velocity, timestep, clip, return_dict=False)[0]
        if callback is not None:
            callback(index, clip)
    return to_uint8(clip)


def to_uint8(clip: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] in [-1, 1] -> uint8 [B, T, H, W, 3] on the CPU."""
    pixels = clip.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).cpu()


def contact_sheet(videos: Tensor, captions: Sequence[str], columns: int = 8) -> Any:
    """One row a clip of `columns` evenly spaced frames, its caption below: a PIL image of uint8 [B, T, H, W, 3]."""
    from PIL import Image, ImageDraw

    count, frames, height, width, _ = videos.shape
    picks = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
    strip = 14
    sheet = Image.new("RGB", (len(picks) * width, count * (height + strip)), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(count):
        line = videos[row, picks].permute(1, 0, 2, 3).reshape(height, -1, 3)
        sheet.paste(Image.fromarray(line.numpy()), (0, row * (height + strip)))
        pen.text((2, row * (height + strip) + height + 1), captions[row], fill="black")
    return sheet
