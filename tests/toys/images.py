"""Image models: joint attention of an image, which is a video of one frame, and text."""

from __future__ import annotations

from typing import Any

import torch

from tests.toys.toy import Toy, padded, paths, randomise

_TEXT = 10


def sd3(batch: int = 2, height: int = 36, width: int = 44, layers: int = 2) -> Toy:
    """Stable Diffusion 3: joint attention [image, text], no rotary embedding; grid (1, height/2, width/2)."""
    return _sd3(batch, height, width, layers)


def sd35(batch: int = 2, height: int = 36, width: int = 44, layers: int = 2) -> Toy:
    """Stable Diffusion 3.5: all but the last layer attend to the image alone as well; grid (1, height/2, width/2)."""
    return _sd3(batch, height, width, layers, dual_attention_layers=tuple(range(layers - 1)), qk_norm="rms_norm")


def _sd3(batch: int, height: int, width: int, layers: int, **config: Any) -> Toy:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=48,
        patch_size=2,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=32,
        **config,
    )
    random = randomise(model)
    image_only = paths("transformer_blocks.*.attn2", len(config["dual_attention_layers"]) if config else 0)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 4, height, width, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "pooled_projections": torch.randn(batch, 8, generator=random),
            "timestep": torch.full((batch,), 500),
        },
        grid=(1, height // 2, width // 2),
        text=_TEXT,
        texts=dict.fromkeys(image_only, 0),
        carved=paths("transformer_blocks.*.attn", layers) + image_only,
        left={},
    )


def qwenimage(batch: int = 2, height: int = 36, width: int = 44, layers: int = 2) -> Toy:
    """Qwen-Image: joint attention [text, image] with a key-padding mask; grid (1, height/2, width/2), no patches."""
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    random = randomise(model)
    grid = (1, height // 2, width // 2)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, torch.Size(grid).numel(), 16, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "encoder_hidden_states_mask": padded(batch, _TEXT),
            "timestep": torch.full((batch,), 0.5),
            "img_shapes": [[grid]] * batch,
        },
        grid=grid,
        text=_TEXT,
        side="before",
        options={"grid": grid},
        carved=paths("transformer_blocks.*.attn", layers),
        left={},
    )


def flux(batch: int = 2, height: int = 36, width: int = 44, layers: int = 1) -> Toy:
    """Flux: joint attention [text, image]; only the values of `img_ids` tell the grid (1, height/2, width/2)."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    random = randomise(model)
    grid = (1, height // 2, width // 2)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, torch.Size(grid).numel(), 16, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "pooled_projections": torch.randn(batch, 8, generator=random),
            "timestep": torch.full((batch,), 0.5),
            "img_ids": torch.cartesian_prod(*(torch.arange(float(size)) for size in grid)),
            "txt_ids": torch.zeros(_TEXT, 3),
        },
        grid=grid,
        text=_TEXT,
        side="before",
        carved=paths("transformer_blocks.*.attn", layers) + paths("single_transformer_blocks.*.attn", layers),
        left={},
        options={"grid": grid, "text": "before"},
    )
