"""The Wan family: video-only self-attention, text and images through cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.toys.toy import Toy, paths, randomise

_TEXT = 7
_CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "rope_max_seq_len": 32,
}


def wan(batch: int = 1, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Wan: video-only self-attention, text through cross-attention; grid (frames, height/2, width/2)."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(**_CONFIG, num_layers=layers)
    random = randomise(model)
    return _toy(model, _inputs(random, batch, frames, height, width), layers)


def wan_ti2v(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Wan 2.2 TI2V: a timestep a token, zero in the first frame, which is given; grid (frames, height/2, width/2)."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(**_CONFIG, num_layers=layers)
    random = randomise(model)
    inputs = _inputs(random, batch, frames, height, width)
    inputs["timestep"] = torch.full((batch, frames, height // 2 * (width // 2)), 500)
    inputs["timestep"][:, 0] = 0
    inputs["timestep"] = inputs["timestep"].flatten(1)
    return _toy(model, inputs, layers)


def wan_image(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Wan I2V: cross-attention to the image beside that to the text; grid (frames, height/2, width/2).

    The model takes the last 512 condition tokens for text, so there are as many.
    """
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(**_CONFIG | {"in_channels": 9}, num_layers=layers, image_dim=8, added_kv_proj_dim=24)
    random = randomise(model)
    inputs = _inputs(random, batch, frames, height, width, channels=9, text=512)
    inputs["encoder_hidden_states_image"] = torch.randn(batch, 5, 8, generator=random)
    return _toy(model, inputs, layers, keys=(512, 5))


def wan_vace(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Wan VACE: blocks on a control video beside the model's own; grid (frames, height/2, width/2)."""
    from diffusers import WanVACETransformer3DModel

    control = list(range(0, layers, 2))
    model = WanVACETransformer3DModel(**_CONFIG, num_layers=layers, vace_layers=control, vace_in_channels=6)
    random = randomise(model)
    inputs = _inputs(random, batch, frames, height, width)
    inputs["control_hidden_states"] = torch.randn(batch, 6, frames, height, width, generator=random)
    inputs["control_hidden_states_scale"] = torch.rand(len(control), generator=random) + 0.5
    return _toy(model, inputs, layers, blocks={"blocks": layers, "vace_blocks": len(control)})


def chronoedit(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """ChronoEdit: Wan with an image and a gap in time; grid (frames, height/2, width/2)."""
    from diffusers import ChronoEditTransformer3DModel

    model = ChronoEditTransformer3DModel(
        **_CONFIG | {"in_channels": 9}, num_layers=layers, image_dim=8, added_kv_proj_dim=24
    )
    random = randomise(model)
    inputs = _inputs(random, batch, frames, height, width, channels=9, text=512)
    inputs["encoder_hidden_states_image"] = torch.randn(batch, 5, 8, generator=random)
    return _toy(model, inputs, layers, keys=(512, 5))


def _inputs(
    random: torch.Generator, batch: int, frames: int, height: int, width: int, channels: int = 4, text: int = _TEXT
) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(batch, channels, frames, height, width, generator=random),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, text, 16, generator=random),
    }


def _toy(
    model: torch.nn.Module,
    inputs: dict[str, Any],
    layers: int,
    keys: tuple[int, ...] = (_TEXT,),
    blocks: dict[str, int] | None = None,
) -> Toy:
    frames, height, width = inputs["hidden_states"].shape[2:]
    grid = (frames, height // 2, width // 2)
    reasons = tuple(f"cross-attention: {torch.Size(grid).numel()} queries, {length} keys" for length in keys)
    groups = [paths(f"{name}.*", count) for name, count in (blocks or {"blocks": layers}).items()]
    found = [path for group in groups for path in group]
    return Toy(
        model=model,
        inputs=inputs,
        grid=grid,
        text=0,
        carved=tuple(f"{path}.attn1" for path in found),
        left={f"{path}.attn2": reasons if len(reasons) > 1 else reasons[0] for path in found},
    )
