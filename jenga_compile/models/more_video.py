"""CogVideoX, LTX-Video, Kandinsky 5 and Mochi."""

from __future__ import annotations

from typing import Any

import torch

from jenga_compile.models.entry import Entry, Sizes, Values


def _cogvideox(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    call: dict[str, Any] = {
        "hidden_states": values.noise(sizes.batch, sizes.frames, 16, sizes.height, sizes.width),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 4096),
        "timestep": values.timestep(sizes.batch),
    }
    if entry.config.get("use_rotary_positional_embeddings"):
        call["image_rotary_emb"] = _rotary_table(sizes, values)
    return call


def _rotary_table(sizes: Sizes, values: Values) -> Any:
    """Cosines and sines [tokens, 64] of every position: the pipeline computes them, not the transformer."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    area = (sizes.grid.h, sizes.grid.w)
    return get_3d_rotary_pos_embed(64, ((0, 0), area), area, sizes.grid.t, device=values.device)


def _ltx(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    return {
        "hidden_states": values.noise(sizes.batch, sizes.grid.tokens, 128),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 4096),
        "timestep": values.timestep(sizes.batch),
        "encoder_attention_mask": values.mask(sizes.batch, entry.text),
        "num_frames": sizes.frames,
        "height": sizes.height,
        "width": sizes.width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def _kandinsky(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    """Channels come last: 16 of noise, 16 of an image and a mask, both zero for text."""
    return {
        "hidden_states": values.noise(sizes.batch, sizes.frames, sizes.height, sizes.width, 33),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 3584),
        "timestep": values.timestep(sizes.batch),
        "pooled_projections": values.noise(sizes.batch, 768),
        "visual_rope_pos": [torch.arange(length, device=values.device) for length in sizes.grid.shape],
        "text_rope_pos": torch.arange(entry.text, device=values.device),
        "scale_factor": (1.0, 3.16, 3.16),
    }


def _mochi(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    return {
        "hidden_states": values.noise(sizes.batch, 12, sizes.frames, sizes.height, sizes.width),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 4096),
        "timestep": values.timestep(sizes.batch),
        "encoder_attention_mask": values.mask(sizes.batch, entry.text).bool(),
    }


_COGVIDEOX_5B = {"num_attention_heads": 48, "use_rotary_positional_embeddings": True}

ENTRIES = (
    # Every value is the class's default.
    Entry(
        name="cogvideox-2b",
        transformer="CogVideoXTransformer3DModel",
        depth={"num_layers": 30},
        call=_cogvideox,
        text=226,
        size=(480, 720),
        frames=49,
    ),
    Entry(
        name="cogvideox-5b",
        transformer="CogVideoXTransformer3DModel",
        config=_COGVIDEOX_5B,
        depth={"num_layers": 42},
        call=_cogvideox,
        text=226,
        size=(480, 720),
        frames=49,
    ),
    Entry(
        name="cogvideox1.5-5b",
        transformer="CogVideoXTransformer3DModel",
        config={**_COGVIDEOX_5B, "patch_size_t": 2, "patch_bias": False, "sample_frames": 81},
        depth={"num_layers": 42},
        call=_cogvideox,
        patch=(2, 2, 2),
        pads_frames=True,
        text=226,
        size=(768, 1360),
        frames=81,
    ),
    # Every value is the class's default.
    Entry(
        name="ltx-video",
        transformer="LTXVideoTransformer3DModel",
        depth={"num_layers": 28},
        call=_ltx,
        compression=(8, 32),
        patch=(1, 1, 1),
        text=128,
        size=(512, 704),
        frames=161,
    ),
    Entry(
        name="ltx-video-13b",
        transformer="LTXVideoTransformer3DModel",
        config={"attention_head_dim": 128, "cross_attention_dim": 4096},
        depth={"num_layers": 48},
        call=_ltx,
        compression=(8, 32),
        patch=(1, 1, 1),
        text=128,
        size=(704, 1216),
        frames=121,
    ),
    # The 5 s text-to-video checkpoint with full attention.
    Entry(
        name="kandinsky-5-lite",
        transformer="Kandinsky5Transformer3DModel",
        config={"in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 1792, "ff_dim": 7168, "visual_cond": True},
        depth={"num_visual_blocks": 32},
        call=_kandinsky,
        text=512,
        size=(512, 768),
        frames=121,
    ),
    # Every value is the class's default.
    Entry(
        name="mochi",
        transformer="MochiTransformer3DModel",
        depth={"num_layers": 48},
        call=_mochi,
        compression=(6, 8),
        text=256,
        size=(480, 848),
        frames=163,
        sizes_from_data=True,
    ),
)
