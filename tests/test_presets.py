"""Presets: the paper's numbers, and what may not be one."""

from __future__ import annotations

import dataclasses

import pytest

from jenga_compile.config import Carving
from jenga_compile.errors import OptionOutOfRange, UnknownPreset
from jenga_compile.presets import COMPUTED, PRESETS, STEPS, Preset, Stage, find_preset

PAPER = {
    "base": [(1.0, 0.3), (1.0, 0.2)],
    "turbo": [(0.75, 0.3), (1.0, 0.2)],
    "flash": [(0.75, 0.2), (1.0, 0.1)],
    "three_stage": [(0.5, 0.3), (0.75, 0.2), (1.0, 0.2)],
}
CARVING = Carving()


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_is_the_papers_operating_point(name: str) -> None:
    preset = find_preset(name)
    assert [(stage.scale, stage.carving.keep) for stage in preset.stages] == PAPER[name]
    assert {stage.carving.cutoff for stage in preset.stages} == {0.3}
    assert preset.amplifier == 0.5


def test_the_computed_steps_are_those_of_the_release() -> None:
    listed = "0 1 2 3 4 7 10 13 16 19 22 25 26 29 32 35 38 41 43 45 46 47 49"
    assert [str(step) for step in COMPUTED] == listed.split()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_computed_step_belongs_to_one_stage(preset: Preset) -> None:
    assert sum(preset.calls) == len(preset.computed) <= STEPS
    assert all(calls > 0 for calls in preset.calls)
    assert PRESETS[preset.name] is preset


def test_a_stage_ends_with_the_step_that_its_share_falls_on() -> None:
    assert find_preset("turbo").calls == (12, 11)
    assert find_preset("three_stage").calls == (8, 4, 11)
    every = dataclasses.replace(find_preset("turbo"), computed=tuple(range(STEPS)))
    assert every.calls == (26, 24)


def test_a_release_differs_from_the_paper() -> None:
    for name in PRESETS:
        if name.endswith("_release"):
            paper = PRESETS[name.removesuffix("_release")]
            assert [stage.scale for stage in PRESETS[name].stages] == [stage.scale for stage in paper.stages]
            assert PRESETS[name].stages != paper.stages


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage(carving=CARVING, until=0.5),),
        (Stage(carving=CARVING), Stage(carving=CARVING)),
        (Stage(carving=CARVING, until=0.7), Stage(carving=CARVING, until=0.5), Stage(carving=CARVING)),
        (Stage(carving=CARVING, scale=0.5),),
    ],
)
def test_stages_that_are_no_schedule(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(OptionOutOfRange, match="a whole schedule"):
        Preset(name="mine", stages=stages)


@pytest.mark.parametrize("computed", [(), (1, 2), (0, 2, 1), (0, 0), (0, 50)])
def test_computed_steps_that_are_none(computed: tuple[int, ...]) -> None:
    with pytest.raises(OptionOutOfRange, match="rising steps"):
        Preset(name="mine", stages=(Stage(carving=CARVING),), computed=computed)


@pytest.mark.parametrize("change", [{"scale": 0.0}, {"scale": 1.5}, {"until": 0.0}, {"until": float("nan")}])
def test_shares_are_shares(change: dict[str, float]) -> None:
    with pytest.raises(OptionOutOfRange, match=r"outside \(0, 1\]"):
        Stage(carving=CARVING, **change)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownPreset, match="nearest is 'turbo'"):
        find_preset("turbio")
