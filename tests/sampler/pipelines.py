"""Pipelines of diffusers as users have them, at toy size: random weights, prompts given as embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.toy import randomise

FRAMES, HEIGHT, WIDTH = 5, 64, 96
"""Of the video: two latent frames of 8 x 12 latents, 4 x 6 tokens, with a VAE of 4 and 8 and patches of 2."""

STEPS = 6

DIFFUSERS_WARNS = [
    pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
"""What diffusers warns of while these pipelines are made and run."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A pipeline and the arguments of one call of it."""

    pipe: Any
    call: dict[str, Any]

    def run(self, seed: int = 0, **changes: Any) -> Tensor:
        """The latents that the pipeline ends with."""
        arguments = {"output_type": "latent", "num_inference_steps": STEPS, "return_dict": False} | self.call | changes
        generator = torch.Generator().manual_seed(seed)
        made: Tensor = self.pipe(**arguments, generator=generator)[0]
        return made


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_SIZE = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _hunyuan_model(**config: Any) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (4, 6, 6),
        }
        | config
    )
    randomise(model)
    return model


def _hunyuan_text(batch: int = 1) -> dict[str, Tensor]:
    mask = torch.ones(batch, 10)
    mask[:, 7:] = 0
    return {
        "prompt_embeds": _noise(batch, 10, 16),
        "pooled_prompt_embeds": _noise(batch, 8, seed=2),
        "prompt_attention_mask": mask,
    }


def hunyuan(shift: float = 7.0) -> Case:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=_hunyuan_model(),
        vae=None,
        scheduler=scheduler,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    return Case(_quiet(pipe), {**_hunyuan_text(), **_SIZE})


def hunyuan_true_guidance() -> Case:
    """Two calls a step, told apart by the context that they are made in."""
    case = hunyuan()
    negative = {f"negative_{name}": value.flip(1) for name, value in _hunyuan_text().items()}
    return dataclasses.replace(case, call={**case.call, **negative, "true_cfg_scale": 3.0})


def hunyuan_image(kind: str = "latent_concat") -> Case:
    from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline

    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    channels = 9 if kind == "latent_concat" else 4
    model = _hunyuan_model(in_channels=channels, guidance_embeds=kind == "token_replace", image_condition_type=kind)
    pipe = HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model,
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )
    return Case(_quiet(pipe), {**_hunyuan_text(), **_SIZE, "image": _noise(1, 3, HEIGHT, WIDTH).clamp(-1, 1)})


def hunyuan_token_replace() -> Case:
    return hunyuan_image("token_replace")


def _wan_model(**config: Any) -> Any:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        **{
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        }
        | config
    )
    randomise(model)
    return model


def _unipc(shift: float = 8.0) -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan(scheduler: Any = None, **components: Any) -> Case:
    from diffusers import WanPipeline

    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=_unipc() if scheduler is None else scheduler,
        transformer=_wan_model(),
        **components,
    )
    text = {"prompt_embeds": _noise(1, 6, 16), "negative_prompt_embeds": _noise(1, 6, 16, seed=2)}
    return Case(_quiet(pipe), {**text, **_SIZE, "guidance_scale": 5.0})


def wan_euler() -> Case:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return wan(FlowMatchEulerDiscreteScheduler(shift=8.0))


def wan_dpm() -> Case:
    from diffusers import DPMSolverMultistepScheduler

    return wan(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0))


def wan_two() -> Case:
    """Wan 2.2: one transformer for much noise, another for little."""
    return wan(transformer_2=_wan_model(), boundary_ratio=0.9)


def wan_token_timesteps() -> Case:
    """Wan 2.2 TI2V from text: a timestep a token."""
    return wan(expand_timesteps=True)


def wan_image() -> Case:
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=_unipc(5.0),
        transformer=_wan_model(in_channels=36, out_channels=16),
    )
    text = {"prompt_embeds": _noise(1, 6, 16), "negative_prompt_embeds": _noise(1, 6, 16, seed=2)}
    image = _noise(1, 3, HEIGHT, WIDTH).clamp(-1, 1)
    return Case(_quiet(pipe), {**text, **_SIZE, "image": image, "guidance_scale": 5.0})


def cogvideox(scheduler: Any = None, **config: Any) -> Case:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": WIDTH // 8,
            "sample_height": HEIGHT // 8,
            "sample_frames": FRAMES,
            "patch_size": 2,
            "max_text_seq_length": 6,
            "use_rotary_positional_embeddings": True,
        }
        | config
    )
    randomise(model)
    kind = CogVideoXDDIMScheduler if scheduler is None else scheduler
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=model,
        scheduler=kind(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True),
    )
    text = {"prompt_embeds": _noise(1, 6, 16), "negative_prompt_embeds": _noise(1, 6, 16, seed=2)}
    return Case(_quiet(pipe), {**text, **_SIZE, "guidance_scale": 4.0})


def cogvideox_dpm() -> Case:
    from diffusers import CogVideoXDPMScheduler

    return cogvideox(CogVideoXDPMScheduler)


def ltx() -> Case:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=16,
    )
    randomise(model)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    pipe = LTXPipeline(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=model)
    text = {
        "prompt_embeds": _noise(1, 6, 16),
        "negative_prompt_embeds": _noise(1, 6, 16, seed=2),
        "prompt_attention_mask": torch.ones(1, 6),
        "negative_prompt_attention_mask": torch.ones(1, 6),
    }
    size = {"height": 128, "width": 192, "num_frames": 9}
    return Case(_quiet(pipe), {**text, **size, "guidance_scale": 3.0})


TEXT: dict[str, Callable[[], Case]] = {
    "hunyuan": hunyuan,
    "hunyuan-true-guidance": hunyuan_true_guidance,
    "wan": wan,
    "wan-euler": wan_euler,
    "wan-dpm": wan_dpm,
    "wan-two": wan_two,
    "wan-token-timesteps": wan_token_timesteps,
    "cogvideox": cogvideox,
    "cogvideox-dpm": cogvideox_dpm,
    "ltx": ltx,
}
IMAGE: dict[str, Callable[[], Case]] = {
    "hunyuan-image": hunyuan_image,
    "hunyuan-token-replace": hunyuan_token_replace,
    "wan-image": wan_image,
}
ALL = TEXT | IMAGE
