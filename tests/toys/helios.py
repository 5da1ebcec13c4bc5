"""Helios: self-attention over the video and three coarser and coarser stretches of its past."""

from __future__ import annotations

import torch

from tests.toys.toy import Toy, paths, randomise

_TEXT = 7


def helios(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Helios: [long past, middle past, short past, video] in self-attention; grid (frames, height/2, width/2)."""
    from diffusers import HeliosTransformer3DModel

    model = HeliosTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        rope_dim=(4, 6, 6),
    )
    random = randomise(model)
    grid = (frames, height // 2, width // 2)
    lengths = {"long": 4, "mid": 2, "short": 1}
    first = 0
    inputs = {
        "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
        "indices_hidden_states": torch.arange(7, 7 + frames).expand(batch, -1),
    }
    for name, length in lengths.items():
        inputs[f"latents_history_{name}"] = torch.randn(batch, 4, length, height, width, generator=random)
        inputs[f"indices_latents_history_{name}"] = torch.arange(first, first + length).expand(batch, -1)
        first += length
    past = sum(-(-height // (2 * scale)) * -(-width // (2 * scale)) for scale in (1, 2, 4))
    return Toy(
        model=model,
        inputs=inputs,
        grid=grid,
        text=past,
        side="before",
        carved=paths("blocks.*.attn1", layers),
        left=dict.fromkeys(
            paths("blocks.*.attn2", layers), f"cross-attention: {torch.Size(grid).numel()} queries, {_TEXT} keys"
        ),
    )
