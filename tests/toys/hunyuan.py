"""HunyuanVideo: joint attention [video, text], in blocks of two streams and of one."""

from __future__ import annotations

from typing import Any

import torch

from tests.toys.toy import Toy, padded, paths, randomise

_REFINER = "context_embedder.token_refiner.refiner_blocks.0.attn"


def hunyuan(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, text: int = 12, layers: int = 1) -> Toy:
    """HunyuanVideo: joint attention [video, text], a key-padding mask a sample; grid (frames, height/2, width/2)."""
    return _hunyuan(batch, frames, height, width, text, layers, channels=4)


def hunyuan_latent_concat(
    batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, text: int = 12, layers: int = 1
) -> Toy:
    """HunyuanVideo I2V: the image's latents and a mask are further channels; grid (frames, height/2, width/2)."""
    return _hunyuan(batch, frames, height, width, text, layers, channels=9, image_condition_type="latent_concat")


def hunyuan_token_replace(
    batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, text: int = 12, layers: int = 1
) -> Toy:
    """HunyuanVideo I2V: the first frame's tokens have a modulation of their own; grid (frames, height/2, width/2)."""
    return _hunyuan(batch, frames, height, width, text, layers, channels=4, image_condition_type="token_replace")


def _hunyuan(
    batch: int, frames: int, height: int, width: int, text: int, layers: int, *, channels: int, **config: Any
) -> Toy:
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_single_layers=layers,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=False,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        **config,
    )
    random = randomise(model)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, channels, frames, height, width, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": torch.randn(batch, text, 16, generator=random),
            "encoder_attention_mask": padded(batch, text),
            "pooled_projections": torch.randn(batch, 8, generator=random),
        },
        grid=(frames, height // 2, width // 2),
        text=text,
        carved=paths("transformer_blocks.*.attn", layers) + paths("single_transformer_blocks.*.attn", layers),
        left={_REFINER: "short"},
    )


def hunyuan15(
    batch: int = 2,
    frames: int = 5,
    height: int = 16,
    width: int = 24,
    text: int = 9,
    layers: int = 2,
    image: bool = False,
) -> Toy:
    """HunyuanVideo 1.5: [video, image, glyphs, text], mask [B, 1, N, N]; grid (frames, height/2, width/2), no patches.

    `if torch.all(image_embeds == 0)`, which tells text from images to video, breaks its graph whatever the settings.
    """
    from diffusers import HunyuanVideo15Transformer3DModel

    model = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=12,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    random = randomise(model)
    glyphs, pixels = 5, 4
    images = torch.randn(batch, pixels, 8, generator=random)
    grid = (frames, height // 2, width // 2)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 9, *grid, generator=random),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": torch.randn(batch, text, 16, generator=random),
            "encoder_attention_mask": padded(batch, text),
            "encoder_hidden_states_2": torch.randn(batch, glyphs, 12, generator=random),
            "encoder_attention_mask_2": padded(batch, glyphs),
            "image_embeds": images if image else torch.zeros_like(images),
        },
        grid=grid,
        text=text + glyphs + pixels,
        carved=("attn",),
        left={_REFINER: "short"},
        how="blocks",
    )
