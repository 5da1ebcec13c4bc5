"""Progressive resolution: what the transformer sees, what happens at a switch, and what it may not be used with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile import Carving, Stage
from jenga_compile.errors import OptionOutOfRange, SchedulerUnfit, SizeNotDivisible, StagesUnfit, StageTooSmall
from jenga_compile.sampler.corner import Corner, resize
from tests.sampler.pipelines import (
    DIFFUSERS_WARNS,
    IMAGE,
    TEXT,
    Case,
    cogvideox,
    hunyuan,
    ltx,
    wan_euler,
    wan_token_timesteps,
)

pytestmark = DIFFUSERS_WARNS
ONLY: dict[str, Any] = {"carving": None, "skip": None, "amplifier": 0.0}


def seen_by(case: Case, name: str = "hidden_states") -> list[Any]:
    """What each call of the transformer is given as `name`."""
    given: list[Any] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(kwargs[name])

    for model in (case.pipe.transformer, getattr(case.pipe, "transformer_2", None)):
        if model is not None:
            model.register_forward_pre_hook(note, with_kwargs=True)
    return given


@pytest.mark.parametrize("name", TEXT)
def test_the_transformer_sees_small_latents_and_the_pipeline_does_not(name: str) -> None:
    case = TEXT[name]()
    seen, shapes = seen_by(case), []

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        shapes.append(tensors["latents"].shape)
        return {}

    full = case.run().shape
    seen.clear()
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY):
        made = case.run(callback_on_step_end=callback)
    assert made.shape == full
    assert set(shapes) == {full}
    assert made.isfinite().all()
    small, large = seen[0], seen[-1]
    if name == "ltx":
        assert (small.shape[1], large.shape[1]) == (2 * 3 * 4, 2 * 4 * 6)
    else:
        assert (small.shape[-2:], large.shape[-2:]) == ((6, 8), (8, 12))


def test_everything_else_that_shows_the_size_goes_with_it() -> None:
    tables = seen_by(case := cogvideox(), "image_rotary_emb")
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY):
        case.run()
    assert [len(pair[0]) for pair in (tables[0], tables[-1])] == [2 * 3 * 4, 2 * 4 * 6]
    rows = seen_by(case := ltx(), "height")
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY):
        case.run()
    assert (rows[0], rows[-1]) == (3, 4)
    timesteps = seen_by(case := wan_token_timesteps(), "timestep")
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY):
        case.run()
    assert (timesteps[0].shape, timesteps[-1].shape) == ((1, 2 * 3 * 4), (1, 2 * 4 * 6))


@pytest.mark.parametrize("mode", ["trilinear", "area"])
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("make", [hunyuan, wan_euler])
def test_a_switch_is_the_papers_equation(make: Any, parity: bool, mode: Any) -> None:
    """By hand: Euler steps at the small size, x0 of the last one, resized, noise of the next step, Euler steps."""
    case = make()
    model, calls = case.pipe.transformer, []

    def note(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        calls.append((kwargs["hidden_states"], kwargs["timestep"], out[0]))

    model.register_forward_hook(note, with_kwargs=True)
    with jenga_compile.accelerate(case.pipe, "turbo", resize=mode, parity=parity, **ONLY) as accelerated:
        made = case.run(guidance_scale=1.0)
    sigmas = [step.sigma for step in accelerated.report().steps] + [0.0]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 4, 2, 8, 12, generator=generator)
    x = start[..., :6, :8]
    for index, (given, timestep, v) in enumerate(calls):
        assert float(timestep.flatten()[0]) == pytest.approx(1000 * sigmas[index], rel=1e-6)
        torch.testing.assert_close(given, x, rtol=1e-5, atol=1e-5)
        now, after = sigmas[index], sigmas[index + 1]
        if index == 3:
            shift = {hunyuan: 7.0, wan_euler: 8.0}[make]
            if parity and make is hunyuan:
                now = shifted(now, (shift + 2) / shift)
            if parity and make is wan_euler:
                after = shifted(after, shift / (shift + 2))
            source, target = (Corner("channels_first", 2, (8, 12), part) for part in ((6, 8), (8, 12)))
            clean = resize(x - now * v, source, target, mode)
            x = (1 - after) * clean + after * torch.randn(clean.shape, generator=generator)
        else:
            x = x + (after - now) * v
    torch.testing.assert_close(made, x, rtol=1e-5, atol=1e-5)


def shifted(sigma: float, ratio: float) -> float:
    return ratio * sigma / (1 + (ratio - 1) * sigma)


@pytest.mark.parametrize("name", ["wan", "wan-dpm", "cogvideox-dpm"])
def test_a_solver_forgets_the_stage_before(name: str) -> None:
    """The steps of the last stage are those of a new solver that begins there."""
    case = TEXT[name]()
    seen: list[tuple[Any, dict[str, Any]]] = []

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        history = {key: value for key, value in vars(pipe.scheduler).items() if key in _HISTORY}
        seen.append((index, copy.deepcopy(history)))
        return {}

    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY):
        case.run(callback_on_step_end=callback)
    fresh = vars(type(case.pipe.scheduler).from_config(case.pipe.scheduler.config))
    for index, history in seen:
        if index == 3:  # the last step of the first stage, after which all is put back
            assert {key: fresh[key] for key in history} == history
        elif history:
            assert history["lower_order_nums"] > 0


_HISTORY = {"model_outputs", "timestep_list", "lower_order_nums", "last_sample"}


@pytest.mark.parametrize("name", TEXT)
def test_one_stage_is_the_plain_pipeline(name: str) -> None:
    case = TEXT[name]()
    plain = case.run()
    with jenga_compile.accelerate(case.pipe, "turbo", stages=(Stage(carving=Carving()),), **ONLY):
        assert torch.equal(case.run(), plain)


@pytest.mark.parametrize("name", IMAGE)
def test_no_stages_where_the_video_starts_from_an_image(name: str) -> None:
    case = IMAGE[name]()
    before = type(case.pipe)
    with pytest.raises(StagesUnfit, match=r"its call takes image, .* Use preset 'base' or pass stages=None"):
        jenga_compile.accelerate(case.pipe, "turbo")
    assert type(case.pipe) is before
    with jenga_compile.accelerate(case.pipe, "turbo", stages=None, **ONLY):
        case.run()


def test_a_video_that_is_too_small_is_refused_before_it_is_computed() -> None:
    case = hunyuan()
    seen = seen_by(case)
    stages = (Stage(scale=0.2, until=0.5, carving=Carving()), Stage(carving=Carving()))
    with (
        jenga_compile.accelerate(case.pipe, "turbo", stages=stages, **ONLY),
        pytest.raises(StageTooSmall, match=r"stage 1 at 0\.2 of the size leaves no token of the 4x6"),
    ):
        case.run()
    assert seen == []


def test_a_size_that_is_not_whole_tokens_is_refused() -> None:
    case = hunyuan()
    said = r"height=72 is not a positive multiple of the model's patch, 16 pixels"
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY), pytest.raises(SizeNotDivisible, match=said):
        case.run(height=72)


def test_schedulers_without_levels_or_with_several_calls_are_refused() -> None:
    import diffusers

    case = hunyuan()
    case.pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    for switches, switch in ((ONLY, "stages"), ({"carving": None, "stages": None}, "skip")):
        with pytest.raises(SchedulerUnfit, match=f"cannot be used with {switch}"):
            jenga_compile.accelerate(case.pipe, "turbo", **switches)
    case.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(SchedulerUnfit, match="its sigmas rise"):
        jenga_compile.accelerate(case.pipe, "turbo", **ONLY)


def test_a_scheduler_that_cannot_be_shifted_is_said() -> None:
    case = cogvideox()
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY) as accelerated:
        case.run()
    assert "shifts play no part: CogVideoXDDIMScheduler" in str(accelerated.report())


@pytest.mark.parametrize(
    "stages",
    [
        (Stage(scale=0.5, carving=Carving()),),
        (Stage(until=0.5, carving=Carving()), Stage(scale=0.5, carving=Carving())),
        (Stage(until=0.5, carving=Carving()), Stage(until=0.4, carving=Carving()), Stage(carving=Carving())),
        "turbo",
    ],
)
def test_stages_that_are_no_schedule_are_refused(stages: Any) -> None:
    with pytest.raises(OptionOutOfRange, match="stages"):
        jenga_compile.accelerate(hunyuan().pipe, "turbo", stages=stages)
