"""Knobs in a run: sparsity stage by stage, and the attention to the text in the first stage alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile import Carving, Stage
from jenga_compile.kernels.knobs import Knobs
from tests.sampler.pipelines import DIFFUSERS_WARNS, Case, hunyuan, wan

pytestmark = DIFFUSERS_WARNS
LARGE: dict[str, Any] = {"height": 128, "width": 192, "num_frames": 9}
"""288 tokens in 3 blocks, and 3 * 6 * 9 = 162 in 2 at three quarters of it."""

CARVED: dict[str, Any] = {"min_blocks": 2, "inner": "eager", "skip": None}


def knobs_of(case: Case, **switches: Any) -> list[tuple[float, float, float]]:
    """The knobs at each step of a run."""
    seen: list[tuple[float, float, float]] = []
    with jenga_compile.accelerate(case.pipe, **{"preset": "turbo", **CARVED, **switches}) as accelerated:

        def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            knobs: Knobs = accelerated._knobs
            seen.append((knobs.keep, knobs.cutoff, knobs.text_bias))
            return {}

        case.run(callback_on_step_end=callback, **LARGE)
    return seen


def test_the_amplifier_is_the_papers_in_the_first_stage() -> None:
    seen = knobs_of(hunyuan())
    bias = 0.5 * math.log((8 * 12) / (6 * 9))
    assert seen == [pytest.approx((0.3, 0.3, bias))] * 4 + [pytest.approx((0.2, 0.3, 0.0))] * 2
    three = knobs_of(hunyuan(), preset="three_stage", amplifier=1.0)
    biases = [bias for _, _, bias in three]
    assert biases[:2] == [pytest.approx(math.log((8 * 12) / (4 * 6)))] * 2
    assert set(biases[2:]) == {0.0}


def test_the_amplifier_of_the_papers_size() -> None:
    """540p in 720p: 33x60 of 45x80 tokens raise the logits by 0.29892, 360p by 0.70438."""
    from jenga_compile.sampler.settings import read_settings

    settings = read_settings("turbo", {})
    assert settings.knobs(0, 33 * 60, 45 * 80)[2] == pytest.approx(0.2989185004)
    assert settings.knobs(0, 22 * 40, 45 * 80)[2] == pytest.approx(0.7043836085)
    assert settings.knobs(1, 45 * 80, 45 * 80)[2] == 0.0


def test_no_amplifier_is_none() -> None:
    case = hunyuan()
    for switches in ({"amplifier": 0.0}, {"stages": None}, {"amplifier": None}):
        assert {bias for _, _, bias in knobs_of(case, **switches)} == {0.0}


def test_the_amplifier_changes_the_video_where_text_is_attended_to() -> None:
    case, made = hunyuan(), []
    for amplifier in (0.0, 0.5, 0.5):
        with jenga_compile.accelerate(case.pipe, "turbo", amplifier=amplifier, **CARVED) as accelerated:
            made.append(case.run(**LARGE))
    assert torch.equal(made[1], made[2])
    assert not torch.equal(made[0], made[1])
    assert accelerated.report().notes == ()


def test_a_model_without_text_in_its_attention_says_so() -> None:
    case, made = wan(), []
    for amplifier in (0.0, 0.5):
        with jenga_compile.accelerate(case.pipe, "turbo", amplifier=amplifier, **CARVED) as accelerated:
            made.append(case.run(**LARGE))
    assert torch.equal(made[0], made[1])
    assert "the amplifier does nothing: the model has no text in its self-attention" in str(accelerated.report())


def test_the_amplifier_alone_keeps_every_block() -> None:
    case = hunyuan()
    seen = knobs_of(case, carving=None)
    assert [(keep, cutoff) for keep, cutoff, _ in seen] == [(1.0, 0.0)] * 6
    assert seen[0][2] > 0
    assert {step.density for step in jenga_compile.report().steps} == {1.0}
    assert "attention keeps every block" in str(jenga_compile.report())


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"keep": 0.5}, [(0.5, 0.3), (0.5, 0.3)]),
        ({"carving": Carving(keep=0.7, cutoff=0.0)}, [(0.7, 0.0), (0.7, 0.0)]),
        ({"preset": "flash_release"}, [(0.2, 0.5), (0.05, 0.5)]),
        (
            {"stages": (Stage(until=0.5, carving=Carving(keep=0.9)), Stage(carving=Carving(keep=0.6, cutoff=0.1)))},
            [(0.9, 0.3), (0.6, 0.1)],
        ),
    ],
)
def test_every_stage_has_a_sparsity_of_its_own(switches: dict[str, Any], expected: list[tuple[float, float]]) -> None:
    seen = knobs_of(hunyuan(), **switches)
    assert [seen[0][:2], seen[-1][:2]] == [pytest.approx(pair) for pair in expected]


def test_what_was_seen_is_what_was_asked_for() -> None:
    """One of three blocks at least is kept, with the query's own and the text's, which is always seen; then all."""
    case = hunyuan()
    carving = {"adjacency": False, "cutoff": 0.0}
    for keep, density in ((0.3, 2 / 4), (0.6, 3 / 4), (1.0, 4 / 4)):
        with jenga_compile.accelerate(case.pipe, "base", keep=keep, **carving, **CARVED) as accelerated:
            case.run(**LARGE)
        steps = accelerated.report().steps
        assert all(step.density is not None and density <= step.density <= min(density + 1 / 4, 1) for step in steps)
        dense = steps[0].dense_flops
        assert dense is not None
        assert all(step.flops is not None and (step.flops < dense) == (keep < 1) for step in steps)
