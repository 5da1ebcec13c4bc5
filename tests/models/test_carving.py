"""Diffusers' own transformers through the backend: every site accounted for, and the numbers right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile.backend import jenga
from jenga_compile.kernels import use_reference
from jenga_compile.sites import Report
from tests.tolerance import assert_rounding
from tests.toys import TOYS, Toy, hunyuan, wan

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")
SMALL = {"min_blocks": 2}
CARVED = [name for name in TOYS if TOYS[name]().carved]
FULL = ("hunyuan", "wan")
"""Models that the slower tests try."""


def compile_toy(toy: Toy, **options: Any) -> tuple[Any, list[Report]]:
    """Compiled as its users would, and the reports of its graphs."""
    torch._dynamo.reset()
    reports: list[Report] = []
    options = {"inner": "eager", "on_report": reports.append, **SMALL, **toy.options, **options}
    if toy.how == "backend":
        return torch.compile(toy.model, backend=jenga, options=options, fullgraph=True), reports
    return jenga_compile.compile(toy.model, **options), reports


def carved_sites(reports: list[Report]) -> int:
    return sum(report.carved for report in reports)


@pytest.mark.parametrize("name", TOYS)
def test_every_site_is_accounted_for(name: str) -> None:
    toy = TOYS[name]()
    compiled, reports = compile_toy(toy)
    toy.run(compiled)
    sites = [site for report in reports for site in report.sites]
    assert len(sites) == sum(report.carved + report.left for report in reports)
    for site in sites:
        if site.decision == "carved":
            assert site.grid == toy.grid, site
            assert site.text == (toy.text_at(site.path) if site.queries else 0)
            assert site.video == toy.video(site.path)
        else:
            assert site.reason.startswith(toy.left[site.path]), site
    if toy.how != "blocks":
        assert sorted(site.path for site in sites if site.decision == "carved") == sorted(toy.carved)
        assert len(sites) == toy.seen


@pytest.mark.parametrize("name", CARVED)
def test_keeping_everything_equals_eager(name: str) -> None:
    toy = TOYS[name]()
    compiled, reports = compile_toy(toy, keep=1.0)
    actual = toy.run(compiled)
    assert carved_sites(reports) >= len(toy.carved)
    eager = toy.run()
    truth = toy.to(torch.float64).run()
    if toy.inside == torch.float32:
        assert_rounding(actual, truth=truth, baseline=eager, values=eager)
    else:
        eps = torch.finfo(toy.inside).eps
        assert (actual - eager).abs().max() < eps * eager.abs().max()


@pytest.mark.parametrize("name", CARVED)
def test_carving_equals_the_reference_operator(name: str) -> None:
    toy = TOYS[name]()
    options = {"keep": 0.3, "cutoff": 0.0, "adjacency": False}
    compiled, _ = compile_toy(toy, **options)
    with use_reference():
        baseline = toy.run(compiled)
    actual = toy.run(compiled)
    # Block choices hang on the last digit where scores nearly tie, so the models are compared in one precision, through
    # one graph: the two differ in the operator alone.
    budget = torch.finfo(toy.inside).eps * 64 * float(baseline.abs().max())
    assert (actual - baseline).abs().max() < budget
    assert (actual - toy.run()).abs().max() > 1e-3, "carving lost nothing, so the test compares nothing"


def test_batch_rows_do_not_see_each_others_padding() -> None:
    toy = hunyuan()
    compiled, _ = compile_toy(toy, keep=1.0)
    before = toy.run(compiled)
    toy.inputs["encoder_hidden_states"][0, 6:] += 100.0
    after = toy.run(compiled)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [hunyuan, wan])
@pytest.mark.parametrize("shape", [(3, 14, 22), (7, 10, 26)])
def test_odd_grids_and_a_second_resolution(make: Callable[..., Toy], shape: tuple[int, int, int]) -> None:
    first, second = make(), make(frames=shape[0], height=shape[1], width=shape[2])
    compiled, reports = compile_toy(first, keep=1.0)
    first.run(compiled)
    second_out = second.run(compiled)
    assert [report.sites[-2].grid or report.sites[-1].grid for report in reports] == [first.grid, second.grid]
    eager = second.run()
    assert_rounding(second_out, truth=second.to(torch.float64).run(), baseline=eager, values=eager)


@pytest.mark.parametrize("name", FULL)
def test_nothing_is_written_onto_the_model(name: str) -> None:
    toy = TOYS[name]()
    toy.run(torch.compile(toy.model, backend="eager"))  # what torch.compile itself writes is not ours
    before = {path: set(vars(module)) for path, module in toy.model.named_modules()}
    for compiled in (compile_toy(toy)[0], jenga_compile.compile(toy.model, inner="eager", **SMALL)):
        toy.run(compiled)
    assert {path: set(vars(module)) for path, module in toy.model.named_modules()} == before


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("name", FULL)
def test_under_autocast_a_model_runs_as_it_does_eagerly(name: str) -> None:
    toy = TOYS[name]()
    compiled, reports = compile_toy(toy, keep=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, eager = toy.run(compiled), toy.run()
    assert carved_sites(reports) == len(toy.carved)
    assert_rounding(actual, truth=toy.to(torch.float64).run(), baseline=eager, values=eager)
