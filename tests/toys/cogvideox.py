"""CogVideoX: joint attention [text, video]; the rotary tables are an input of the model."""

from __future__ import annotations

from typing import Any

import torch

from tests.toys.toy import Toy, paths, randomise

_TEXT = 8
_HEAD = 16


def cogvideox(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """CogVideoX 5B: rotary tables, of the video alone, are given; grid (frames, height/2, width/2)."""
    return _cogvideox(batch, (frames, height, width), layers, rotary=True)


def cogvideox_sincos(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """CogVideoX 2B: positions are added to text and video together, not rotary; grid (frames, height/2, width/2)."""
    return _cogvideox(batch, (frames, height, width), layers, rotary=False)


def cogvideox15(batch: int = 2, frames: int = 6, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """CogVideoX 1.5 I2V: patches of two frames through a linear layer, a latent offset; grid a half of each size."""
    return _cogvideox(batch, (frames, height, width), layers, rotary=True, patch_size_t=2, ofs_embed_dim=8)


def _cogvideox(
    batch: int,
    sizes: tuple[int, int, int],
    layers: int,
    *,
    rotary: bool,
    patch_size_t: int | None = None,
    **config: Any,
) -> Toy:
    from diffusers import CogVideoXTransformer3DModel

    frames, height, width = sizes
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=_HEAD,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=layers,
        sample_width=width,
        sample_height=height,
        sample_frames=(frames - 1) * 4 + 1,
        patch_size_t=patch_size_t,
        max_text_seq_length=_TEXT,
        use_rotary_positional_embeddings=rotary,
        **config,
    )
    random = randomise(model)
    grid = (frames // (patch_size_t or 1), height // 2, width // 2)
    inputs = {
        "hidden_states": torch.randn(batch, frames, 4, height, width, generator=random),
        "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
        "timestep": torch.full((batch,), 500),
    }
    if rotary:
        angles = torch.rand(torch.Size(grid).numel(), _HEAD // 2, generator=random) * 6
        inputs["image_rotary_emb"] = tuple(
            table.repeat_interleave(2, dim=1).contiguous() for table in (angles.cos(), angles.sin())
        )
    if config:
        inputs["ofs"] = torch.full((1,), 2.0)
    return Toy(
        model=model,
        inputs=inputs,
        grid=grid,
        text=_TEXT,
        side="before",
        carved=paths("transformer_blocks.*.attn1", layers),
        left={},
    )
