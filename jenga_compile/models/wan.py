"""Wan 2.1 and 2.2, and what is built on their blocks: VACE, and Helios with its history of latents."""

from __future__ import annotations

from typing import Any

from jenga_compile.models.entry import Entry, Sizes, Values

_TEXT = 512


def _text_to_video(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    channels = entry.config.get("in_channels", 16)
    return {
        "hidden_states": values.noise(sizes.batch, channels, sizes.frames, sizes.height, sizes.width),
        "timestep": values.timestep(sizes.batch),
        "encoder_hidden_states": values.noise(sizes.batch, entry.text, 4096),
    }


def _with_image(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    return {
        **_text_to_video(entry, sizes, values),
        "encoder_hidden_states_image": values.noise(sizes.batch, 257, 1280),
    }


def _token_timesteps(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    """Each token has its own timestep, so that the frames of an image can stand at zero."""
    return {**_text_to_video(entry, sizes, values), "timestep": values.timestep(sizes.batch, sizes.grid.tokens)}


def _controlled(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    control = values.noise(sizes.batch, 96, sizes.frames, sizes.height, sizes.width)
    return {**_text_to_video(entry, sizes, values), "control_hidden_states": control}


_HISTORY = {"long": range(1, 17), "mid": range(17, 19), "short": (0, 19)}
"""Positions of the earlier latent frames, coarse to fine; the chunk in work follows at 20."""


def _chunk(entry: Entry, sizes: Sizes, values: Values) -> dict[str, Any]:
    call = _text_to_video(entry, sizes, values)
    call["indices_hidden_states"] = values.indices(sizes.batch, range(20, 20 + sizes.frames))
    for kind, positions in _HISTORY.items():
        call[f"indices_latents_history_{kind}"] = values.indices(sizes.batch, positions)
        call[f"latents_history_{kind}"] = values.noise(sizes.batch, 16, len(positions), sizes.height, sizes.width)
    return call


_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960}

ENTRIES = (
    Entry(
        name="wan2.1-t2v-1.3b",
        transformer="WanTransformer3DModel",
        config=_SMALL,
        depth={"num_layers": 30},
        call=_text_to_video,
        shift=3.0,
        text=_TEXT,
        size=(480, 832),
        frames=81,
    ),
    # Every value is the class's default; so it is for each of the two transformers of 2.2's A14B.
    *(
        Entry(
            name=name,
            transformer="WanTransformer3DModel",
            depth={"num_layers": 40},
            call=_text_to_video,
            shift=5.0,
            text=_TEXT,
            size=(720, 1280),
            frames=81,
        )
        for name in ("wan2.1-t2v-14b", "wan2.2-t2v-a14b")
    ),
    # Noise, image and mask stand beside each other in the channels, and the image is attended to as well.
    Entry(
        name="wan2.1-i2v-14b",
        transformer="WanTransformer3DModel",
        config={"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        depth={"num_layers": 40},
        call=_with_image,
        from_image=True,
        text=_TEXT,
        size=(720, 1280),
        frames=81,
    ),
    Entry(
        name="wan2.2-i2v-a14b",
        transformer="WanTransformer3DModel",
        config={"in_channels": 36},
        depth={"num_layers": 40},
        call=_text_to_video,
        from_image=True,
        text=_TEXT,
        size=(720, 1280),
        frames=81,
    ),
    Entry(
        name="wan2.2-ti2v-5b",
        transformer="WanTransformer3DModel",
        config={"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
        depth={"num_layers": 30},
        call=_token_timesteps,
        compression=(4, 16),
        text=_TEXT,
        size=(704, 1280),
        frames=121,
    ),
    Entry(
        name="wan2.1-vace-1.3b",
        transformer="WanVACETransformer3DModel",
        config=_SMALL,
        depth={"num_layers": 30, "vace_layers": tuple(range(0, 30, 2))},
        call=_controlled,
        from_image=True,
        text=_TEXT,
        size=(480, 832),
        frames=81,
    ),
    Entry(
        name="wan2.1-vace-14b",
        transformer="WanVACETransformer3DModel",
        depth={"num_layers": 40, "vace_layers": tuple(range(0, 40, 5))},
        call=_controlled,
        from_image=True,
        text=_TEXT,
        size=(720, 1280),
        frames=81,
    ),
    # A video is made in chunks of 33 frames; this is one. Every value is the class's default.
    Entry(
        name="helios",
        transformer="HeliosTransformer3DModel",
        depth={"num_layers": 40},
        call=_chunk,
        text=_TEXT,
        size=(384, 640),
        frames=33,
    ),
)
