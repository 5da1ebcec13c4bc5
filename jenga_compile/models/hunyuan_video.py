"""HunyuanVideo, its two image-to-video variants, HunyuanVideo 1.5, and the packaged small model of the same class."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jenga_compile.models.entry import Entry, Sizes, Values


def _joint(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    config = entry.config
    channels = config.get("in_channels", 16)
    call = {
        "hidden_states": values.noise(sizes.batch, channels, sizes.frames, sizes.height, sizes.width),
        "timestep": values.timestep(sizes.batch),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, config.get("text_embed_dim", 4096)),
        "encoder_attention_mask": values.mask(sizes.batch, entry.text),
        "pooled_projections": values.noise(sizes.batch, config.get("pooled_projection_dim", 768)),
    }
    if config.get("guidance_embeds", True):
        call["guidance"] = values.full(6000.0, sizes.batch)
    return call


def _joint_15(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    """1,000 tokens of the language model, 256 of the glyph encoder and 729 of an image, which is zero for text."""
    batch = sizes.batch
    return {
        "hidden_states": values.noise(batch, 65, sizes.frames, sizes.height, sizes.width),
        "timestep": values.full(500.0, batch),
        "encoder_hidden_states": values.noise(batch, 1000, 3584),
        "encoder_attention_mask": values.mask(batch, 1000),
        "encoder_hidden_states_2": values.noise(batch, 256, 1472),
        "encoder_attention_mask_2": values.mask(batch, 256),
        "image_embeds": values.full(0.0, batch, 729, 1152),
    }


def _packaged(name: str) -> Any:
    """An argument of the packaged model, from the configuration beside its weights."""
    file = resources.files("jenga_compile") / "zoo" / "weights" / "transformer" / "config.json"
    return json.loads(file.read_text())[name]


_DEPTH: dict[str, int | tuple[int, ...]] = {"num_layers": 20, "num_single_layers": 40}
_WIDTHS = ("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_refiner_layers")
_REST = ("patch_size", "patch_size_t", "guidance_embeds", "text_embed_dim", "pooled_projection_dim", "rope_axes_dim")

ENTRIES = (
    # Every value is the class's default.
    Entry(
        name="hunyuan-video",
        transformer="HunyuanVideoTransformer3DModel",
        depth=_DEPTH,
        call=_joint,
        shift=7.0,
        text=256,
        size=(720, 1280),
        frames=125,
    ),
    # Noise, image and mask stand beside each other in the channels; every second of 576 image tokens and 252 of text.
    Entry(
        name="hunyuan-video-i2v-concat",
        transformer="HunyuanVideoTransformer3DModel",
        config={"in_channels": 33, "guidance_embeds": False, "image_condition_type": "latent_concat"},
        depth=_DEPTH,
        call=_joint,
        from_image=True,
        text=288 + 252,
        size=(720, 1280),
        frames=125,
    ),
    # The image is the first latent frame; every fourth of 576 image tokens and 252 of text.
    Entry(
        name="hunyuan-video-i2v-replace",
        transformer="HunyuanVideoTransformer3DModel",
        config={"image_condition_type": "token_replace"},
        depth=_DEPTH,
        call=_joint,
        from_image=True,
        text=144 + 252,
        size=(720, 1280),
        frames=125,
    ),
    # The 720p text-to-video checkpoint.
    Entry(
        name="hunyuan-video-1.5",
        transformer="HunyuanVideo15Transformer3DModel",
        config={"target_size": 960, "task_type": "t2v"},
        depth={"num_layers": 54},
        call=_joint_15,
        compression=(4, 16),
        patch=(1, 1, 1),
        text=1000 + 256 + 729,
        size=(720, 1280),
        frames=121,
        sizes_from_data=True,
    ),
    # Pixels, not latents; all that differs from the class is read from the file.
    Entry(
        name="toy",
        transformer="HunyuanVideoTransformer3DModel",
        config={name: _packaged(name) for name in (*_WIDTHS, *_REST)},
        depth={name: _packaged(name) for name in _DEPTH},
        call=_joint,
        compression=(1, 1),
        patch=(_packaged("patch_size_t"), _packaged("patch_size"), _packaged("patch_size")),
        text=32,
        size=(64, 64),
        frames=16,
    ),
)
