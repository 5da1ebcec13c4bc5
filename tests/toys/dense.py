"""Models in which no softmax attention runs over all tokens of the video."""

from __future__ import annotations

import torch

from jenga_compile.grid import BLOCK
from tests.toys.toy import Toy, paths, randomise

_TEXT = 7


def latte(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Latte: attention within each frame, and along time for each place; grid (1, height/2, width/2).

    A frame of more than a block is carved as the image it is; by default it is less.
    """
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        cross_attention_dim=32,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=10,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        video_length=frames,
    )
    random = randomise(model)
    places = height // 2 * (width // 2)
    within, long = paths("transformer_blocks.*.attn1", layers), places > BLOCK
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
        },
        grid=(1, height // 2, width // 2),
        text=0,
        carved=within if long else (),
        left={
            **dict.fromkeys(() if long else within, "short"),
            **dict.fromkeys(
                paths("transformer_blocks.*.attn2", layers), f"cross-attention: {places} queries, {_TEXT} keys"
            ),
            **dict.fromkeys(paths("temporal_transformer_blocks.*.attn1", layers), "short"),
        },
    )


def sana_video(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Sana-Video: linear attention over the video, which has no softmax; grid (frames, height/2, width/2)."""
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=16,
        rope_max_seq_len=32,
    )
    random = randomise(model)
    grid = (frames, height // 2, width // 2)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "timestep": torch.full((batch,), 500),
        },
        grid=grid,
        text=0,
        carved=(),
        left=dict.fromkeys(
            paths("transformer_blocks.*.attn2", layers),
            f"cross-attention: {torch.Size(grid).numel()} queries, {_TEXT} keys",
        ),
    )
