"""Noise levels of every scheduler: the model's prediction and the noise give back what was mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from jenga_compile.errors import SchedulerUnfit
from jenga_compile.sampler.noise import Level, check_order, levels_of, prediction_of, shift_ratio, shift_schedule
from tests.sampler.pipelines import DIFFUSERS_WARNS

pytestmark = DIFFUSERS_WARNS


def euler(shift: float = 7.0, **config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **config)


def unipc(shift: float = 7.0) -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def dpm(shift: float = 7.0) -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "euler": euler,
    "unipc": unipc,
    "dpm": dpm,
    "unipc epsilon": lambda: diffusers.UniPCMultistepScheduler(),
    "dpm v": lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "ddim": lambda: diffusers.DDIMScheduler(),
    "cogvideox": lambda: diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    "cogvideox dpm": lambda: diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_clean_latents_are_found_again(name: str) -> None:
    """x_t mixed with the level's own shares, and the exact prediction: x0 comes out."""
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(10)
    levels, prediction = levels_of(scheduler), prediction_of(scheduler)
    assert len(levels) == 11
    random = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 3, 4, dtype=torch.float64, generator=random) for _ in range(2))
    for level in levels[1:]:
        x = level.noised(x0, noise)
        exact = {
            "flow": noise - x0,
            "v_prediction": level.alpha * noise - level.sigma * x0,
            "epsilon": noise,
            "sample": x0,
        }[prediction]
        torch.testing.assert_close(level.x0(x, exact, prediction), x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_levels_are_the_schedulers_own(name: str) -> None:
    """Noise goes down; and what diffusers' own `add_noise` makes of nothing but noise is sigma times it."""
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(10)
    levels = levels_of(scheduler)
    sigmas = [level.sigma for level in levels]
    assert sigmas == sorted(sigmas, reverse=True)
    if not hasattr(scheduler, "add_noise"):
        return
    noise, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for index, timestep in enumerate(scheduler.timesteps):
        made = scheduler.add_noise(nothing, noise, timestep.reshape(1))
        assert float(made) == pytest.approx(sigmas[index], abs=2e-3)


def test_the_switch_takes_the_noise_of_its_own_step() -> None:
    """Known values, shift 7 to 9 at step 25 of 50: x0 = 2, and 2.075 with the authors' sigma."""
    scheduler = euler(7.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 51)[:-1].tolist())
    level = levels_of(scheduler)[25]
    assert level.sigma == pytest.approx(0.875, abs=1e-6)
    x0, eps, v = (torch.tensor([value], dtype=torch.float64) for value in (2.0, -1.0, -3.0))
    x = level.noised(x0, eps)
    assert float(level.x0(x, v, "flow")) == pytest.approx(2.0, abs=1e-6)
    theirs = level.shifted(shift_ratio(scheduler, None, 0.0, 2.0))
    assert theirs.sigma == pytest.approx(0.9, abs=1e-6)
    assert float(theirs.x0(x, v, "flow")) == pytest.approx(2.075, abs=1e-6)


@pytest.mark.parametrize("make", [euler, unipc, dpm])
def test_shifts_compose(make: Callable[[float], Any]) -> None:
    """A schedule of shift 7 that is shifted by 2 more is one of shift 9."""
    shifted, known = make(7.0), make(9.0)
    for scheduler in (shifted, known):
        if make is euler:
            scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 51)[:-1].tolist())
        else:
            scheduler.set_timesteps(50)
    before = shifted.sigmas.clone()
    assert shift_schedule(shifted, [0.0] * 10 + [2.0] * 40, None)
    assert torch.equal(shifted.sigmas[:10], before[:10])
    torch.testing.assert_close(shifted.sigmas[10:], known.sigmas[10:], rtol=0, atol=1e-6)
    difference = (shifted.timesteps[10:].float() - known.timesteps[10:].float()).abs().max()
    assert difference <= (1e-3 if make is euler else 1)
    assert shifted.timesteps.dtype == known.timesteps.dtype


def test_a_schedule_that_depends_on_the_tokens_is_shifted() -> None:
    """mu = ln 7 is a shift of 7."""
    import math

    mu = math.log(7.0)
    dynamic, plain = euler(1.0, use_dynamic_shifting=True), euler(9.0)
    sigmas = torch.linspace(1, 0, 51)[:-1].tolist()
    dynamic.set_timesteps(sigmas=sigmas, mu=mu)
    plain.set_timesteps(sigmas=sigmas)
    assert shift_schedule(dynamic, [2.0] * 50, mu)
    torch.testing.assert_close(dynamic.sigmas, plain.sigmas, rtol=0, atol=1e-6)


def test_a_schedule_with_strides_of_its_own_is_not_shifted() -> None:
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    before = scheduler.timesteps.clone()
    assert not shift_schedule(scheduler, [2.0] * 10, None)
    assert torch.equal(scheduler.timesteps, before)
    assert shift_schedule(scheduler, [0.0] * 10, None)


def test_schedulers_that_mix_otherwise_are_refused() -> None:
    with pytest.raises(SchedulerUnfit, match="its sigmas rise"):
        prediction_of(euler(invert_sigmas=True))
    with pytest.raises(SchedulerUnfit, match="nothing says how it mixes"):
        prediction_of(diffusers.DDIMScheduler.from_config({"prediction_type": "other"}))
    for other in (diffusers.EulerDiscreteScheduler, diffusers.PNDMScheduler, diffusers.EDMDPMSolverMultistepScheduler):
        with pytest.raises(SchedulerUnfit, match="nothing says how it mixes"):
            prediction_of(other())
    with pytest.raises(SchedulerUnfit, match="2 times a step"):
        check_order(diffusers.HeunDiscreteScheduler(), "skip")


def test_half_precision_is_mixed_in_float32() -> None:
    level = Level(0.125, 0.875)
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    v = torch.randn(64, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(level.x0(x, v, "flow"), (x.float() - 0.875 * v.float()).bfloat16())
