"""`jenga bench kernels`: what the operators take on attention sites of known models, beside what else does such work.

Each case is a site of a model, a kind of block lists and a density. All kernels get the same inputs
(`kernels_inputs.py`) in one process, are judged against float64 first (`kernels_gate.py`) and then timed in turn
(`kernels_timing.py`). Dense kernels do the same work at every density: all of them are timed in the first case of a
site, and the fastest of them again in every other, to compare within a case.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from jenga_compile.bench.environment import environment, gpu
from jenga_compile.bench.kernels_case import Case, measure_case
from jenga_compile.bench.kernels_entry import Kernel
from jenga_compile.bench.kernels_gate import CAPS, FACTOR
from jenga_compile.bench.kernels_inputs import HOW, MaskKind, ValueKind, make_inputs, make_work
from jenga_compile.bench.kernels_ours import OURS
from jenga_compile.bench.kernels_rivals import RIVALS
from jenga_compile.bench.kernels_shapes import DENSITIES, Shape, find_shape
from jenga_compile.bench.kernels_timing import DEFAULTS, ROUND_MS, Protocol, ProtocolKind
from jenga_compile.errors import DeviceUnavailable, NotKnownToBench, OutOfRange, hint
from jenga_compile.files import check_writable, write_text

MASKS: tuple[MaskKind, ...] = get_args(MaskKind)
VALUES: tuple[ValueKind, ...] = get_args(ValueKind)
PROTOCOLS: tuple[ProtocolKind, ...] = get_args(ProtocolKind)
DEVICES = ("cuda", "cpu")

GATHERED = "jenga gathered"
"""Torch only: seconds a call on a GPU at full size, so that it has to be asked for there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. Checked at birth, before any work."""

    models: tuple[str, ...] | None = None
    """Names of sites; by default HunyuanVideo at 720p, or the tiny one on a CPU."""
    densities: tuple[float, ...] = DENSITIES
    masks: tuple[MaskKind, ...] = ("structured",)
    values: ValueKind = "structured"
    kernels: tuple[str, ...] | None = None
    """Ours, by name without "jenga"; by default all but `gathered` on a GPU."""
    rivals: tuple[str, ...] = tuple(RIVALS)
    protocol: ProtocolKind = "sustained"
    rounds: int | None = None
    reps: int | None = None
    budget: float | None = None
    """Seconds after which no case is started."""
    device: str = "cuda"
    json: Path | None = None
    """File for the whole result, written after every case."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES or (self.device == "cuda" and not torch.cuda.is_available()):
            why = "PyTorch sees no CUDA GPU" if self.device == "cuda" else "not one to measure on"
            raise DeviceUnavailable(device=self.device, why=why, available="cpu, as in --device cpu --models tiny")
        for density in self.densities:
            if not 0 < density <= 1:
                raise OutOfRange(name="density", value=density, expected="(0, 1]", way_out="Use 1 for every block.")
        for name, value in (("rounds", self.rounds), ("reps", self.reps)):
            if value is not None and value < 1:
                raise OutOfRange(name=name, value=value, expected="[1, inf)", way_out="Leave it out for the default.")
        if self.budget is not None and not self.budget > 0:
            raise OutOfRange(name="budget", value=self.budget, expected="(0, inf) seconds", way_out="Leave it out.")
        # These raise for a name that is not known.
        _ = self.shapes, self.all_kernels
        if self.json is not None:
            check_writable(self.json)

    @property
    def shapes(self) -> list[Shape]:
        names = self.models or (("hunyuan-video-720p",) if self.device == "cuda" else ("tiny",))
        return [find_shape(name) for name in names]

    @property
    def all_kernels(self) -> list[Kernel]:
        """Ours and rivals, in the order of the tables."""
        own = {name.removeprefix("jenga "): kernel for name, kernel in OURS.items()}
        every = tuple(name for name in own if self.device == "cpu" or f"jenga {name}" != GATHERED)
        ours = _chosen(own, self.kernels or every, "kernel")
        return [*ours, *_chosen(RIVALS, self.rivals, "rival")]

    @property
    def how_often(self) -> Protocol:
        rounds, reps = DEFAULTS[self.protocol]
        return Protocol(self.protocol, self.rounds or rounds, self.reps or reps)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


@dataclasses.dataclass
class Result:
    """All cases of one request so far, and what they were made on."""

    request: Request
    environment: dict[str, object]
    cases: list[Case] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    """Cases that the budget had no time for."""

    def to_json(self) -> str:
        request = self.request
        facts = {
            "environment": self.environment,
            "inputs": {**HOW, "values": request.values, "dtype": str(request.dtype).removeprefix("torch.")},
            "protocol": {**dataclasses.asdict(request.how_often), "at_most_ms_a_round": ROUND_MS},
            "gate": {"times_the_plain_error": FACTOR, "caps_of_ours": {" ".join(of): cap for of, cap in CAPS.items()}},
            "cases": [_case_facts(case) for case in self.cases],
            "left_out_for_time": self.left_out,
        }
        return json.dumps(facts, indent=1)


def measure(request: Request, tell: Callable[[str], None] = lambda line: None) -> Result:
    """Run every case of the request until its budget is used up; `tell` gets a line for each.

    Raises:
        KeyboardInterrupt: with what is kept, if a file was asked for.
    """
    start = time.monotonic()
    versions = {kernel.name: kernel.version for kernel in request.all_kernels if kernel.package is not None}
    device = torch.device(request.device)
    result = Result(request, {**environment(), **gpu(), "rivals": versions})
    try:
        for shape in request.shapes:
            for case in _cases(request, shape, device, result, start):
                result.cases.append(case)
                _save(result)
                tell(f"{case.name}: measured, {time.monotonic() - start:.0f} s so far")
    except KeyboardInterrupt as stop:
        kept = f"{len(result.cases)} cases are in {request.json}" if request.json and result.cases else ""
        raise KeyboardInterrupt(*filter(None, [kept])) from stop
    _save(result)
    return result


def _cases(request: Request, shape: Shape, device: torch.device, result: Result, start: float) -> Iterator[Case]:
    """The cases of one site for which there is time."""
    kernels, inputs = request.all_kernels, None
    for mask, density in itertools.product(request.masks, request.densities):
        if request.budget is not None and time.monotonic() - start >= request.budget:
            result.left_out.append(f"{shape.name}, {mask} lists at {density:g}")
            continue
        with torch.no_grad():
            inputs = inputs or make_inputs(shape, device, request.dtype, request.values)
            case = measure_case(make_work(inputs, density, mask), kernels, request.how_often)
        kernels = [kernel for kernel in kernels if kernel.group != "dense" or kernel.name == case.fastest_dense]
        yield case


def _save(result: Result) -> None:
    if result.request.json is not None:
        write_text(result.request.json, result.to_json() + "\n")


def _case_facts(case: Case) -> dict[str, Any]:
    shape = case.shape
    return {
        "shape": {
            "name": shape.name,
            "source": shape.source,
            "grid": str(shape.grid),
            "video": shape.grid.tokens,
            "text": shape.text,
            "heads": shape.heads,
            "head_dim": shape.dim,
        },
        "mask": case.mask,
        "density_wanted": case.wanted,
        "density": case.density,
        "rows": {name: dataclasses.asdict(row) for name, row in case.rows.items()},
        "fastest_dense": case.fastest_dense,
        "site_times_faster_than_it": case.times_faster(),
        "selection_share_of_site": case.share_of_selection(),
    }


def _chosen(table: dict[str, Kernel], names: tuple[str, ...], kind: str) -> list[Kernel]:
    """In the order of the table.

    Raises:
        NotKnownToBench: the table lacks a name.
    """
    for name in names:
        if name not in table:
            raise NotKnownToBench(kind=kind, name=name, hint=hint(name, table), valid=", ".join(table))
    return [kernel for name, kernel in table.items() if name in names]
