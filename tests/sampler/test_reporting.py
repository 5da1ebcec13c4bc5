"""What is told of a run, before it and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile.errors import OutOfRange, StagesUnfit, StepsTooFew, UnknownModel, UnknownVideoFormat
from jenga_compile.grid import TokenGrid
from jenga_compile.sampler.flops import operations, without_data
from jenga_compile.sampler.run_report import RunReport, StepReport
from tests.sampler.pipelines import DIFFUSERS_WARNS, hunyuan, ltx, wan
from tests.toys import TOYS

pytestmark = DIFFUSERS_WARNS
DENSE: dict[str, Any] = {"carving": None, "amplifier": 0.0}


def run() -> RunReport:
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE) as accelerated:
        case.run(num_inference_steps=20)
    return accelerated.report()


def test_a_run_is_told_step_by_step() -> None:
    report = run()
    lines = str(report).splitlines()
    assert lines[0] == "HunyuanVideoPipeline, preset turbo"
    assert lines[1].split() == ["step", "sigma", "t", "stage", "pixels", "grid", "FLOP", "seconds"]
    assert lines[2].split()[:7] == ["0", "1.0000", "1000", "1", "48x64", "2x3x4", "computed"]
    assert lines[5].split()[6] == "skipped"
    assert lines[22].startswith("20 steps: the transformer ran in 17 (NFE), 3 skipped; ")
    assert "saved" in lines[23]
    assert repr(report) == str(report)
    assert jenga_compile.report() is report


def test_a_run_as_json() -> None:
    report = run()
    told = json.loads(report.to_json())
    assert len(told["steps"]) == told["planned"] == 20
    assert told["computed"] == 17
    assert told["steps"][0]["grid"] == [2, 3, 4]
    assert told["flops"] == sum(step["flops"] for step in told["steps"])
    assert 0 < told["flops"] < told["dense_flops"]
    assert told["seconds"] == pytest.approx(sum(step["seconds"] for step in told["steps"]))


def test_a_run_is_drawn(tmp_path: Path) -> None:
    from PIL import Image

    report = run()
    report.plot(tmp_path / "run.png")
    report.plot(str(tmp_path / "again.png"))
    with Image.open(tmp_path / "run.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
        assert {(38, 92, 168), (240, 128, 30)} <= colours
    with pytest.raises(UnknownVideoFormat, match=r"\.gif is no video format known here. Use one of \.png"):
        report.plot(tmp_path / "run.gif")


def test_seconds_once_compiled() -> None:
    def step(index: int, seconds: float, compiled: bool = False, computed: bool = True) -> StepReport:
        return StepReport(
            index=index,
            stage=1,
            sigma=None,
            timestep=None,
            grid=None,
            pixels=None,
            computed=computed,
            seconds=seconds,
            compiled=compiled,
        )

    steps = (step(0, 9.0, compiled=True), step(1, 1.0), step(2, 3.0), step(3, 0.1, computed=False))
    report = RunReport(title="a", steps=steps, planned=4)
    assert report.seconds == pytest.approx(13.1)
    assert report.steady_seconds == pytest.approx(2 + 1 + 3 + 0.1)
    assert "13.1 s, 6.1 s once compiled" in str(report)
    alone = RunReport(title="a", steps=steps[:1], planned=1)
    assert alone.steady_seconds == 9.0
    assert RunReport(title="a", steps=(), planned=4).seconds is None


@pytest.mark.parametrize("name", ["hunyuan", "wan", "ltx"])
def test_operations_are_counted_without_data(name: str) -> None:
    """As on the data itself."""
    from torch.utils.flop_counter import FlopCounterMode

    toy = TOYS[name]()
    call = {**toy.inputs, "return_dict": False}
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        toy.model(**call)
    counted = operations(toy.model, without_data(call))
    assert counted is not None
    assert counted.total == counter.get_total_flops()
    assert 0 < counted.attention < counted.total
    assert all(parameter.device.type == "cpu" for parameter in toy.model.parameters())


def test_a_model_that_looks_at_its_data_has_no_count() -> None:
    class Looks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert operations(Looks(), without_data({"x": torch.ones(3)})) is None


def test_the_plan_is_the_run_to_be() -> None:
    plan = jenga_compile.plan("turbo", steps=24, model="toy", batch=2)
    assert [step.computed for step in plan.steps].count(True) == plan.computed == 18
    grids = [step.grid for step in plan.steps]
    assert grids == [TokenGrid(8, 12, 12)] * 13 + [TokenGrid(8, 16, 16)] * 11
    assert plan.seconds is None
    assert plan.flops is not None
    assert plan.dense_flops == pytest.approx(24 * 2 * 84.5e9, rel=0.01)
    assert "toy, 16 frames of 64x64, preset turbo" in str(plan)


def test_the_plan_of_the_papers_video() -> None:
    """720p, 125 frames: 11.397 PFLOP a dense step; sigmas of shift 7 and 9; sizes in whole tokens."""
    plan = jenga_compile.plan("turbo", 50, (720, 1280), 125, "hunyuan-video", gpu="H100", carving=None, amplifier=0.0)
    steps = plan.steps
    assert plan.computed == 23
    assert steps[0].pixels == (528, 960)
    assert str(steps[26].grid) == "32x45x80"
    assert steps[26].flops == pytest.approx(11.397e15, rel=1e-4)
    assert steps[0].flops == pytest.approx(3.8483e15, rel=1e-3)
    assert [steps[index].sigma for index in (25, 26)] == pytest.approx([0.875, 0.892562], abs=1e-6)
    assert steps[5].flops is not None
    assert steps[5].flops < 1e-3 * 3.8483e15
    assert plan.seconds == pytest.approx(12 * 5.86 + 11 * 17.44, rel=0.01)
    assert "estimated on H100" in str(plan)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"model": "hunyuan"}, UnknownModel, "no model 'hunyuan'"),
        ({"steps": 2}, StepsTooFew, "at least 3 steps"),
        ({"steps": 0}, OutOfRange, "steps 0"),
        ({"gpu": "A100"}, OutOfRange, "gpu A100 is outside"),
        ({"model": "wan2.1-i2v-14b"}, StagesUnfit, "starts from an image"),
        ({"model": "mochi"}, StagesUnfit, "nothing is known of how a call of MochiTransformer3DModel"),
    ],
)
def test_what_cannot_be_planned(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        jenga_compile.plan("turbo", **arguments)


def test_pixels_are_those_of_the_vae() -> None:
    for make, pixels in ((wan, (64, 96)), (ltx, (128, 192))):
        case = make()
        with jenga_compile.accelerate(case.pipe, "base", **DENSE) as accelerated:
            case.run(num_inference_steps=2)
        assert accelerated.report().steps[-1].pixels == pixels
