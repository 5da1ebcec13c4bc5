"""The packaged text-to-video model as a diffusers pipeline: a prompt in, frames out.

v = v("") + guidance (v(prompt) - v(""));   x <- x + (s_next - s) v,   s from 1 to 0 along the scheduler's sigmas.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from jenga_compile.errors import ModelWeightsMissing, PromptEmpty, SizeNotDivisible
from jenga_compile.zoo.model import TextEncoder


class ToyVideoOutput(BaseOutput):  # type: ignore[misc]
    """`frames`: uint8 [B, T, H, W, 3] on the CPU, or the float clip [B, 3, T, H, W] in [-1, 1] for "latent"."""

    frames: Tensor


class ToyVideoPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Flow matching in pixel space; the "latents" of diffusers' vocabulary are the pixels themselves."""

    model_cpu_offload_seq = "text_encoder->transformer"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, transformer: Any, scheduler: Any, text_encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )

    @classmethod
    def packaged(cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ToyVideoPipeline:
        """The model that ships with the package.

        Raises:
            ModelWeightsMissing: the weights are not in this installation.
        """
        return cls.from_folder(Path(str(files("jenga_compile.zoo") / "weights")), device, dtype)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_model: Path | None = None,
    ) -> ToyVideoPipeline:
        """A model as `train.py` writes it: `folder/transformer` and `folder/scheduler` in diffusers' format.

        `text_model` is a folder of all-MiniLM-L6-v2, by default that of the installed package.
        """
        if not (folder / "transformer" / "config.json").is_file():
            raise ModelWeightsMissing(folder=str(folder))
        transformer = HunyuanVideoTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype, low_cpu_mem_usage=False
        )
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        text = TextEncoder.load(text_model, device)
        return cls(transformer.to(device).eval(), scheduler, text.model, text.tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int = 64,
        width: int = 64,
        num_frames: int = 16,
        num_inference_steps: int = 24,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "uint8",
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> ToyVideoOutput:
        """Sample one clip a prompt.

        Args:
            prompt: B prompts, or one.
            height, width: in pixels, multiples of the model's patch; trained at 48, 64 and 80.
            num_frames: T, a multiple of the model's temporal patch; trained at 16 alone.
            num_inference_steps: Euler steps.
            guidance_scale: 1.0 switches guidance, and its doubled batch, off.
            generator: source of the initial noise; on the CPU it gives the same clip for every device.
            latents: the initial noise itself, [B, 3, T, H, W].
            output_type: "uint8" or "latent".
            callback_on_step_end: called with (pipe, step, timestep, {"latents": clip}); may return a new clip.

        Raises:
            PromptEmpty, SizeNotDivisible: before any work.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self.check_inputs(prompts, height=height, width=width, num_frames=num_frames)
        transformer, device = self.transformer, self.transformer.device
        guided = guidance_scale != 1.0
        text = self._encode(prompts, guided)
        shape = (len(prompts), transformer.config.in_channels, num_frames, height, width)
        clip = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.to(device)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        with self.progress_bar(total=num_inference_steps) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps):
                velocity = self._velocity(clip, timestep, text, guidance_scale)
                clip = self.scheduler.step(velocity, timestep, clip, return_dict=False)[0]
                if callback_on_step_end is not None:
                    clip = callback_on_step_end(self, step, timestep, {"latents": clip}).get("latents", clip)
                progress.update()
        self.maybe_free_model_hooks()
        return ToyVideoOutput(frames=clip if output_type == "latent" else to_uint8(clip))

    def check_inputs(self, prompts: Sequence[str], **sizes: int) -> None:
        """Raise unless there are prompts, none empty, and every size, by its name, is a multiple of the patch.

        Raises:
            PromptEmpty, SizeNotDivisible: it is not so.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise PromptEmpty(prompts=list(prompts))
        config = self.transformer.config
        for name, size in sizes.items():
            patch = config.patch_size_t if name == "num_frames" else config.patch_size
            if size < patch or size % patch:
                raise SizeNotDivisible(name=name, size=size, patch=patch, near=max(patch, round(size / patch) * patch))

    def _encode(self, prompts: Sequence[str], guided: bool) -> dict[str, Tensor]:
        texts = [*prompts, *[""] * len(prompts)] if guided else list(prompts)
        encoder = TextEncoder(self.tokenizer, self.text_encoder)
        for prompt in prompts:
            ignored = encoder.ignored(prompt)
            if ignored:
                warnings.warn(f"the prompt is too long for the model: {ignored!r} is ignored", stacklevel=3)
        parameter = next(self.transformer.parameters())
        hidden, mask, pooled = (part.to(parameter.device, parameter.dtype) for part in encoder.encode(texts))
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask, "pooled_projections": pooled}

    def _velocity(self, clip: Tensor, timestep: Tensor, text: dict[str, Tensor], guidance: float) -> Tensor:
        batch = len(text["pooled_projections"])
        guided = batch > len(clip)
        inputs = torch.cat([clip, clip]) if guided else clip
        velocity: Tensor = self.transformer(
            hidden_states=inputs.to(text["pooled_projections"].dtype),
            timestep=timestep.expand(batch),
            return_dict=False,
            **text,
        )[0].float()
        if not guided:
            return velocity
        prompted, free = velocity.chunk(2)
        return free + guidance * (prompted - free)


def to_uint8(clip: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] in [-1, 1] -> uint8 [B, T, H, W, 3] on the CPU."""
    pixels = clip.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).cpu()
