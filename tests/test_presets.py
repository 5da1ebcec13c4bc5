"""Presets: the paper's numbers, and what may not be one."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest

from jenga_compile.config import Carving
from jenga_compile.errors import OptionOutOfRange, StepsTooFew, UnknownPreset
from jenga_compile.presets import (
    COMPUTED,
    COMPUTED_FROM_IMAGE,
    PRESETS,
    STEPS,
    Adaptive,
    Listed,
    Preset,
    Stage,
    find_preset,
)
from jenga_compile.scalars import fitted

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
    listed = "0 1 2 3 5 7 10 13 16 19 22 25 28 31 34 37 40 42 44 45 46 47 48 49"
    assert [str(step) for step in COMPUTED_FROM_IMAGE] == listed.split()


def test_a_list_holds_for_any_number_of_steps() -> None:
    """No gap is a larger share of the schedule than the list's largest, however many steps there are."""
    assert Listed().at(STEPS) == set(COMPUTED)
    assert Listed().at(5) == set(range(5))
    for steps in (1, 2, 7, 12, 24, 25, 30, 49, 51, 100, 1000):
        computed = sorted(Listed().at(steps))
        assert computed[0] == 0
        assert len(computed) <= len(COMPUTED)
        gaps = [after - before for before, after in itertools.pairwise(computed)]
        assert all(gap <= 3 * steps / STEPS + 1 for gap in gaps)


@pytest.mark.parametrize(
    ("name", "steps", "lengths", "calls"),
    [
        ("turbo", 50, (26, 24), (12, 11)),
        ("base", 50, (26, 24), (12, 11)),
        ("flash", 50, (26, 24), (12, 11)),
        ("three_stage", 50, (16, 10, 24), (8, 4, 11)),
        ("turbo", 5, (3, 2), (3, 2)),
        ("turbo", 3, (2, 1), (2, 1)),
        ("three_stage", 3, (1, 1, 1), (1, 1, 1)),
        ("base", 2, (2,), (2, 0)),
    ],
)
def test_the_slots_of_a_run(name: str, steps: int, lengths: tuple[int, ...], calls: tuple[int, ...]) -> None:
    preset = find_preset(name)
    slots = preset.slots(steps)
    assert [slot.step for slot in slots] == list(range(steps))
    assert tuple(Counter(slot.stage for slot in slots).values()) == lengths
    assert [slot.stage for slot in slots if slot.starts] == [slot.stage for slot in slots if slot.ends]
    assert preset.calls(steps) == calls
    assert all(slot.computed for slot in slots if slot.resized)
    assert [slot.stage for slot in slots if slot.resized] == ([0] if name == "base" else list(range(len(lengths))))


def test_an_adaptive_run_decides_all_but_the_first_steps_of_its_stages() -> None:
    slots = dataclasses.replace(find_preset("turbo"), skip=Adaptive()).slots(50)
    assert {slot.step: slot.computed for slot in slots if slot.computed is not None} == {0: True, 26: True}


@pytest.mark.parametrize(
    ("name", "steps", "said"),
    [
        ("turbo", 2, "stage 2 would have none"),
        ("three_stage", 2, "at least 3 steps"),
        ("turbo", 1, "stages of 'turbo'"),
    ],
)
def test_too_few_steps(name: str, steps: int, said: str) -> None:
    with pytest.raises(StepsTooFew, match=said):
        find_preset(name).slots(steps)


def test_a_share_is_what_its_decimal_says() -> None:
    assert [fitted(45, 0.75), fitted(80, 0.75), fitted(100, 0.29), fitted(10, 0.3)] == [33, 60, 29, 3]


def test_noise_is_added_only_where_the_resolution_changes() -> None:
    stages = (Stage(carving=CARVING, until=0.5), Stage(carving=CARVING, shift=2.0))
    with pytest.raises(OptionOutOfRange, match=r"shift=2.0 is outside that of the stage before, 0.0"):
        Preset(name="mine", stages=stages)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_is_a_finite_change(threshold: float) -> None:
    with pytest.raises(OptionOutOfRange, match="threshold"):
        Adaptive(threshold)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_computed_step_belongs_to_one_stage(preset: Preset) -> None:
    assert isinstance(preset.skip, Listed)
    assert sum(preset.calls()) == len(preset.skip.computed) <= STEPS
    assert all(calls > 0 for calls in preset.calls())
    assert PRESETS[preset.name] is preset


def test_a_stage_ends_with_the_step_that_its_share_falls_on() -> None:
    assert find_preset("turbo").calls() == (12, 11)
    assert find_preset("three_stage").calls() == (8, 4, 11)
    every = dataclasses.replace(find_preset("turbo"), skip=None)
    assert every.calls() == (26, 24)


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
        (Stage(carving=CARVING, until=0.3), Stage(carving=CARVING, scale=0.5, until=0.5), Stage(carving=CARVING)),
    ],
)
def test_stages_that_are_no_schedule(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(OptionOutOfRange, match="a whole schedule"):
        Preset(name="mine", stages=stages)


@pytest.mark.parametrize("computed", [(), (1, 2), (0, 2, 1), (0, 0), (0, 50)])
def test_computed_steps_that_are_none(computed: tuple[int, ...]) -> None:
    with pytest.raises(OptionOutOfRange, match="rising steps"):
        Listed(computed)


@pytest.mark.parametrize("change", [{"scale": 0.0}, {"scale": 1.5}, {"until": 0.0}, {"until": float("nan")}])
def test_shares_are_shares(change: dict[str, float]) -> None:
    with pytest.raises(OptionOutOfRange, match=r"outside \(0, 1\]"):
        Stage(carving=CARVING, **change)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownPreset, match="nearest is 'turbo'"):
        find_preset("turbio")
