"""The recipe of the shipped model, as a value, and the prompts its contact sheet shows."""

from __future__ import annotations

import dataclasses

from jenga_compile.zoo.model import SPRITE_DIT, TINY_DIT, ModelConfig

PROMPTS = (
    "a fox moving left on a sky blue striped background",
    "a rocket moving up on a black background",
    "a pizza spinning on a green background",
    "a penguin bouncing on a pink background",
    "a ghost growing on a purple gradient background",
    "a basketball moving down on a white checkered background",
    "a panda swinging on an orange background",
    "an octopus standing still on a yellow background",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the run besides the hardware."""

    model: ModelConfig = SPRITE_DIT
    frames: int = 16
    base_size: int = 64
    sizes_early: tuple[tuple[int, float], ...] = ((48, 0.5), (64, 0.5))
    """(size, share of the steps) during the first `early` part: small clips cost 0.44 of a 64 px one."""
    sizes: tuple[tuple[int, float], ...] = ((48, 0.1), (64, 0.8), (80, 0.1))
    early: float = 0.3
    micro_batch: int = 128
    """Clips at `base_size` in one forward pass; other sizes keep the number of video tokens."""
    accumulate: int = 2
    """Forward passes to a step once `early` is over; before, one."""
    muon_lr: float = 3e-3
    adamw_lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_from: float = 0.4
    """Progress at which the learning rate starts its straight way to zero."""
    drop_caption: float = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""
    partial_caption: float = 0.1
    uniform_times: float = 0.15
    """Share of timesteps drawn uniformly before the shift, so that both ends are seen."""
    total_minutes: float = 15.0
    total_steps: int | None = None
    """Progress by steps instead of by the clock: reproducible, for tests."""
    seed: int = 0


SMOKE = TrainConfig(
    model=TINY_DIT,
    frames=4,
    base_size=16,
    sizes_early=((16, 1.0),),
    sizes=((16, 0.8), (24, 0.2)),
    micro_batch=8,
    warmup_steps=3,
    accumulate=1,
    total_steps=12,
)
