"""Whole runs of diffusers' pipelines: with every switch off they are the plain pipeline, and so they are afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile import Carving
from jenga_compile.errors import NoRunYet, StepsTooFew
from jenga_compile.presets import COMPUTED, COMPUTED_FROM_IMAGE
from jenga_compile.sampler.run_report import RunReport
from tests.sampler.pipelines import ALL, DIFFUSERS_WARNS, IMAGE, TEXT, Case, hunyuan, wan
from tests.tolerance import assert_rounding

pytestmark = DIFFUSERS_WARNS

OFF: dict[str, Any] = {"carving": None, "skip": None, "amplifier": 0.0}
"""With preset base, whose stages are of one size, nothing is left to do."""

DENSE: dict[str, Any] = {"carving": None, "amplifier": 0.0}


class Stopped(Exception):
    pass


def stop_at(step: int) -> Any:
    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            raise Stopped
        return {}

    return callback


def state(pipe: Any) -> list[Any]:
    """Classes and attributes of all that a run touches."""
    parts = [pipe, pipe.scheduler, pipe.transformer, getattr(pipe, "transformer_2", None)]
    return [(type(part), sorted(vars(part))) for part in parts if part is not None]


@pytest.mark.parametrize("name", ALL)
def test_with_every_switch_off_it_is_the_plain_pipeline(name: str) -> None:
    case = ALL[name]()
    plain = case.run()
    with jenga_compile.accelerate(case.pipe, "base", **OFF):
        assert torch.equal(case.run(), plain)
    for stages_off in ("turbo", "three_stage"):
        with jenga_compile.accelerate(case.pipe, stages_off, stages=None, **OFF):
            assert torch.equal(case.run(), plain)


@pytest.mark.parametrize("name", ALL)
def test_afterwards_it_is_the_plain_pipeline(name: str) -> None:
    case = ALL[name]()
    plain, before = case.run(), state(case.pipe)
    preset = "turbo" if name in TEXT else "base"
    accelerated = jenga_compile.accelerate(case.pipe, preset, **DENSE)
    assert not torch.equal(case.run(num_inference_steps=20), plain)
    accelerated.remove()
    accelerated.remove()
    assert torch.equal(case.run(), plain)
    assert state(case.pipe) == before


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_is_aborted_leaves_nothing(name: str, step: int) -> None:
    case = ALL[name]()
    plain = case.run()
    preset = "three_stage" if name in TEXT else "base"
    with jenga_compile.accelerate(case.pipe, preset, **DENSE) as accelerated:
        whole = case.run()
        before = state(case.pipe)
        with pytest.raises(Stopped):
            case.run(callback_on_step_end=stop_at(step))
        report = accelerated.report()
        assert (len(report.steps), report.planned) == (step + 1, 6)
        assert "the run ended after" in str(report)
        assert state(case.pipe) == before
        assert torch.equal(case.run(), whole)
    assert torch.equal(case.run(), plain)


def test_two_pipelines_do_not_mix() -> None:
    """Not even where they share all their parts."""
    first = hunyuan()
    second = dataclasses.replace(first, pipe=type(first.pipe)(**first.pipe.components))
    second.pipe.set_progress_bar_config(disable=True)
    alone = []
    for preset in ("turbo", "three_stage"):
        with jenga_compile.accelerate(first.pipe, preset, **DENSE):
            alone.append(first.run())
    with (
        jenga_compile.accelerate(first.pipe, "turbo", **DENSE) as one,
        jenga_compile.accelerate(second.pipe, "three_stage", **DENSE) as two,
    ):
        together = [first.run(), second.run()]
        assert "three_stage" in jenga_compile.report().title
        assert ("turbo" in one.report().title, "three_stage" in two.report().title) == (True, True)
        assert torch.equal(first.run(), together[0])
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])


def test_a_pipeline_may_run_inside_the_run_of_another() -> None:
    outer, inner = hunyuan(), wan()
    with jenga_compile.accelerate(outer.pipe, "turbo", **DENSE), jenga_compile.accelerate(inner.pipe, "turbo", **DENSE):
        expected = outer.run(), inner.run()
        made = []

        def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            made.append(inner.run())
            return {}

        assert torch.equal(outer.run(callback_on_step_end=callback), expected[0])
        assert all(torch.equal(latents, expected[1]) for latents in made)


@pytest.mark.parametrize("name", TEXT)
def test_a_seed_reproduces_a_run(name: str) -> None:
    case = TEXT[name]()
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE):
        first, other, again = case.run(seed=0), case.run(seed=1), case.run(seed=0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()


NFE = [
    ("hunyuan", "base", 50, (12, 11), (26, 24)),
    ("hunyuan", "turbo", 50, (12, 11), (26, 24)),
    ("hunyuan", "flash", 50, (12, 11), (26, 24)),
    ("hunyuan", "three_stage", 50, (8, 4, 11), (16, 10, 24)),
    ("hunyuan", "base_release", 50, (12, 11), (26, 24)),
    ("hunyuan", "flash_release", 50, (12, 11), (26, 24)),
    ("hunyuan", "three_stage_release", 50, (8, 4, 11), (16, 10, 24)),
    ("hunyuan", "turbo", 5, (3, 2), (3, 2)),
    ("wan", "turbo", 50, (12, 11), (26, 24)),
    ("wan", "base", 50, (12, 11), (26, 24)),
    ("hunyuan-image", "base", 50, (12, 12), (26, 24)),
    ("hunyuan-token-replace", "base", 50, (12, 12), (26, 24)),
    ("wan-image", "base", 50, (12, 11), (26, 24)),
]
"""Computed steps and lengths of the stages: the authors' code, counted; 24 from images, 5 for few-step models."""


@pytest.mark.parametrize(("name", "preset", "steps", "computed", "lengths"), NFE)
def test_as_many_steps_are_computed_as_the_tables_say(
    name: str, preset: str, steps: int, computed: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    report = logged(ALL[name](), preset, steps)
    stages = range(1, len(lengths) + 1)
    assert tuple(sum(step.computed for step in report.steps if step.stage == stage) for stage in stages) == computed
    assert tuple(sum(step.stage == stage for step in report.steps) for stage in stages) == lengths
    assert report.computed == sum(computed)
    if steps == 50:
        listed = COMPUTED_FROM_IMAGE if name.startswith("hunyuan-") else COMPUTED
        assert tuple(step.index for step in report.steps if step.computed) == listed


def logged(case: Case, preset: str, steps: int, **switches: Any) -> RunReport:
    with jenga_compile.accelerate(case.pipe, preset, **(DENSE | switches)) as accelerated:
        case.run(num_inference_steps=steps)
        return accelerated.report()


def test_the_noise_of_a_run_is_that_of_the_tables() -> None:
    """Shift 7, then 9 and 11: algorithm of the authors, 50 steps."""
    turbo = {step.index: step for step in logged(hunyuan(shift=7.0), "turbo", 50).steps}
    known = {0: 1, 1: 0.997093, 5: 0.984375, 10: 0.965517, 15: 0.942308, 24: 0.883495, 25: 0.875}
    known |= {26: 0.892562, 30: 0.857143, 40: 0.692308, 49: 0.155172}
    assert {index: turbo[index].sigma for index in known} == pytest.approx(known, abs=1e-6)
    assert turbo[25].timestep == pytest.approx(875.0)
    three = {step.index: step.sigma for step in logged(hunyuan(shift=7.0), "three_stage", 50).steps}
    known = {15: 0.942308, 16: 0.950311, 25: 0.9, 26: 0.910345, 30: 0.88, 40: 0.733333, 49: 0.183333}
    assert {index: three[index] for index in known} == pytest.approx(known, abs=1e-6)
    few = {step.index: step.sigma for step in logged(hunyuan(shift=7.0), "turbo", 5).steps}
    assert few == pytest.approx({0: 1, 1: 0.965517, 2: 0.913043, 3: 0.857143, 4: 0.692308}, abs=1e-6)


def test_the_sizes_of_a_run_are_whole_tokens() -> None:
    """As the authors round: 720x1280 has 45x80 tokens, of which 33x60 and 22x40 fit into the stages."""
    case = hunyuan()
    call = {**case.call, "height": 720, "width": 1280, "num_frames": 1}
    with jenga_compile.accelerate(case.pipe, "three_stage", **DENSE) as accelerated:
        dataclasses.replace(case, call=call).run(num_inference_steps=3)
    grids = [str(step.grid) for step in accelerated.report().steps]
    assert grids == ["1x22x40", "1x33x60", "1x45x80"]
    assert [step.pixels for step in accelerated.report().steps] == [(352, 640), (528, 960), (720, 1280)]


def test_keeping_everything_is_the_plain_pipeline_but_for_rounding() -> None:
    larger = {"height": 128, "width": 192, "num_frames": 9}
    for make in (hunyuan, wan):
        case = make()
        plain = case.run(num_inference_steps=2, **larger)
        with jenga_compile.accelerate(
            case.pipe,
            "base",
            carving=Carving(keep=1.0, min_blocks=2),
            skip=None,
            amplifier=0.0,
            inner="eager",
            fullgraph=True,
        ) as accelerated:
            kept = case.run(num_inference_steps=2, **larger)
            report = accelerated.report()
        assert report.sites.carved
        assert {step.density for step in report.steps} == {1.0}
        exact = dataclasses.replace(
            case, call={k: v.double() if isinstance(v, torch.Tensor) else v for k, v in case.call.items()}
        )
        exact.pipe.transformer.double()
        truth = exact.run(num_inference_steps=2, **larger)
        assert_rounding(kept, truth.double(), plain, plain)


def test_too_few_steps_are_refused_before_any_is_done() -> None:
    case = hunyuan()
    calls: list[int] = []
    case.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE), pytest.raises(StepsTooFew, match="at least 3 steps"):
        case.run(num_inference_steps=2)
    assert calls == []


def test_there_is_no_report_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from jenga_compile.sampler import acceleration

    monkeypatch.setattr(acceleration, "_last", None)
    with pytest.raises(NoRunYet):
        jenga_compile.report()
    with jenga_compile.accelerate(hunyuan().pipe, "base", **OFF) as accelerated, pytest.raises(NoRunYet):
        accelerated.report()


@pytest.mark.parametrize("name", IMAGE)
def test_steps_are_skipped_from_images_too(name: str) -> None:
    report = logged(IMAGE[name](), "base", 20)
    assert 0 < report.computed < 20
    assert report.flops is not None
    assert report.dense_flops is not None
    assert report.flops < report.dense_flops
    assert report.notes == ()
