"""How the call of a family's transformer shows the size of its latents: data, and what else of the call goes with it.

Nothing here speaks of pipelines, except that some of them compute a size-dependent argument with a method of theirs. A
transformer that is not here can be carved and skip steps; progressive resolution needs to know its call.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from jenga_compile.errors import CallUnreadable
from jenga_compile.grid import TextSide, TokenGrid
from jenga_compile.presets import COMPUTED, COMPUTED_FROM_IMAGE
from jenga_compile.sampler.corner import Corner, Layout

Arguments = dict[str, Any]

Mismatch = Literal["x0", "noise"]
"""Where the authors' code takes another sigma than the equation: that of the next stage's schedule for x0
(HunyuanVideo), or that of the last stage's schedule for the new noise (Wan)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of transformer call."""

    transformer: str
    """Class of diffusers."""

    patch: Callable[[Any], tuple[int, int, int]]
    """Latents (t, h, w) that make one token, from the transformer's configuration."""

    layout: Layout = "channels_first"
    text: TextSide | None = None
    """Side on which condition tokens stand on the video's axis, if any do: there the amplifier acts."""

    narrow: Callable[[Any, Arguments, Corner, tuple[int, int]], Arguments] = lambda pipe, call, corner, patch: {}
    """Arguments besides the latents that depend on the size, for the corner: of the pipeline, the call, the corner and
    the patch (h, w)."""

    mismatch: Mismatch = "x0"
    from_image: tuple[int, ...] = COMPUTED
    """Computed steps, of 50, where the pipeline starts from an image."""


def _cube(config: Any) -> tuple[int, int, int]:
    frames = config.patch_size_t or 1
    return frames, config.patch_size, config.patch_size


def _token_timesteps(pipe: Any, call: Arguments, corner: Corner, patch: tuple[int, int]) -> Arguments:
    """Wan 2.2 TI2V: a timestep a token."""
    timestep = call["timestep"]
    if timestep.dim() == 1:
        return {}
    return {"timestep": corner.in_tokens(patch).crop(timestep.unsqueeze(-1)).squeeze(-1)}


def _rotary_tables(pipe: Any, call: Arguments, corner: Corner, patch: tuple[int, int]) -> Arguments:
    """CogVideoX: the pipeline makes the position tables, of pixels."""
    if call.get("image_rotary_emb") is None:
        return {}
    height, width = (side * pipe.vae_scale_factor_spatial for side in corner.part)
    device = call["hidden_states"].device
    return {"image_rotary_emb": pipe._prepare_rotary_positional_embeddings(height, width, corner.frames, device)}


def _integers(pipe: Any, call: Arguments, corner: Corner, patch: tuple[int, int]) -> Arguments:
    """LTX: the grid comes as integers."""
    return {"height": corner.part[0], "width": corner.part[1]}


FAMILIES: dict[str, Family] = {
    family.transformer: family
    for family in (
        Family(transformer="HunyuanVideoTransformer3DModel", patch=_cube, text="after", from_image=COMPUTED_FROM_IMAGE),
        Family(
            transformer="WanTransformer3DModel",
            patch=lambda config: tuple(config.patch_size),
            narrow=_token_timesteps,
            mismatch="noise",
        ),
        Family(
            transformer="CogVideoXTransformer3DModel",
            patch=_cube,
            layout="frames_first",
            text="before",
            narrow=_rotary_tables,
        ),
        Family(
            transformer="LTXVideoTransformer3DModel", patch=lambda config: (1, 1, 1), layout="tokens", narrow=_integers
        ),
    )
}


FULL_SIZE = frozenset(
    {"image", "images", "video", "mask", "mask_image", "mask_video", "conditions", "control_video", "control_image"}
    | {"reference_images", "condition_images", "pose_video", "face_video", "strength"}
)
"""Arguments of a pipeline's call that bring something of full size, which latents are mixed with or begin as."""


def starts_from_pixels(pipeline: type) -> list[str]:
    """Arguments of the pipeline's call that bring pixels of the full size."""
    return sorted(FULL_SIZE & set(inspect.signature(pipeline.__call__).parameters))


def whole_frame(family: Family, call: Mapping[str, Any], patch: tuple[int, int, int]) -> tuple[Corner, TokenGrid]:
    """The full size of a call as a corner that leaves nothing out, and its grid of tokens.

    Raises:
        CallUnreadable: the call has no latents of this layout.
    """
    latents = call.get("hidden_states")
    if not isinstance(latents, Tensor):
        raise CallUnreadable(transformer=family.transformer, why="it has no hidden_states")
    if family.layout == "tokens":
        sizes = tuple(call.get(name) for name in ("num_frames", "height", "width"))
        if latents.dim() != 3 or None in sizes:
            why = f"hidden_states has shape {tuple(latents.shape)} and num_frames, height, width are {sizes}"
            raise CallUnreadable(transformer=family.transformer, why=why)
        frames, height, width = (int(size) for size in sizes if size is not None)
    else:
        if latents.dim() != 5:
            why = f"hidden_states has shape {tuple(latents.shape)}, not five dimensions"
            raise CallUnreadable(transformer=family.transformer, why=why)
        frames = latents.shape[2] if family.layout == "channels_first" else latents.shape[1]
        height, width = latents.shape[-2:]
    grid = TokenGrid(max(frames // patch[0], 1), height // patch[1], width // patch[2])
    return Corner(family.layout, frames, (height, width), (height, width)), grid
