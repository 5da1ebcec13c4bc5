"""`jenga bench compile`: what a process measures, what the processes add up to, and what goes wrong, in one line."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from jenga_compile.bench import compile as bench
from jenga_compile.bench.compile import BACKENDS, CACHES, GOAL, Request, Result
from jenga_compile.bench.compile_process import AFTERWARDS, Record, Task, measure
from jenga_compile.bench.compile_text import as_text
from jenga_compile.bench.environment import environment
from jenga_compile.errors import BenchFailed
from jenga_compile.forecast_text import WIDTH
from jenga_compile.models.catalogue import CATALOGUE
from jenga_compile.models.entry import Entry
from jenga_compile.passes import PIPELINE
from tests.command import assert_refused, exit_code

SIZES = ((48, 64), (56, 80))

BAD: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "the following arguments are required: WHAT"),
    "unknown": (["kernel"], "argument WHAT: invalid choice: 'kernel' (choose from"),
    "model": (["compile", "hunyuan-vido"], "the nearest is 'hunyuan-video'"),
    "layers": (["compile", "--layers", "0"], "layers 0 is outside [1, 40]"),
    "deep": (["compile", "toy", "--layers", "6"], "layers 6 is outside [1, 5]"),
    "size": (["compile", "--size", "64"], "'64' is not of the form HEIGHTxWIDTH"),
    "height": (["compile", "--size", "100x128"], "height=100 is not a positive multiple"),
    "frames": (["compile", "--frames", "8"], "for 8 frames. Use 5 or 9."),
    "runs": (["compile", "--runs", "0"], "runs 0 is outside [1, inf)"),
    "folder": (["compile", "--json", "nowhere/a.json"], "'nowhere' is no folder"),
    "is folder": (["compile", "--json", "."], "it is a folder"),
}


@pytest.fixture
def own_settings() -> Iterator[None]:
    """What a measuring process sets for itself is set back."""
    threads = torch.get_num_threads()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.set_num_threads(threads)


def record(**changes: object) -> Record:
    facts = {
        "first_s": 9.0,
        "call_s": 1.0,
        "cpu_s": 5.0,
        "graphs": [1],
        "fxgraph_hits": 0,
        "fxgraph_misses": 1,
        "passes": {},
    }
    return Record(**({**facts, "seen": 0, "carved": 0, "gathers": 0} | changes))  # type: ignore[arg-type]


OURS = {"passes": {"one": 0.25, "two": 0.5}, "seen": 4, "carved": 2, "gathers": 6, "knob_graphs": 0}


def answer(task: Task) -> Record:
    """What a process could have measured."""
    graphs = [1] if len(task.sizes) == 1 else [1, 2, 2] if task.dynamic is None else [1, 1, 1]
    return record(graphs=graphs, **({**OURS, "knob_changed": True} if task.backend == "jenga" else {}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Task]]:
    """The tasks of each set of processes, which are not started."""
    found: list[list[Task]] = []

    def in_processes(tasks: Sequence[Task]) -> list[Record]:
        found.append(list(tasks))
        return [answer(task) for task in tasks]

    monkeypatch.setattr(bench, "in_processes", in_processes)
    return found


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, text = BAD[name]
    assert_refused(["bench", *arguments], text, tmp_path, capsys)


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_every_model_has_three_sizes_that_are_carved(entry: Entry) -> None:
    request = Request(model=entry.name)
    grids = [request.entry.sizes(*pixels, request.count).grid for pixels in request.sizes]
    assert [grid.t for grid in grids] == [1 if entry.frames == 1 else 3] * 3
    assert (grids[0].h, grids[0].w) == (12, 16)
    assert len({grid.h for grid in grids}) == len({grid.w for grid in grids}) == 3
    assert all(grid.tokens > bench.CARVING["min_blocks"] * 64 for grid in grids)


@pytest.mark.usefixtures("own_settings")
def test_a_process_counts_passes_graphs_and_sites() -> None:
    task = Task(model="toy", layers=1, backend="jenga", sizes=SIZES, frames=6, op_by_op=True)
    made = measure(task)
    assert list(made.passes) == [step.name for step in PIPELINE]
    assert (made.seen, made.carved) == (3, 2)
    assert made.gathers > 0
    assert made.graphs == [1, 2]
    assert made.knob_graphs == 0
    assert made.knob_changed
    assert made.compile_s == made.first_s - made.call_s > made.passes_s > 0


@pytest.mark.usefixtures("own_settings")
def test_plain_compilation_has_none_of_ours() -> None:
    made = measure(Task(model="toy", layers=1, backend="inductor", sizes=SIZES[:1], frames=6, op_by_op=True))
    assert (made.passes, made.seen, made.carved, made.gathers) == ({}, 0, 0, 0)
    assert made.graphs == [1]
    assert made.knob_graphs is None
    assert made.knob_changed is None


def test_a_task_survives_json() -> None:
    task = Request(model="toy").task_of_sizes("jenga", dynamic=True)
    assert Task.from_json(task.to_json()) == task
    assert dataclasses.replace(task, dynamic=None) != task


def test_cold_and_warm_share_a_folder_and_nothing_else_does(asked: list[list[Task]]) -> None:
    request = Request(model="toy", runs=2)
    made = bench.measure(request)
    timed, counted = asked[:4], asked[4:]
    assert [[task.backend for task in tasks] for tasks in timed] == 2 * [["inductor"] * 2, ["jenga"] * 2]
    assert all(first == second == request.task(first.backend) for first, second in timed)
    assert [(task.backend, task.dynamic) for (task,) in counted] == [
        (backend, dynamic) for backend in BACKENDS for dynamic in (None, True)
    ]
    assert all(task.op_by_op and task.sizes == request.sizes for (task,) in counted)
    assert all(len(made.runs[backend][cache]) == 2 for backend in BACKENDS for cache in CACHES)
    assert made.resolutions == {name: {"default": [1, 2, 2], "dynamic=True": [1, 1, 1]} for name in BACKENDS}


def test_the_share_is_of_the_same_process() -> None:
    slow, fast = record(first_s=21.0, passes={"one": 1.0}), record(first_s=3.0, passes={"one": 1.0})
    made = Result(
        request=Request(model="toy"), environment={}, runs={"jenga": {"cold": [slow, fast, fast]}}, resolutions={}
    )
    assert made.share("cold") == 0.5
    assert made.median("jenga", "cold", "compile_s") == 2.0


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("name", ["hunyuan-video-i2v-replace", "wan2.1-vace-1.3b", "flux-dev"])
def test_the_tables_fit_and_tell_what_was_measured(name: str) -> None:
    made = bench.measure(Request(model=name))
    text = as_text(made)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert len(re.findall(r"^(?:inductor|jenga) +(?:cold|warm) ", text, re.MULTILINE)) == 4
    assert re.search(
        r"^jenga +cold +8\.0 s +5\.0 s +1000 ms +1 +1 miss +2 of 4 +6 +0\.75 s +9\.4%$", text, re.MULTILINE
    )
    assert f"goal: at most {GOAL:.0%} of a cold compilation: kept" in text
    assert "0 new graphs, the output changes" in text


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("seconds", "verdict"), [(0.8, "kept"), (0.81, "missed")])
def test_the_goal_is_judged(seconds: float, verdict: str) -> None:
    made = bench.measure(Request(model="toy"))
    made.runs["jenga"]["cold"] = [record(passes={"one": seconds}, knob_changed=False)]
    assert f"of a cold compilation: {verdict}" in as_text(made)
    assert "STAYS AS IT WAS" in as_text(made)


@pytest.mark.usefixtures("asked")
def test_json_holds_every_record_and_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "toy.json"
    assert exit_code(["bench", "compile", "toy", "--layers", "2", "--json", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nwrote {file}\n")
    told = json.loads(file.read_text())
    assert (told["model"], told["depth"]) == ("toy", Request(model="toy", layers=2).depth)
    assert {"cpu", "cores", "load_1min", "python", "torch", "commit", "threads"} <= told["environment"].keys()
    assert told["runs"]["jenga"]["cold"] == [{**dataclasses.asdict(answer(Request().task("jenga"))), "compile_s": 8.0}]
    assert told["passes_share_of_compile"] == {"cold": 0.75 / 8, "warm": 0.75 / 8}


def test_a_process_that_fails_is_told_by_its_root_cause() -> None:
    task = Task(model="nonesuch", layers=1, backend="jenga", sizes=SIZES, frames=6)
    with pytest.raises(BenchFailed, match=r"exit code 1: .*UnknownModel: no model 'nonesuch'"):
        bench.in_processes([task])


def test_the_environment_names_versions_and_machine() -> None:
    about = environment()
    assert about["torch"] == torch.__version__
    assert about["cpu"]
    assert AFTERWARDS >= 1
