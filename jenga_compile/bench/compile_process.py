"""One process of `jenga bench compile`: compile a narrow model once, and count what that took.

    python -m jenga_compile.bench.compile_process TASK RECORD

TASK is the task as JSON, RECORD the file for what was measured. Compilers keep much in their process, so that what is
to be cold needs a new one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jenga_compile.kernels.knobs import Knobs
from jenga_compile.models.catalogue import find_model
from jenga_compile.models.entry import Entry
from jenga_compile.models.narrow import narrow
from jenga_compile.sites import Report

Backend = Literal["inductor", "jenga"]

CARVING = {"min_blocks": 2, "adjacency": False}
"""Options under which the sites of a small grid are carved, and do not keep every block."""

THREADS = 1
"""With one, a call does not wait for cores that something else has."""

AFTERWARDS = 3
"""Calls of the compiled model; the fastest tells what a call takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What one process compiles."""

    model: str
    layers: int | None
    backend: Backend
    sizes: tuple[tuple[int, int], ...]
    """Pixels (height, width) of the calls, in order; the first is timed."""
    frames: int
    dynamic: bool | None = None
    """As `torch.compile` takes it."""
    op_by_op: bool = False
    """Whether AOTAutograd's graph is run as it is, in place of what Inductor makes of it."""

    @classmethod
    def from_json(cls, text: str) -> Task:
        fields = json.loads(text)
        return cls(**{**fields, "sizes": tuple((height, width) for height, width in fields["sizes"])})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What one process has measured."""

    first_s: float
    """Seconds of the first call, compilation and all."""
    call_s: float
    """Seconds of a call once all is compiled: the least of several."""
    cpu_s: float
    """Processor seconds of this process in the first call, which other work on the machine stretches little. What the
    C++ compiler takes is not in it: it runs in processes of its own."""
    graphs: list[int]
    """Graphs that Dynamo had made after the call at each size."""
    fxgraph_hits: int
    fxgraph_misses: int
    """Graphs that Inductor found in its cache on disk, or compiled, for the first size."""
    passes: dict[str, float]
    """Seconds of each of our passes at the first size."""
    seen: int
    carved: int
    gathers: int
    """Of the attention sites at the first size, and of the token gathers around them; zeros for plain Inductor."""
    knob_graphs: int | None = None
    """Graphs made because `keep` was set to another value after the first size; None where there are no knobs."""
    knob_changed: bool | None = None
    """Whether the output was another one then."""

    @property
    def compile_s(self) -> float:
        return max(self.first_s - self.call_s, 0.0)

    @property
    def passes_s(self) -> float:
        return sum(self.passes.values())


def measure(task: Task) -> Record:
    """Compile and call the model as the task says, in this process, which has compiled nothing before."""
    entry = narrow(find_model(task.model))
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = entry.build(task.layers, "cpu", dtype=torch.float32)
    reports: list[Report] = []
    knobs = Knobs(keep=0.3, cutoff=0.0)
    shared = {**CARVING, "knobs": knobs, "on_report": reports.append}
    _pay_once_for_all("aot_eager" if task.op_by_op else "inductor")
    with torch.no_grad(), _dynamo_settings(entry):
        calls = [_call(task, entry, model, shared, pixels) for pixels in task.sizes]
        cpu = time.process_time()
        first_s, output = _timed(calls[0])
        cpu_s = time.process_time() - cpu
        call_s = min(_timed(calls[0])[0] for _ in range(AFTERWARDS))
        graphs, hits, misses = _graphs(), _inductor("hit"), _inductor("miss")
        report = sum(reports, Report())
        turned: dict[str, Any] = {}
        if task.backend == "jenga":
            knobs.keep = 1.0
            _, other = _timed(calls[0])
            turned = {"knob_graphs": _graphs() - graphs, "knob_changed": not torch.equal(output, other)}
        counts = [graphs, *(_graphs_after(call) for call in calls[1:])]
    return Record(
        first_s=first_s,
        call_s=call_s,
        cpu_s=cpu_s,
        graphs=counts,
        fxgraph_hits=hits,
        fxgraph_misses=misses,
        passes=dict(report.seconds),
        seen=report.seen,
        carved=report.carved,
        gathers=report.gathers,
        **turned,
    )


def _call(
    task: Task, entry: Entry, model: torch.nn.Module, shared: dict[str, Any], pixels: tuple[int, int]
) -> Callable[[], Any]:
    """The call at one size. Where a grid must be told, each size has options of its own."""
    backend = "aot_eager" if task.op_by_op and task.backend == "inductor" else task.backend
    settings: dict[str, Any] = {}
    if task.backend == "jenga":
        inner = "aot_eager" if task.op_by_op else "inductor"
        grid = entry.sizes(*pixels, task.frames).grid.shape
        given = {} if entry.grid_unseen is None else {"grid": grid, "text": entry.grid_unseen}
        settings["options"] = {**shared, **given, "inner": inner}
    compiled = torch.compile(model, backend=backend, dynamic=task.dynamic, **settings)
    inputs = entry.inputs(*pixels, task.frames, "cpu", dtype=torch.float32)
    return lambda: compiled(**inputs)


def _pay_once_for_all(backend: str) -> None:
    """What a process pays for its first compilation, whatever that is: imports, and a look at the machine."""
    torch.compile(torch.neg, backend=backend)(torch.ones(3))
    torch._dynamo.utils.counters.clear()


def _dynamo_settings(entry: Entry) -> AbstractContextManager[Any]:
    names = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")
    settings: AbstractContextManager[Any] = torch._dynamo.config.patch(dict.fromkeys(names, entry.sizes_from_data))
    return settings


def _timed(call: Callable[[], Any]) -> tuple[float, Tensor]:
    """Seconds, and a copy of the output."""
    start = time.perf_counter()
    returned = call()
    seconds = time.perf_counter() - start
    output = returned if isinstance(returned, Tensor) else returned[0]
    return seconds, output.clone()


def _graphs_after(call: Callable[[], Any]) -> int:
    call()
    return _graphs()


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _inductor(outcome: Literal["hit", "miss"]) -> int:
    return torch._dynamo.utils.counters["inductor"][f"fxgraph_cache_{outcome}"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(measure(Task.from_json(sys.argv[1])))))
