"""What training swaps in for speed, and what it optimises with. Nothing here changes what the model computes.

`make_trainable` replaces two parts of a HunyuanVideo transformer by equal ones over the same parameters:
  * attention without a mask: ours is all ones, and a mask would rule flash attention out;
  * the patch embedding as a matmul: a Conv3d whose stride is its kernel, without cuDNN's slow 3D paths.
State-dict keys stay the same. `Ema` is the power-law average of Karras et al. 2024 (EDM2).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

MUON_BLOCKS = ("transformer_blocks.", "token_refiner.")


class MaskFreeAttention:
    """HunyuanVideoAttnProcessor2_0 with every token attended. Shapes: video [B, N, C], text [B, L, C]."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if image_rotary_emb is None:
            raise TypeError("MaskFreeAttention needs the rotary table")
        cos, sin = (table[None, :, None] for table in image_rotary_emb)  # [1, N, 1, D]
        text = encoder_hidden_states.shape[1]
        if attn.add_q_proj is None:
            tokens = torch.cat([hidden_states, encoder_hidden_states], dim=1)
            cos = F.pad(cos, (0, 0, 0, 0, 0, text), value=1.0)  # text is not rotated
            sin = F.pad(sin, (0, 0, 0, 0, 0, text), value=0.0)
        else:
            tokens = hidden_states
        query, key, value = (
            projection(tokens).unflatten(2, (attn.heads, -1)) for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = _rotate(attn.norm_q(query), cos, sin).to(value.dtype)
        key = _rotate(attn.norm_k(key), cos, sin).to(value.dtype)
        if attn.add_q_proj is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            q, k, v = (p(encoder_hidden_states).unflatten(2, (attn.heads, -1)) for p in projections)
            query = torch.cat([query, attn.norm_added_q(q).to(v.dtype)], dim=1)
            key = torch.cat([key, attn.norm_added_k(k).to(v.dtype)], dim=1)
            value = torch.cat([value, v], dim=1)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, N + L, D]
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        video, context = out[:, :-text], out[:, -text:]
        if attn.add_q_proj is not None:
            video, context = attn.to_out[0](video), attn.to_add_out(context)
        return video, context


class MaskFreeRefiner:
    """AttnProcessor2_0 without the (all ones) mask, for the text refiner."""

    def __init__(self) -> None:
        self.plain = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        return self.plain(attn, hidden_states)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs, in float32. x: [B, N, H, D]."""
    real, imaginary = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return x.float() * cos + torch.stack([-imaginary, real], dim=-1).flatten(-2) * sin


class LinearPatchEmbed(nn.Module):
    """The patch embedding [B, C, T, H, W] -> [B, N, width] as one matmul over the convolution's own weight."""

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, clip: Tensor) -> Tensor:
        b, c, t, h, w = clip.shape
        pt, ph, pw = self.proj.kernel_size
        patches = clip.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        flat = patches.reshape(b, (t // pt) * (h // ph) * (w // pw), c * pt * ph * pw)
        return F.linear(flat, self.proj.weight.flatten(1), self.proj.bias)


def make_trainable(transformer: Any) -> Any:
    """Swap the two parts in place; returns the transformer."""
    transformer.x_embedder = LinearPatchEmbed(transformer.x_embedder.proj)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.set_processor(MaskFreeAttention())
    for block in transformer.context_embedder.token_refiner.refiner_blocks:
        block.attn.set_processor(MaskFreeRefiner())
    return transformer


def attention_order(choice: str, device: torch.device, shape: tuple[int, int, int, int]) -> list[SDPBackend]:
    """Attention backends by preference; "auto" races cuDNN against flash over forward and backward passes.

    shape: [B, N, H, D] of the race.
    """
    fallback = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    rivals = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    if device.type != "cuda":
        return [SDPBackend.FLASH_ATTENTION, *fallback]
    if choice != "auto":
        return [rivals[choice], *fallback]
    seconds = {}
    for name, backend in rivals.items():
        qkv = [torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        try:
            with sdpa_kernel(backend):
                for trial in range(8):
                    if trial == 3:
                        torch.cuda.synchronize()
                        start = time.perf_counter()
                    query, key, value = (x.transpose(1, 2) for x in qkv)
                    out = F.scaled_dot_product_attention(query, key, value)
                    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
                seconds[name] = (time.perf_counter() - start) / 5
        except RuntimeError as error:
            print(f"attention: {name} is not available: {str(error).splitlines()[0]}", flush=True)
    order = sorted(seconds, key=lambda name: seconds[name])
    print("attention: " + ", ".join(f"{name} {1e3 * seconds[name]:.2f} ms" for name in order), flush=True)
    return [*(rivals[name] for name in order), *fallback]


def build_optimizers(
    transformer: Any, *, muon_lr: float, adamw_lr: float, weight_decay: float, fused: bool
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' hidden matrices, AdamW for embeddings, modulation, output layer and vectors.

    Muon's step is scaled to AdamW's RMS (0.2 sqrt(max(rows, columns))), so both rates live on AdamW's scale.
    """
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in transformer.named_parameters():
        is_hidden = parameter.ndim == 2 and any(block in name for block in MUON_BLOCKS) and "norm" not in name
        (hidden if is_hidden else rest).append(parameter)
    muon = torch.optim.Muon(hidden, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


class Ema:
    """Average of the weights with profile t^gamma over the run: it forgets at the pace at which the run grows.

    gamma = 17 weighs about the last tenth of the run (EDM2's sigma_rel = 0.05).
    """

    def __init__(self, parameters: Iterable[Tensor], gamma: float = 17.0) -> None:
        self.parameters = list(parameters)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.gamma = gamma

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after step number `step`, counted from 1."""
        weight = 1 - (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(self.average, self.parameters, weight)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        for target, average in zip(parameters, self.average, strict=True):
            target.copy_(average)

    @torch.no_grad()
    def load(self, average: Iterable[Tensor]) -> None:
        for target, source in zip(self.average, average, strict=True):
            target.copy_(source)
