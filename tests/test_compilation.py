"""`jenga_compile.compile`, live knobs, blocks compiled one by one, resolutions, and what is compiled anew."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jenga_compile
from jenga_compile.backend import jenga
from jenga_compile.block_mask import Condition, Importance, Tile, Window
from jenga_compile.config import parse_options
from jenga_compile.errors import CompiledAlready, GridNotSet, OptionOfWrongType, OptionOutOfRange
from jenga_compile.sites import Report
from tests.passes.plain_dit import PlainDiT, latents, prompt
from tests.tolerance import assert_rounding
from tests.toys import TOYS, Toy, hunyuan, wan

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")
SMALL = {"min_blocks": 2, "inner": "eager"}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def assert_equals_eager(compiled: Any, toy: Toy) -> None:
    eager = toy.run()
    assert_rounding(toy.run(compiled), truth=toy.to(torch.float64).run(), baseline=eager, values=eager)


def on_the_weights_of(toy: Toy, other: Toy) -> Toy:
    other.model.load_state_dict(toy.model.state_dict())
    return other


GATHERS = {"mochi": (2, 1), "hunyuan15": (4, 1)}
"""In and out, whatever the depth."""


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", GATHERS)
def test_models_that_break_their_graph_are_carved(name: str, layers: int) -> None:
    toy, reports = TOYS[name](layers=layers), []
    compiled = jenga_compile.compile(toy.model, keep=1.0, on_report=reports.append, **SMALL)
    assert_equals_eager(compiled, toy)
    report = sum(reports, Report())
    assert report.carved >= layers
    assert all(site.grid == toy.grid for site in report.sites if site.decision == "carved")
    assert (report.gathers_in, report.gathers_out) == GATHERS[name]


@pytest.mark.parametrize("make", [hunyuan, wan])
def test_one_graph_serves_every_resolution(make: Any) -> None:
    first, reports = make(), []
    compiled = jenga_compile.compile(first.model, dynamic=True, keep=1.0, on_report=reports.append, **SMALL)
    for frames, height, width in ((5, 16, 24), (3, 28, 20), (7, 20, 26)):
        toy = on_the_weights_of(first, make(frames=frames, height=height, width=width))
        assert_rounding(toy.run(compiled), truth=toy.to(torch.float64).run(), baseline=toy.run(), values=toy.run())
    assert len(reports) == 1
    assert reports[0].gathers == (6 if make is hunyuan else 4)


class WithTable(PlainDiT):
    """Positions from a learned table, which fixes how many there are."""

    def __init__(self, layers: int) -> None:
        super().__init__(side="none", layers=layers)
        self.table = torch.nn.Parameter(torch.randn(1, 144, 16))

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return super().tokens(x) + self.table


class Padded(PlainDiT):
    """Text of several lengths; its mask is an input of its own."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=layers)

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        video = mask.new_ones(x.shape[0], x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2))
        return super().forward(x, text, torch.cat([video, mask], 1)[:, None, None])


@pytest.mark.parametrize("own", [True, False], ids=["jenga_compile.compile", "torch.compile"])
@pytest.mark.parametrize("make", [WithTable, Padded])
def test_symbolic_sizes_are_reordered_once(make: Any, own: bool) -> None:
    inputs = [latents(), prompt(), torch.arange(5) < torch.tensor([[3], [5]])][: 3 if make is Padded else 2]
    counts = set()
    for layers in (2, 4):
        torch._dynamo.reset()
        model, reports = make(layers), list[Report]()
        options = {"keep": 1.0, "min_blocks": 1, "inner": "eager", "on_report": reports.append}
        if own:
            compiled = jenga_compile.compile(model, dynamic=True, **options)
        else:
            compiled = torch.compile(model, backend="jenga", dynamic=True, options=options)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
        assert reports[0].carved == layers
        counts.add((reports[0].gathers_in, reports[0].gathers_out))
    assert counts == {(2, 1) if make is WithTable else (1, 1)}


def test_knobs_turn_without_compiling_anew() -> None:
    toy, reports, knobs = wan(), [], jenga_compile.Knobs(keep=0.2, cutoff=0.0)
    options = {"knobs": knobs, "on_report": reports.append, "adjacency": False, **SMALL}
    compiled = torch.compile(toy.model, backend=jenga, options=options)
    sparse = toy.run(compiled)
    knobs.keep = 1.0
    assert_equals_eager(compiled, toy)
    assert len(reports) == 1
    assert (toy.run(compiled) - sparse).abs().max() > 1e-3


def blockwise(toy: Toy, **options: Any) -> tuple[Toy, list[Report]]:
    """The toy with its repeated blocks compiled one by one."""
    reports: list[Report] = []
    toy.model.compile_repeated_blocks(backend=jenga, options={"on_report": reports.append, **SMALL, **options})
    return toy, reports


def test_blocks_compiled_one_by_one_show_no_grid() -> None:
    toy, reports = blockwise(TOYS["ltx"]())
    with pytest.warns(UserWarning, match="stay dense"):
        toy.run()
    assert {report.carved for report in reports} == {0}


def test_blocks_take_the_grid_of_the_running_call() -> None:
    options = {"keep": 0.3, "cutoff": 0.0, "adjacency": False}
    toys = [TOYS["ltx"](frames=5, height=16, width=24)]
    toys.append(on_the_weights_of(toys[0], TOYS["ltx"](frames=5, height=24, width=16)))
    whole = [toy.run(torch.compile(toy.model, backend=jenga, options={**SMALL, **options})) for toy in toys]
    torch._dynamo.reset()
    toy, reports = blockwise(toys[0], **options)
    # As many tokens, so one graph a block; each call with its own grid, so no stale one.
    for expected, one in zip([*whole, whole[0]], [*toys, toys[0]], strict=True):
        with jenga_compile.token_grid(*one.grid):
            found = dataclasses.replace(one, model=toy.model).run()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(reports) == 1
    assert reports[0].carved == 1


def test_blocks_outside_a_call_that_tells_the_grid_are_refused() -> None:
    toy, _ = blockwise(TOYS["ltx"]())
    with jenga_compile.token_grid(*toy.grid):
        toy.run()
    with pytest.raises(GridNotSet, match="480 tokens"):
        toy.run()


def test_block_masks_take_the_place_of_importance_and_adjacency() -> None:
    toy = wan()
    outputs = []
    for blocks in (None, Window(50.0), Importance(1.0, 0.0), Tile((2, 4, 4), (1, 1, 1)) | Importance(0.2, 0.0)):
        torch._dynamo.reset()
        own = {"keep": 0.25, "cutoff": 0.0} if blocks is None else {"blocks": blocks | Condition()}
        options = {**SMALL, **own}
        outputs.append(toy.run(torch.compile(toy.model, backend=jenga, options=options)))
    dense = toy.run()
    for output in outputs[1:3]:
        torch.testing.assert_close(output, dense, rtol=1e-4, atol=1e-5)
    assert (outputs[0] - dense).abs().max() > 1e-3
    assert (outputs[3] - dense).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "value"), [("blocks", "adjacency"), ("knobs", 0.3), ("hoist", 1), ("self_check", "yes")]
)
def test_options_of_the_wrong_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(OptionOfWrongType, match=name):
        jenga_compile.compile(torch.nn.Identity(), **{name: value})


@pytest.mark.parametrize("wrap", [jenga_compile.compile, torch.compile])
def test_a_compiled_model_is_not_compiled_again(wrap: Any) -> None:
    with pytest.raises(CompiledAlready, match="Identity that is compiled already"):
        jenga_compile.compile(wrap(torch.nn.Identity()))


def test_a_side_that_is_none_is_refused_before_the_call() -> None:
    with pytest.raises(OptionOutOfRange, match="text='middle'"), jenga_compile.token_grid(3, 8, 6, text="middle"):  # type: ignore[arg-type]
        pytest.fail("the grid was taken")


def test_numbers_may_be_numpys() -> None:
    options = parse_options({"keep": np.float32(0.5), "min_blocks": np.int64(2), "grid": list(np.array([3, 8, 6]))})
    found = (options.carving.keep, options.carving.min_blocks, *(options.grid or ()))
    assert found == (0.5, 2, 3, 8, 6)
    assert [type(value) for value in found] == [float, int, int, int, int]


def test_not_hoisting_gives_the_same() -> None:
    toy = hunyuan()
    outputs = []
    for hoist in (True, False):
        torch._dynamo.reset()
        reports: list[Report] = []
        options = {**SMALL, "keep": 1.0, "hoist": hoist, "self_check": hoist, "on_report": reports.append}
        outputs.append(toy.run(torch.compile(toy.model, backend=jenga, options=options)))
        assert reports[0].gathers == (6 if hoist else 8)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


SECOND_PROCESS = """
import torch
from torch._dynamo.utils import counters
from jenga_compile.backend import jenga
from tests.toys import wan
torch.set_num_threads(1)
toy = wan(layers=1)
toy.run(torch.compile(toy.model, backend=jenga, options={"min_blocks": 2}))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def test_inductors_cache_hits_in_a_second_process(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    found = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SECOND_PROCESS],
            env=environment,
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout.split()
        for _ in range(2)
    ]
    assert found == [["0", "1"], ["1", "0"]]
