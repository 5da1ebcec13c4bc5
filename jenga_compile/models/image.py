"""Stable Diffusion 3, Qwen-Image and Flux: images, which are videos of one frame."""

from __future__ import annotations

from typing import Any

import torch

from jenga_compile.models.entry import Entry, Sizes, Values


def _sd3(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    return {
        "hidden_states": values.noise(sizes.batch, 16, sizes.height, sizes.width),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 4096),
        "pooled_projections": values.noise(sizes.batch, 2048),
        "timestep": values.timestep(sizes.batch),
    }


def _qwen(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    """The pipeline passes a mask only where prompts of a batch differ in length."""
    return {
        "hidden_states": values.noise(sizes.batch, sizes.grid.tokens, 64),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 3584),
        "timestep": values.full(0.5, sizes.batch),
        "img_shapes": [[sizes.grid.shape]] * sizes.batch,
    }


def _flux(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    _, rows, columns = sizes.grid.shape
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
    return {
        "hidden_states": values.noise(sizes.batch, sizes.grid.tokens, 64),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 4096),
        "pooled_projections": values.noise(sizes.batch, 768),
        "timestep": values.full(0.5, sizes.batch),
        "img_ids": places.to(values.device, values.dtype),
        "txt_ids": values.full(0.0, entry.text, 3),
        "guidance": values.full(3.5, sizes.batch),
    }


def _sd3_entry(name: str, heads: int, layers: int, **config: Any) -> Entry:
    return Entry(
        name=name,
        transformer="SD3Transformer2DModel",
        config={
            "num_attention_heads": heads,
            "caption_projection_dim": heads * 64,
            "pos_embed_max_size": 192,
            **config,
        },
        depth={"num_layers": layers, "dual_attention_layers": tuple(range(13)) if name == "sd3.5-medium" else ()},
        call=_sd3,
        text=77 + 256,
        size=(1024, 1024),
        frames=1,
    )


ENTRIES = (
    _sd3_entry("sd3-medium", heads=24, layers=24),
    _sd3_entry("sd3.5-medium", heads=24, layers=24, qk_norm="rms_norm", pos_embed_max_size=384),
    _sd3_entry("sd3.5-large", heads=38, layers=38, qk_norm="rms_norm"),
    # Every value is the class's default.
    Entry(
        name="qwen-image",
        transformer="QwenImageTransformer2DModel",
        depth={"num_layers": 60},
        call=_qwen,
        text=512,
        size=(1328, 1328),
        frames=1,
        grid_unseen="before",
    ),
    Entry(
        name="flux-dev",
        transformer="FluxTransformer2DModel",
        config={"guidance_embeds": True},
        depth={"num_layers": 19, "num_single_layers": 38},
        call=_flux,
        text=512,
        size=(1024, 1024),
        frames=1,
        grid_unseen="before",
    ),
)
