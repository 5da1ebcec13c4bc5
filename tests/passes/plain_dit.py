"""A DiT in plain PyTorch whose parts can be spelled in several ways, to see that nothing hangs on one spelling."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Patch = Literal["conv3d", "conv2d", "linear"]
Side = Literal["before", "after", "none"]

HEADS, HEAD_DIM, CHANNELS = 2, 8, 4
WIDTH = HEADS * HEAD_DIM


class PlainDiT(nn.Module):
    """Latents [B, C, T, H, W] and text [B, S, WIDTH] in, latents out; patches of 1 x 2 x 2."""

    def __init__(self, patch: Patch = "conv3d", side: Side = "after", layers: int = 2) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.embed = {
            "conv3d": lambda: nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2), stride=(1, 2, 2)),
            "conv2d": lambda: nn.Conv2d(CHANNELS, WIDTH, 2, stride=2),
            "linear": lambda: nn.Linear(CHANNELS * 4, WIDTH),
        }[patch]()
        self.blocks = nn.ModuleList([Block() for _ in range(layers)])
        self.out = nn.Linear(WIDTH, CHANNELS * 4)

    def tokens(self, x: Tensor) -> Tensor:
        batch, channels, t, h, w = x.shape
        if self.patch == "conv3d":
            return self.embed(x).flatten(2).transpose(1, 2)
        if self.patch == "conv2d":
            frames = self.embed(x.transpose(1, 2).reshape(batch * t, channels, h, w))
            return frames.view(batch, t, WIDTH, -1).transpose(2, 3).flatten(1, 2)
        patches = x.reshape(batch, channels, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
        return self.embed(patches.reshape(batch, -1, channels * 4))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        video = self.tokens(x)
        count, prompt = video.shape[1], text.shape[1]
        pieces = {"before": [text, video], "after": [video, text], "none": [video]}[self.side]
        joint = torch.cat(pieces, dim=1)
        for block in self.blocks:
            joint = block(joint, mask)
        start = prompt if self.side == "before" else 0
        return self.out(joint[:, start : start + count])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = self.qkv(F.layer_norm(x, (WIDTH,))).unflatten(-1, (3, HEADS, HEAD_DIM))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return x + self.proj(attended.transpose(1, 2).flatten(2))


def latents(t: int = 3, h: int = 16, w: int = 12, batch: int = 2) -> Tensor:
    """For a grid of (t, h/2, w/2)."""
    return torch.randn(batch, CHANNELS, t, h, w, generator=torch.Generator().manual_seed(0))


def prompt(tokens: int = 5, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(1))
