"""Arguments of `accelerate`: what is refused, and that nothing has been touched by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile import Carving, Preset, Stage
from jenga_compile.block_mask import Adjacency, Importance
from jenga_compile.errors import (
    AcceleratedAlready,
    JengaError,
    NotAPipeline,
    OptionOfWrongType,
    OptionOutOfRange,
    OptionsAtOdds,
    UnknownPreset,
    UnknownSwitch,
)
from jenga_compile.sampler.settings import read_settings
from tests.sampler.pipelines import DIFFUSERS_WARNS, hunyuan

pytestmark = DIFFUSERS_WARNS

REFUSED: dict[str, tuple[dict[str, Any], type[JengaError], str]] = {
    "preset": ({"preset": "turbio"}, UnknownPreset, "the nearest is 'turbo'. Presets: base, turbo, flash, three_stage"),
    "preset type": ({"preset": 3}, OptionOutOfRange, "preset=3"),
    "switch": ({"stagess": None}, UnknownSwitch, "did you mean 'stages'"),
    "option": ({"kepe": 0.2}, UnknownSwitch, "did you mean 'keep'"),
    "keep": ({"keep": 2.0}, OptionOutOfRange, "keep=2.0"),
    "carving": ({"carving": 0.2}, OptionOutOfRange, r"carving=0.2 .* Pass jenga_compile.Carving\(keep=0.2\)"),
    "knobs": ({"knobs": jenga_compile.Knobs()}, OptionsAtOdds, "The run sets them"),
    "knobs of a stage": ({"carving": Carving(knobs=jenga_compile.Knobs())}, OptionsAtOdds, "The run sets them"),
    "resize": ({"resize": "nearest"}, OptionOutOfRange, "resize='nearest'"),
    "parity": ({"parity": "yes"}, OptionOutOfRange, "parity='yes'"),
    "mode": ({"mode": "fast"}, OptionOutOfRange, "mode='fast'"),
    "kernel": ({"kernel": "hoper"}, OptionOutOfRange, "kernel='hoper'"),
    "amplifier": ({"amplifier": float("inf")}, OptionOutOfRange, "amplifier=inf"),
    "amplifier type": ({"amplifier": "much"}, OptionOfWrongType, "amplifier='much'"),
    "curves": (
        {
            "stages": (
                Stage(until=0.5, carving=Carving(curve="gilbert")),
                Stage(carving=Carving(curve="linear")),
            )
        },
        OptionOutOfRange,
        "curve=.*one value for all stages",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    given, error, said = REFUSED[name]
    case = hunyuan()
    before = type(case.pipe)
    with pytest.raises(error, match=said):
        jenga_compile.accelerate(case.pipe, **given)
    assert type(case.pipe) is before


@pytest.mark.parametrize("thing", [None, torch.nn.Linear(2, 2), "a pipeline"])
def test_what_is_no_pipeline(thing: Any) -> None:
    with pytest.raises(NotAPipeline, match="expected a diffusers pipeline with a transformer"):
        jenga_compile.accelerate(thing)


def test_twice_is_refused() -> None:
    case = hunyuan()
    with (
        jenga_compile.accelerate(case.pipe, "base"),
        pytest.raises(AcceleratedAlready, match="is accelerated already, with preset 'base'"),
    ):
        jenga_compile.accelerate(case.pipe, "turbo")
    jenga_compile.accelerate(case.pipe, "turbo").remove()


def test_a_preset_of_ones_own() -> None:
    mine = Preset(
        name="mine",
        stages=(Stage(scale=0.5, until=0.2, carving=Carving(keep=0.5)), Stage(carving=Carving(keep=0.4))),
        skip=None,
        amplifier=0.25,
    )
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, mine, carving=None, amplifier=0.0) as accelerated:
        case.run()
    assert [step.stage for step in accelerated.report().steps] == [1, 1, 2, 2, 2, 2]
    assert "preset mine" in accelerated.report().title


def test_a_mask_brings_its_own_keep() -> None:
    settings = read_settings("turbo", {"blocks": Importance(keep=0.4, cutoff=0.1) | Adjacency()})
    assert settings.knobs(1, 10, 10) == (0.4, 0.1, 0.0)
    assert settings.options["blocks"] == Importance(keep=0.4, cutoff=0.1) | Adjacency()


def test_the_pipeline_keeps_its_name_and_signature() -> None:
    import inspect

    case = hunyuan()
    plain = type(case.pipe)
    with jenga_compile.accelerate(case.pipe, "turbo"):
        assert isinstance(case.pipe, plain)
        assert type(case.pipe).__name__ == plain.__name__
        assert inspect.signature(type(case.pipe).__call__) == inspect.signature(plain.__call__)
        assert set(case.pipe.components) == set(plain(**case.pipe.components).components)
    assert type(case.pipe) is plain
