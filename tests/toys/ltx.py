"""LTX: the pipeline packs the latents, so the model takes tokens, and the grid as three integers."""

from __future__ import annotations

import torch

from tests.toys.toy import Toy, padded, paths, randomise

_TEXT = 7


def ltx(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """LTX: video-only self-attention, additive mask on the text; grid (frames, height/2, width/2), no patches."""
    from diffusers import LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=layers,
        caption_channels=16,
    )
    random = randomise(model)
    grid = (frames, height // 2, width // 2)
    tokens = torch.Size(grid).numel()
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, tokens, 4, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_attention_mask": padded(batch, _TEXT),
            "num_frames": grid[0],
            "height": grid[1],
            "width": grid[2],
        },
        grid=grid,
        text=0,
        carved=paths("transformer_blocks.*.attn1", layers),
        left={path: f"cross-attention: {tokens} queries, {_TEXT} keys" for path in _each("attn2", layers)},
    )


def ltx2(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """LTX 2: a stream of sound beside the video, each attending to the other; grid (frames, height/2, width/2)."""
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=12,
        audio_cross_attention_dim=24,
        num_layers=layers,
        caption_channels=16,
    )
    random = randomise(model)
    grid, sound = (frames, height // 2, width // 2), 11
    tokens = torch.Size(grid).numel()
    mask = padded(batch, _TEXT)
    reasons = {
        "attn2": f"cross-attention: {tokens} queries, {_TEXT} keys",
        "audio_attn1": "short",
        "audio_attn2": f"cross-attention: {sound} queries, {_TEXT} keys",
        "audio_to_video_attn": f"cross-attention: {tokens} queries, {sound} keys",
        "video_to_audio_attn": f"cross-attention: {sound} queries, {tokens} keys",
    }
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, tokens, 4, generator=random),
            "audio_hidden_states": torch.randn(batch, sound, 4, generator=random),
            "encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "audio_encoder_hidden_states": torch.randn(batch, _TEXT, 16, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_attention_mask": mask,
            "audio_encoder_attention_mask": mask,
            "num_frames": grid[0],
            "height": grid[1],
            "width": grid[2],
            "audio_num_frames": sound,
        },
        grid=grid,
        text=0,
        carved=paths("transformer_blocks.*.attn1", layers),
        left={path: reason for name, reason in reasons.items() for path in _each(name, layers)},
    )


def _each(name: str, layers: int) -> tuple[str, ...]:
    return paths(f"transformer_blocks.*.{name}", layers)
