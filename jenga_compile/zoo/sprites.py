"""Captioned clips composed on the fly: an animated sprite, a motion, a coloured and textured background.

A clip is fixed by four labels (object, colour, motion, texture) and a placement. `Sprites.draw` draws both on the
CPU from one torch.Generator, `Sprites.render` composes the batch on any device: premultiplied RGBA frames of the
sprite's own animation go through one `grid_sample`, over an analytic background.

Shapes: B clips, T frames, H = W = size in pixels, N sprites. Screen coordinates run over [-1, 1], x right, y down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jenga_compile.zoo.vocabulary import (
    COLOURS,
    LABEL_NAMES,
    MOTIONS,
    PARTIAL_TEMPLATES,
    STRIP_FRAMES,
    STRIP_PIXELS,
    TEMPLATES,
    caption,
    load_strips,
    vocabulary,
)

Split = Literal["any", "seen", "unseen"]
"""One combination of object, motion and colour in eleven is never trained on: see `_keep_to`."""

TEXTURE_WEIGHTS = (0.55, 0.15, 0.15, 0.15)
FILL = 0.74
"""Typical edge of the sprite's square over the frame's edge; the artwork fills about 80 % of its square."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A batch of clips before rendering; every tensor is on the CPU.

    labels     LongTensors [B] under LABEL_NAMES
    placement  [B, 6] float: centre x, centre y, half edge, motion amplitude, animation phase (frames), texture shift
    wording    LongTensor [B]: index into TEMPLATES, or past its end into PARTIAL_TEMPLATES
    """

    labels: Mapping[str, Tensor]
    placement: Tensor
    wording: Tensor


def captions_of(scene: Scene) -> list[str]:
    columns = [*(scene.labels[name].tolist() for name in LABEL_NAMES), scene.wording.tolist()]
    return [caption(*row) for row in zip(*columns, strict=True)]


class Sprites:
    """Composes batches of clips on one device.

    frames: T. Other values than 16 resample the sprite's 16-frame loop and the motion, which still spans the clip.
    """

    def __init__(self, device: torch.device | str = "cpu", frames: int = 16) -> None:
        self.device = torch.device(device)
        self.frames = frames
        self._strips = load_strips()
        self._banks: dict[int, Tensor] = {}
        self._tracks = motion_tracks(frames).to(self.device)
        tones = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=self.device)
        self._tones = tones / 255

    def draw(self, batch: int, generator: torch.Generator, *, partial: float = 0.0, split: Split = "any") -> Scene:
        """Draw labels, placement and wording for `batch` clips.

        generator: a CPU generator; the scene is a function of its state alone, whatever the device.
        partial: share of captions that leave some of the labels unsaid.
        split: "seen" avoids and "unseen" keeps to the combinations held out of training.
        """

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(batch, generator=generator) * (high - low) + low

        labels = {
            "object": torch.randint(len(vocabulary()), (batch,), generator=generator),
            "colour": torch.randint(len(COLOURS), (batch,), generator=generator),
            "motion": torch.randint(len(MOTIONS), (batch,), generator=generator),
            "texture": torch.multinomial(torch.tensor(TEXTURE_WEIGHTS), batch, True, generator=generator),
        }
        labels["colour"] = _keep_to(split, labels)
        placement = torch.stack(
            [
                uniform(-0.10, 0.10),
                uniform(-0.10, 0.10),
                FILL * uniform(0.88, 1.12),
                uniform(0.9, 1.1),
                torch.randint(STRIP_FRAMES, (batch,), generator=generator).float(),
                uniform(0.0, 1.0),
            ],
            dim=1,
        )
        full = (uniform(0.0, 1.0) ** 2 * len(TEMPLATES)).long()
        part = len(TEMPLATES) + (uniform(0.0, 1.0) * len(PARTIAL_TEMPLATES)).long()
        return Scene(labels, placement, torch.where(uniform(0.0, 1.0) < partial, part, full))

    def render(self, scene: Scene, size: int) -> tuple[Tensor, Tensor]:
        """Compose a scene at size x size pixels.

        Returns the video [B, 3, T, H, W] in [-1, 1] and the sprite's coverage [B, 1, T, H, W] in [0, 1].
        """
        labels = {name: self._move(value) for name, value in scene.labels.items()}
        centre_x, centre_y, half, amplitude, phase, shift = self._move(scene.placement).unbind(1)
        tracks = self._tracks[labels["motion"]]  # [B, 4, T]
        dx, dy, angle, growth = (tracks[:, i] for i in range(4))
        x = centre_x[:, None] + amplitude[:, None] * dx
        y = centre_y[:, None] + amplitude[:, None] * dy
        scale = half[:, None] * growth
        # Output position p samples the sprite at R(-angle) (p - centre) / scale.
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = [cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y]
        theta = torch.stack(rows, dim=-1).view(-1, 2, 3)  # [B*T, 2, 3]

        step = torch.arange(self.frames, device=self.device) * STRIP_FRAMES // self.frames
        own = (phase.long()[:, None] + step) % STRIP_FRAMES  # [B, T]
        art = self._bank(size)[labels["object"][:, None], own].flatten(0, 1)  # [B*T, 4, h, h]
        grid = F.affine_grid(theta, [theta.shape[0], 4, size, size], align_corners=False)
        layer = F.grid_sample(art, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        layer = layer.view(-1, self.frames, 4, size, size).transpose(1, 2)  # [B, 4, T, H, W]

        alpha = layer[:, 3:]
        backdrop = self._backdrop(labels["colour"], labels["texture"], shift, size)
        video = layer[:, :3] + (1 - alpha) * backdrop[:, :, None]
        return video.clamp(0, 1) * 2 - 1, alpha

    def __call__(
        self, batch: int, size: int, generator: torch.Generator, *, partial: float = 0.0
    ) -> tuple[Tensor, list[str], Mapping[str, Tensor]]:
        """Draw and render: video [B, 3, T, H, W] in [-1, 1], captions, labels (LongTensors [B] on the CPU)."""
        scene = self.draw(batch, generator, partial=partial)
        return self.render(scene, size)[0], captions_of(scene), scene.labels

    def _move(self, value: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return value.to(self.device)
        return value.pin_memory().to(self.device, non_blocking=True)

    def _bank(self, size: int) -> Tensor:
        """Premultiplied RGBA [N, 16, 4, h, h], scaled so that one texel is about one pixel of a size-px frame."""
        if size not in self._banks:
            edge = min(STRIP_PIXELS, round(FILL * size))
            bank = []
            for strip in self._strips:
                art = strip.to(self.device).float() / 255
                art[:, :3] *= art[:, 3:]
                art = F.interpolate(art, size=(edge, edge), mode="bilinear", antialias=True, align_corners=False)
                bank.append(art.expand(STRIP_FRAMES, -1, -1, -1))
            self._banks[size] = torch.stack(bank)
        return self._banks[size]

    def _backdrop(self, colour: Tensor, texture: Tensor, shift: Tensor, size: int) -> Tensor:
        """Backgrounds [B, 3, H, W] in [0, 1]. Edges are a pixel soft, so that no size aliases."""
        axis = (torch.arange(size, device=self.device) + 0.5) / size
        y, x = axis[None, :, None], axis[None, None, :]
        turn = shift[:, None, None]
        soft = size / 8

        def square(wave: Tensor) -> Tensor:
            return (0.5 + soft * wave).clamp(0, 1)

        stripes = square(torch.sin(2 * math.pi * (4 * (x + y) * 0.75 + turn)))
        checks = square(torch.sin(2 * math.pi * (3 * x + turn)) * torch.sin(2 * math.pi * (3 * y + turn)))
        ramp = (1.8 * y - 0.3).expand_as(stripes)
        mix = torch.stack([torch.zeros_like(stripes), stripes, ramp, checks], dim=1)  # [B, 4, H, W]
        mix = mix[torch.arange(len(texture), device=self.device), texture][:, None]
        main, second = self._tones[colour].unbind(1)  # [B, 3] each
        main, second = main[:, :, None, None], second[:, :, None, None]
        return (main + mix * (second - main)).clamp(0, 1)


def _keep_to(split: Split, labels: Mapping[str, Tensor]) -> Tensor:
    """Colours moved, where they must be, into the split.

    A combination is held out if object + motion + colour is a multiple of 11, the number of colours.
    """
    held_out = (labels["object"] + labels["motion"] + labels["colour"]) % len(COLOURS)  # 0 where held out
    if split == "seen":
        return (labels["colour"] + (held_out == 0)) % len(COLOURS)
    return (labels["colour"] - held_out) % len(COLOURS) if split == "unseen" else labels["colour"]


def motion_tracks(frames: int) -> Tensor:
    """Offsets of the ten motions [M, 4, T]: dx, dy (screen units), angle (radians, clockwise), scale factor.

    Linear motions cross the clip once; spinning, bouncing and swinging are periodic in it and loop.
    """
    line = torch.linspace(-1, 1, frames)
    cycle = torch.arange(frames) / frames
    zero, one = torch.zeros(frames), torch.ones(frames)
    reach = 0.42
    swing = 0.7 * torch.sin(2 * math.pi * cycle)
    rope = 0.75
    tracks = {
        "standing still": (zero, zero, zero, one),
        "moving left": (-reach * line, zero, zero, one),
        "moving right": (reach * line, zero, zero, one),
        "moving up": (zero, -reach * line, zero, one),
        "moving down": (zero, reach * line, zero, one),
        "spinning": (zero, zero, 2 * math.pi * cycle, one),
        "bouncing": (zero, 0.32 - 0.72 * torch.sin(2 * math.pi * cycle).abs(), zero, one),
        "growing": (zero, zero, zero, 0.42 * (1.3 / 0.42) ** ((line + 1) / 2)),
        "shrinking": (zero, zero, zero, 0.42 * (1.3 / 0.42) ** ((1 - line) / 2)),
        "swinging": (-rope * torch.sin(swing), rope * (torch.cos(swing) - 1) + 0.1, swing, one),
    }
    return torch.stack([torch.stack(tracks[name]) for name in MOTIONS])
