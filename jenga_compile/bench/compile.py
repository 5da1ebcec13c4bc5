"""`jenga bench compile`: what compilation takes with our passes, beside plain Inductor in the same run.

The model is a named one made narrow, at full depth or cut short: its graphs have the operations of the released one.
Each measurement is a process of its own. One compiles with empty caches (cold); the next finds what that has left on
disk (warm). Further ones count the graphs that several resolutions take, without Inductor, which would take minutes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from jenga_compile.bench.compile_process import CARVING, THREADS, Backend, Record, Task
from jenga_compile.bench.environment import environment
from jenga_compile.errors import BenchFailed, OutOfRange
from jenga_compile.files import check_writable
from jenga_compile.models.catalogue import find_model
from jenga_compile.models.entry import Entry
from jenga_compile.models.narrow import narrow

Cache = Literal["cold", "warm"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)
CACHES: tuple[Cache, ...] = get_args(Cache)

GOAL = 0.1
"""The most that the passes may take of a cold compilation."""

SHALLOW = 1
"""Blocks of each kind of the model at several resolutions: how many graphs there are does not depend on depth."""

_GRID = (3, 12, 16)
"""Token grid of a call, except that an image has one frame: five blocks of 128."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. Checked at birth, before any work."""

    model: str = "hunyuan-video"
    layers: int | None = None
    """Blocks of each kind, of a model that is cut short; all by default."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; by default 12 x 16 tokens a frame, and three frames of them."""
    frames: int | None = None
    runs: int = 1
    """Times that every cold and every warm compilation is measured; the table has medians."""
    json: Path | None = None
    """File for the whole result."""

    def __post_init__(self) -> None:
        for pixels in self.sizes:
            self.entry.sizes(*pixels, self.count)
        if self.runs < 1:
            raise OutOfRange(name="runs", value=self.runs, expected="[1, inf)", way_out="One takes minutes already.")
        if self.layers is not None and not 1 <= self.layers <= self.entry.layers:
            raise OutOfRange(
                name="layers",
                value=self.layers,
                expected=f"[1, {self.entry.layers}]",
                way_out="Leave it out for full depth.",
            )
        if self.json is not None:
            check_writable(self.json)

    @property
    def entry(self) -> Entry:
        return narrow(find_model(self.model))

    @property
    def pixels(self) -> tuple[int, int]:
        unit = self.entry.unit
        return self.size or (_GRID[1] * unit, _GRID[2] * unit)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The resolution and two more, of other tokens in both directions."""
        (height, width), unit = self.pixels, self.entry.unit
        return tuple((height + 2 * step * unit, width + 4 * step * unit) for step in range(3))

    @property
    def count(self) -> int:
        """Frames of the video."""
        if self.frames is not None:
            return self.frames
        tokens = 1 if self.entry.frames == 1 else _GRID[0]
        return self.entry.compression[0] * (tokens * self.entry.patch[0] - 1) + 1

    @property
    def depth(self) -> dict[str, int]:
        """Blocks of each kind, by the name of the argument."""
        depths = {name: value for name, value in self.entry.depth.items() if isinstance(value, int)}
        return {name: value if self.layers is None else min(value, self.layers) for name, value in depths.items()}

    def task(self, backend: Backend) -> Task:
        """Compile for the one resolution."""
        return Task(model=self.model, layers=self.layers, backend=backend, sizes=(self.pixels,), frames=self.count)

    def task_of_sizes(self, backend: Backend, dynamic: bool | None) -> Task:
        """Compile for all three resolutions in turn, one block deep and op by op."""
        task = self.task(backend)
        return dataclasses.replace(task, layers=SHALLOW, sizes=self.sizes, dynamic=dynamic, op_by_op=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """All records of one request, and what they were made on."""

    request: Request
    environment: dict[str, object]
    runs: dict[Backend, dict[Cache, list[Record]]]
    resolutions: dict[Backend, dict[str, list[int]]]
    """Graphs after each of the resolutions in turn, with `torch.compile`'s default and with `dynamic=True`."""

    def median(self, backend: Backend, cache: Cache, name: str) -> float:
        """Of a field or property of the records."""
        return float(statistics.median(getattr(record, name) for record in self.runs[backend][cache]))

    def share(self, cache: Cache) -> float:
        """Of the compilation, what our passes took: the median of the runs, each against its own process."""
        return statistics.median(record.passes_s / record.compile_s for record in self.runs["jenga"][cache])

    def to_json(self) -> str:
        request = self.request
        facts = {
            "environment": {**self.environment, "threads": THREADS, "dtype": "float32"},
            "model": request.entry.name,
            "depth": request.depth,
            "sizes": request.sizes,
            "frames": request.count,
            "grids": [str(request.entry.sizes(*pixels, request.count).grid) for pixels in request.sizes],
            "options": CARVING,
            "runs": {
                backend: {
                    cache: [{**dataclasses.asdict(record), "compile_s": record.compile_s} for record in records]
                    for cache, records in caches.items()
                }
                for backend, caches in self.runs.items()
            },
            "passes_share_of_compile": {cache: self.share(cache) for cache in CACHES},
            "goal": GOAL,
            "graphs_after_each_size": dict(self.resolutions),
            "graphs_counted": {"blocks_of_each_kind": SHALLOW, "inner": "aot_eager"},
        }
        return json.dumps(facts, indent=1)


def measure(request: Request) -> Result:
    """Run every process of the request, one after the other.

    Raises:
        BenchFailed: a process could not compile or run the model.
    """
    about = environment()
    runs: dict[Backend, dict[Cache, list[Record]]] = {name: {cache: [] for cache in CACHES} for name in BACKENDS}
    for _ in range(request.runs):
        for backend in BACKENDS:
            records = in_processes([request.task(backend)] * len(CACHES))
            for cache, record in zip(CACHES, records, strict=True):
                runs[backend][cache].append(record)
    resolutions: dict[Backend, dict[str, list[int]]] = {name: {} for name in BACKENDS}
    for backend in BACKENDS:
        for name, dynamic in (("default", None), ("dynamic=True", True)):
            (record,) = in_processes([request.task_of_sizes(backend, dynamic)])
            resolutions[backend][name] = record.graphs
    return Result(request=request, environment=about, runs=runs, resolutions=resolutions)


def in_processes(tasks: Sequence[Task]) -> list[Record]:
    """Each task in a process of its own, in order; they share caches on disk, which are empty at first.

    Raises:
        BenchFailed: a process could not compile or run the model.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return [_in_process(task, Path(folder)) for task in tasks]


def _in_process(task: Task, folder: Path) -> Record:
    record = folder / "record.json"
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    command = [sys.executable, "-m", "jenga_compile.bench.compile_process", task.to_json(), str(record)]
    done = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = _root_cause(done.stderr)
        raise BenchFailed(model=task.model, backend=task.backend, code=done.returncode, why=why)
    return Record(**json.loads(record.read_text()))


def _root_cause(stderr: str) -> str:
    """The first exception in what a process said, which what came later was raised about; or its last line."""
    said = [line for line in stderr.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in said if re.match(r"[A-Za-z_][\w.]*: ", line)), said[-1])
