"""Real diffusers classes at toy size, random weights, with inputs: what the compiler is tried on."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Toy:
    """A model and one call of it."""

    model: nn.Module
    inputs: dict[str, Any]
    grid: tuple[int, int, int]
    text: int
    """Condition tokens on the video's axis."""
    carved: tuple[str, ...]
    """Module paths of the sites that must be carved."""
    left: dict[str, str]
    """Module path of every other site, and how its reason begins."""

    def run(self, model: Any = None) -> Tensor:
        with torch.no_grad():
            out: Tensor = (self.model if model is None else model)(**self.inputs, return_dict=False)[0]
        return out

    def cuda(self) -> Toy:
        inputs = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return dataclasses.replace(self, model=copy.deepcopy(self.model).cuda(), inputs=inputs)

    def to(self, dtype: torch.dtype) -> Toy:
        inputs = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.inputs.items()
        }
        return dataclasses.replace(self, model=copy.deepcopy(self.model).to(dtype), inputs=inputs)


def hunyuan(batch: int = 2, frames: int = 5, height: int = 16, width: int = 24, text: int = 12, layers: int = 1) -> Toy:
    """HunyuanVideo: joint attention [video, text], a key-padding mask a sample; grid (frames, height/2, width/2)."""
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_single_layers=layers,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=False,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    random = _randomise(model)
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[0, text // 2 :] = False
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": torch.randn(batch, text, 16, generator=random),
            "encoder_attention_mask": mask,
            "pooled_projections": torch.randn(batch, 8, generator=random),
        },
        grid=(frames, height // 2, width // 2),
        text=text,
        carved=tuple(f"{kind}.{layer}.attn" for kind in _HUNYUAN_BLOCKS for layer in range(layers)),
        left={"context_embedder.token_refiner.refiner_blocks.0.attn": "short"},
    )


_HUNYUAN_BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def wan(batch: int = 1, frames: int = 5, height: int = 16, width: int = 24, layers: int = 2) -> Toy:
    """Wan: video-only self-attention, text through cross-attention; grid (frames, height/2, width/2)."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=32,
    )
    random = _randomise(model)
    return Toy(
        model=model,
        inputs={
            "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": torch.randn(batch, 7, 16, generator=random),
        },
        grid=(frames, height // 2, width // 2),
        text=0,
        carved=tuple(f"blocks.{layer}.attn1" for layer in range(layers)),
        left={f"blocks.{layer}.attn2": "cross-attention: 480 queries, 7 keys" for layer in range(layers)},
    )


def _randomise(model: nn.Module) -> torch.Generator:
    """Seeded weights without zeros, so that no branch of the network is silent; and the generator for the inputs."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=random) * scale
    model.eval()
    return random
