"""Diffusers' own transformers through the backend: every site accounted for, and the numbers right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile.backend import jenga
from jenga_compile.kernels import use_reference
from jenga_compile.report import Report
from tests.tolerance import assert_rounding
from tests.toys import Toy, hunyuan, wan

MODELS = {"hunyuan": hunyuan, "wan": wan}
SMALL = {"min_blocks": 2}


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Callable[..., Toy]:
    return MODELS[request.param]


def compile_toy(toy: Toy, **options: Any) -> tuple[Any, list[Report]]:
    torch._dynamo.reset()
    reports: list[Report] = []
    options = {"inner": "eager", "on_report": reports.append, **SMALL, **options}
    return torch.compile(toy.model, backend=jenga, options=options, fullgraph=True), reports


def test_every_site_is_accounted_for(make: Callable[..., Toy]) -> None:
    toy = make()
    report = jenga_compile.explain(toy.model, **toy.inputs, options=SMALL)
    assert report.seen == report.carved + report.left == len(toy.carved) + len(toy.left)
    for site in report.sites:
        if site.path in toy.carved:
            assert (site.decision, site.grid, site.text) == ("carved", toy.grid, toy.text), site
            assert site.video == (0, toy.grid[0] * toy.grid[1] * toy.grid[2])
        else:
            assert site.decision == "left"
            assert site.reason.startswith(toy.left[site.path]), site


def test_keeping_everything_equals_eager(make: Callable[..., Toy]) -> None:
    toy = make()
    compiled, reports = compile_toy(toy, keep=1.0)
    actual = toy.run(compiled)
    assert reports[0].carved == len(toy.carved)
    eager = toy.run()
    assert_rounding(actual, truth=toy.to(torch.float64).run(), baseline=eager, values=eager)


def test_carving_equals_the_reference_operator(make: Callable[..., Toy]) -> None:
    toy = make()
    options = {"keep": 0.3, "cutoff": 0.0, "adjacency": False}
    compiled, _ = compile_toy(toy, **options)
    actual = toy.run(compiled)
    with use_reference():
        exact = toy.to(torch.float64)
        truth = exact.run(compile_toy(exact, **options)[0])
        baseline = toy.run(compile_toy(toy, **options)[0])
    assert_rounding(actual, truth=truth, baseline=baseline, values=baseline)
    assert (actual - toy.run()).abs().max() > 1e-3, "carving lost nothing, so the test compares nothing"


def test_batch_rows_do_not_see_each_others_padding() -> None:
    toy = hunyuan()
    compiled, _ = compile_toy(toy, keep=1.0)
    before = toy.run(compiled)
    toy.inputs["encoder_hidden_states"][0, 6:] += 100.0
    after = toy.run(compiled)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 14, 22), (7, 10, 26)])
def test_odd_grids_and_a_second_resolution(make: Callable[..., Toy], shape: tuple[int, int, int]) -> None:
    first, second = make(), make(frames=shape[0], height=shape[1], width=shape[2])
    compiled, reports = compile_toy(first, keep=1.0)
    first.run(compiled)
    second_out = second.run(compiled)
    assert [report.sites[-2].grid or report.sites[-1].grid for report in reports] == [first.grid, second.grid]
    eager = second.run()
    assert_rounding(second_out, truth=second.to(torch.float64).run(), baseline=eager, values=eager)


def test_nothing_is_written_onto_the_model(make: Callable[..., Toy]) -> None:
    toy = make()
    toy.run(torch.compile(toy.model, backend="eager"))  # what torch.compile itself writes is not ours
    before = {name: set(vars(module)) for name, module in toy.model.named_modules()}
    compiled, _ = compile_toy(toy)
    toy.run(compiled)
    assert {name: set(vars(module)) for name, module in toy.model.named_modules()} == before


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_under_autocast_a_model_runs_as_it_does_eagerly(make: Callable[..., Toy]) -> None:
    toy = make()
    compiled, reports = compile_toy(toy, keep=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, eager = toy.run(compiled), toy.run()
    assert reports[0].carved == len(toy.carved)
    assert_rounding(actual, truth=toy.to(torch.float64).run(), baseline=eager, values=eager)
