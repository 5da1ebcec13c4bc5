"""Kandinsky 5: video-only self-attention on latents with channels last, text refined by the model itself."""

from __future__ import annotations

import torch

from tests.toys.toy import Toy, paths, randomise

_TEXT = 7


def kandinsky5(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Kandinsky 5: positions are given axis by axis; grid (frames, height/2, width/2).

    Queries and keys are rounded to bfloat16 after the rotary embedding, in float64 as in float32.
    """
    from diffusers import Kandinsky5Transformer3DModel

    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=32,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=layers,
        axes_dims=(4, 6, 6),
    )
    random = randomise(model)
    grid = (frames, height // 2, width // 2)
    tokens = torch.Size(grid).numel()
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, frames, height, width, 4, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "timestep": torch.full((batch,), 500),
            "pooled_projections": torch.randn(batch, 8, generator=random),
            "visual_rope_pos": [torch.arange(size) for size in grid],
            "text_rope_pos": torch.arange(_TEXT),
        },
        grid=grid,
        text=0,
        carved=paths("visual_transformer_blocks.*.self_attention", layers),
        left={
            "text_transformer_blocks.0.self_attention": "short",
            **dict.fromkeys(
                paths("visual_transformer_blocks.*.cross_attention", layers),
                f"cross-attention: {tokens} queries, {_TEXT} keys",
            ),
        },
        inside=torch.bfloat16,
        stays=("time_embeddings", "query_norm", "key_norm"),
    )
