"""Latents to tokens, and where tokens say where they are: tables added to them, or rotations of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.fuzz.configuration import Configuration, Grid

CHANNELS = 3


class Embedding(nn.Module):
    """Latents [B, C, T, H, W], or tokens [B, N, width], to tokens [B, N, width]."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.kind, self.patch, self.width = c.embed, c.patch, c.width
        size = CHANNELS * c.patch[0] * c.patch[1] * c.patch[2]
        if c.embed == "conv3d":
            self.project: nn.Module = nn.Conv3d(CHANNELS, c.width, c.patch, stride=c.patch)
        elif c.embed == "conv2d":
            self.project = nn.Conv2d(CHANNELS, c.width, c.patch[1:], stride=c.patch[1:])
        else:
            self.project = nn.Linear(size if c.embed == "linear" else c.width, c.width)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        if self.kind == "tokens":
            return self.project(x)
        if self.kind == "conv3d":
            return self.project(x).flatten(2).transpose(1, 2)
        batch, channels, frames, height, width = x.shape
        if self.kind == "conv2d":
            images = self.project(x.transpose(1, 2).reshape(batch * frames, channels, height, width))
            return images.view(batch, frames, self.width, -1).transpose(2, 3).flatten(1, 2)
        (t, h, w), (pt, ph, pw) = grid, self.patch
        patches = x.reshape(batch, channels, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return self.project(patches.reshape(batch, t * h * w, -1))


class Unembedding(nn.Module):
    """Tokens [B, N, width] to latents [B, C, T, H, W], or to as many numbers a token."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.patch, self.to_latents = c.patch, c.unembed
        self.project = nn.Linear(c.width, CHANNELS * c.patch[0] * c.patch[1] * c.patch[2])

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = self.project(x)
        if not self.to_latents:
            return x
        (t, h, w), (pt, ph, pw) = grid, self.patch
        x = x.reshape(x.shape[0], t, h, w, CHANNELS, pt, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(x.shape[0], CHANNELS, t * pt, h * ph, w * pw)


def sincos(grid: Grid, width: int) -> Tensor:
    """Sines of frame, row and column, summed; float32 [N, width]."""
    t, h, w = (_angles(size, width).sin() for size in grid)
    return (t[:, None, None] + h[None, :, None] + w[None, None]).reshape(-1, width)


def rotary_angles(grid: Grid, head_dim: int) -> Tensor:
    """Angles of a rotation per token, a part of them for frame, row and column each; float32 [N, head_dim / 2]."""
    (t, h, w), pairs = grid, head_dim // 2
    third = pairs // 3
    parts = _angles(t, pairs - 2 * third), _angles(h, third), _angles(w, third)
    spread = (
        parts[0][:, None, None].expand(t, h, w, -1),
        parts[1][None, :, None].expand(t, h, w, -1),
        parts[2][None, None].expand(t, h, w, -1),
    )
    return torch.cat(spread, dim=-1).reshape(t * h * w, pairs)


def _angles(size: int, count: int) -> Tensor:
    frequencies = 10.0 ** -(torch.arange(count, dtype=torch.float32) / max(count, 1))
    return torch.arange(size, dtype=torch.float32)[:, None] * frequencies


def tables_of(angles: Tensor, how: str) -> tuple[Tensor, ...]:
    """What `rotate` multiplies by: complex numbers [L, D / 2], or cosines and sines, [L, D / 2] or [L, D]."""
    if how == "complex":
        return (torch.polar(torch.ones_like(angles), angles),)
    if how == "halves":
        angles = torch.cat([angles, angles], dim=-1)
    elif how == "pairs":
        angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, ...], how: str, token_dim: int) -> Tensor:
    """x [B, L, H, D] (token_dim 1) or [B, H, L, D] (token_dim 2), rotated by the angles that `tables` are of."""
    if token_dim == 1:
        tables = tuple(table[:, None] for table in tables)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    if how == "complex":
        pairs = torch.view_as_complex(precise.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * tables[0]).flatten(-2).to(x.dtype)
    cos, sin = tables
    if how == "halves":
        one, other = precise.chunk(2, dim=-1)
        return (precise * cos + torch.cat([-other, one], dim=-1) * sin).to(x.dtype)
    if how == "pairs":
        one, other = precise.unflatten(-1, (-1, 2)).unbind(-1)
        return (precise * cos + torch.stack([-other, one], dim=-1).flatten(-2) * sin).to(x.dtype)
    assert how == "written"
    one, other = precise[..., 0::2], precise[..., 1::2]
    out = torch.empty_like(precise)
    out[..., 0::2] = one * cos - other * sin
    out[..., 1::2] = one * sin + other * cos
    return out.to(x.dtype)
