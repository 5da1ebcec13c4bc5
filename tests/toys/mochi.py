"""Mochi: joint attention [video, text without its padding], one call a sample."""

from __future__ import annotations

import torch

from tests.toys.toy import DYNAMIC_SHAPES, Toy, padded, paths, randomise


def mochi(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, text: int = 10, layers: int = 2) -> Toy:
    """Mochi: the padding is cut away, so the number of text tokens depends on data; grid (frames, height/2, width/2).

    Where Dynamo does not follow such shapes, its attention is in no graph at all.
    """
    from diffusers import MochiTransformer3DModel

    model = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        pooled_projection_dim=24,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=text,
    )
    random = randomise(model)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
            "encoder_hidden_states": torch.randn(batch, text, 16, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_attention_mask": padded(batch, text),
        },
        grid=(frames, height // 2, width // 2),
        text=text,
        carved=tuple(path for path in paths("transformer_blocks.*.attn1", layers) for _ in range(batch)),
        left={"time_embed.pooler": f"cross-attention: 1 queries, {text + 1} keys"},
        how="compile",
        dynamo=DYNAMIC_SHAPES,
    )
