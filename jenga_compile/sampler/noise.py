"""How much noise is in the latents at each step: x_t = alpha x0 + sigma eps, whatever the scheduler calls it.

flow            alpha = 1 - sigma    the model gives v = eps - x0, so x0 = x - sigma v (paper, Eq. 4)
v_prediction    alpha^2 + sigma^2 = 1                              x0 = alpha x - sigma v
epsilon         as that                                            x0 = (x - sigma e) / alpha
sample          as that                                            x0 = what the model gives
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from jenga_compile.errors import SchedulerUnfit

Prediction = Literal["flow", "v_prediction", "epsilon", "sample"]


@dataclasses.dataclass(frozen=True)
class Level:
    """The noise of a step."""

    alpha: float
    sigma: float

    def x0(self, x: Tensor, predicted: Tensor, prediction: Prediction) -> Tensor:
        """The clean latents that the model foresees from `x`, in x's type and computed in no less than float32."""
        kind, x, predicted = x.dtype, *_at_least_float32(x, predicted)
        match prediction:
            case "flow":
                clean = x - self.sigma * predicted
            case "v_prediction":
                clean = self.alpha * x - self.sigma * predicted
            case "epsilon":
                clean = (x - self.sigma * predicted) / self.alpha
            case "sample":
                clean = predicted
        return clean.to(kind)

    def noised(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The latents of this step that come from clean ones, in their type."""
        clean, noise = _at_least_float32(x0, noise)
        return (self.alpha * clean + self.sigma * noise).to(x0.dtype)

    def shifted(self, ratio: float) -> Level:
        """This level of a flow schedule under a shift `ratio` times as large."""
        sigma = _shifted(self.sigma, ratio)
        return Level(1 - sigma, sigma)


def prediction_of(scheduler: Any) -> Prediction:
    """What the model of this scheduler predicts.

    Raises:
        SchedulerUnfit: it is not known how the scheduler mixes noise.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    if config.get("invert_sigmas", False):
        raise _unfit(name, "its sigmas rise")
    if config.get("prediction_type") == "flow_prediction" or name.startswith("FlowMatch"):
        return "flow"
    known: dict[str | None, Prediction] = {"v_prediction": "v_prediction", "epsilon": "epsilon", "sample": "sample"}
    found = known.get(config.get("prediction_type"))
    solver = hasattr(scheduler, "_sigma_to_alpha_sigma_t") and not name.startswith("EDM")
    # Those with sigmas besides let the noise grow beside the latents; PNDM's history cannot be begun anew.
    steps_by_alphas = hasattr(scheduler, "alphas_cumprod") and not (hasattr(scheduler, "sigmas") or "PNDM" in name)
    if found is None or not (solver or steps_by_alphas):
        raise _unfit(name, "nothing says how it mixes latents and noise")
    return found


def check_order(scheduler: Any, switch: str) -> None:
    """Refuse a scheduler that calls the model more than once a step.

    Raises:
        SchedulerUnfit: it does.
    """
    if scheduler.order != 1:
        raise SchedulerUnfit(
            scheduler=type(scheduler).__name__,
            switch=switch,
            why=f"it calls the model {scheduler.order} times a step",
            better="FlowMatchEulerDiscreteScheduler",
        )


def levels_of(scheduler: Any) -> list[Level]:
    """The noise at each step that the scheduler has set, and after the last."""
    if prediction_of(scheduler) == "flow":
        return [Level(1 - sigma, sigma) for sigma in scheduler.sigmas.tolist()]
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        pairs = [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in scheduler.sigmas.cpu()]
        return [Level(float(alpha), float(sigma)) for alpha, sigma in pairs]
    kept = scheduler.alphas_cumprod[scheduler.timesteps.cpu().long()].tolist()
    return [Level(math.sqrt(share), math.sqrt(1 - share)) for share in [*kept, 1.0]]


def shift_schedule(scheduler: Any, added: Sequence[float], mu: float | None) -> bool:
    """Shift each step of a flow schedule that was set: sigmas and timesteps become those of a shift larger by `added`.

    Shifts compose, f_a(f_b(u)) = f_ab(u) for f_s(u) = s u / (1 + (s - 1) u), so only the ratio to the schedule's own
    shift is needed. Nothing is done where nothing is added.

    Args:
        scheduler: after `set_timesteps`.
        added: for each step.
        mu: what `set_timesteps` was given, for schedulers that shift by the number of tokens.

    Returns:
        Whether the schedule is one that can be shifted.
    """
    if not any(added):
        return True
    own = _own_shift(scheduler, mu)
    if own is None:
        return False
    sigmas, timesteps = scheduler.sigmas.clone(), scheduler.timesteps.clone()
    for step, more in enumerate(added):
        if more:
            sigmas[step] = _shifted(float(sigmas[step]), (own + more) / own)
            # In the scheduler's own arithmetic, which for some ends in an integer.
            timesteps[step] = (sigmas[step] * scheduler.config.num_train_timesteps).to(timesteps.dtype)
    scheduler.sigmas, scheduler.timesteps = sigmas, timesteps
    return True


def shift_ratio(scheduler: Any, mu: float | None, before: float, after: float) -> float:
    """By how much a shift of `after` more than the schedule's own is larger than one of `before` more."""
    own = _own_shift(scheduler, mu)
    return 1.0 if own is None else (own + after) / (own + before)


def _own_shift(scheduler: Any, mu: float | None) -> float | None:
    config = scheduler.config
    if prediction_of(scheduler) != "flow":
        return None
    if config.get("use_dynamic_shifting", False):
        if mu is None:
            return None
        return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    shift = config.get("flow_shift")
    return float(scheduler.shift if shift is None else shift)


def _shifted(sigma: float, ratio: float) -> float:
    return ratio * sigma / (1 + (ratio - 1) * sigma)


def _at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)


def _unfit(scheduler: str, why: str) -> SchedulerUnfit:
    return SchedulerUnfit(
        scheduler=scheduler, switch="stages", why=why, better="FlowMatchEulerDiscreteScheduler or UniPC"
    )
