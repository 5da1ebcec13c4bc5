"""One case of `jenga bench kernels`: an attention site with one set of block lists, through the gate and the clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from jenga_compile.bench.kernels_entry import Call, Group, Kernel, Result
from jenga_compile.bench.kernels_gate import Gate
from jenga_compile.bench.kernels_inputs import MaskKind, Work
from jenga_compile.bench.kernels_ours import AUTO, SELECT, SITE
from jenga_compile.bench.kernels_rivals import CEILING
from jenga_compile.bench.kernels_shapes import Shape
from jenga_compile.bench.kernels_timing import Protocol, Timing, take
from jenga_compile.errors import JengaError, NoKernelWorks

Status = Literal["timed", "left out", "failed", "wrong"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one kernel."""

    group: Group
    status: Status
    why: str | None = None
    """Why it has no time."""
    ms: float | None = None
    spread: float | None = None
    """Of the rounds, relative to `ms`."""
    calls: int | None = None
    pairs: int | None = None
    """Pairs of a query and a key that count as its work, of all heads."""
    tflops: float | None = None
    """4 * pairs * head dim a second; of a product of matrices, its own."""
    error: float | None = None
    allowed: float | None = None
    """Relative to float64, and the gate's bound."""
    temporary_percent: float | None = None
    """Of ours on a GPU: peak memory of a call beyond its inputs and its output, in percent of q."""
    times_auto: float | None = None
    """Its time in times of ours (`jenga auto`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """All rows of one case."""

    shape: Shape
    wanted: float
    mask: MaskKind
    density: float
    """Pairs seen of all pairs, the dense rows of the text among both."""
    rows: Mapping[str, Row]

    @property
    def name(self) -> str:
        return f"{self.shape.name}, {self.mask} lists at {self.wanted:g}"

    @property
    def wrong(self) -> dict[str, Row]:
        """Rows of ours that failed or were red."""
        return {n: row for n, row in self.rows.items() if row.group == "ours" and row.status in ("failed", "wrong")}

    @property
    def fastest_dense(self) -> str | None:
        """Name of the fastest dense row of full precision."""
        found = {name: row.ms for name, row in self.rows.items() if row.group == "dense" and row.ms is not None}
        return min((name for name in found if "fp8" not in name), key=found.__getitem__, default=None)

    def share_of_selection(self) -> float | None:
        """Of the whole site's time."""
        return self._ratio(SELECT, SITE)

    def times_faster(self) -> float | None:
        """The whole site than the fastest dense kernel."""
        return None if self.fastest_dense is None else self._ratio(self.fastest_dense, SITE)

    def _ratio(self, name: str, other: str) -> float | None:
        first, second = (self.rows[row].ms if row in self.rows else None for row in (name, other))
        return None if first is None or second is None else first / second


def measure_case(work: Work, kernels: Iterable[Kernel], protocol: Protocol) -> Case:
    """Judge every kernel that this machine has and these lists suit, and time those that are green."""
    shape, device = work.inputs.shape, work.inputs.device
    gate, calls, rows = Gate(work), dict[str, Call](), dict[str, Row]()
    for kernel in kernels:
        if work.kind not in kernel.masks:
            continue
        reason = kernel.missing(device)
        if reason is not None:
            rows[kernel.name] = Row(group=kernel.group, status="left out", why=reason)
            continue
        try:
            call = kernel.prepare(work)
            rows[kernel.name] = _judged(kernel, work, gate, call)
        except Exception as error:
            rows[kernel.name] = _without_time(kernel.group, error)
        if rows[kernel.name].status == "timed":
            calls[kernel.name] = call
    for name, timing in take(calls, protocol, device).items():
        rows[name] = _timed(rows[name], timing, shape)
    auto = rows[AUTO].ms if AUTO in rows else None
    if auto is not None:
        timed = {name: row.ms for name, row in rows.items() if row.ms is not None}
        rows |= {name: dataclasses.replace(rows[name], times_auto=ms / auto) for name, ms in timed.items()}
    density = work.ours.pairs / shape.all_pairs
    return Case(shape=shape, wanted=work.wanted, mask=work.kind, density=density, rows=rows)


def _judged(kernel: Kernel, work: Work, gate: Gate, call: Call) -> Row:
    """The row of a kernel that ran, before it is timed."""
    verdict = gate.judge(kernel, call())
    row = Row(group=kernel.group, status="timed")
    if kernel.sees != "nothing":
        row = dataclasses.replace(row, pairs=getattr(work, kernel.sees).pairs)
    if verdict is not None:
        row = dataclasses.replace(row, error=verdict.error, allowed=verdict.allowed)
    if verdict is not None and not verdict.green:
        return dataclasses.replace(row, status="wrong", why=str(verdict))
    if kernel.group != "ours" or work.inputs.device.type != "cuda":
        return row
    return dataclasses.replace(row, temporary_percent=_temporary_percent(call, work.inputs.q))


def _temporary_percent(call: Call, q: torch.Tensor) -> float:
    """Measured on a second call: the first one may compile, or set up what stays."""
    torch.cuda.synchronize(q.device)
    before = torch.cuda.memory_allocated(q.device)
    torch.cuda.reset_peak_memory_stats(q.device)
    result = call()
    torch.cuda.synchronize(q.device)
    beyond = torch.cuda.max_memory_allocated(q.device) - before - _bytes(result)
    return 100 * beyond / _bytes(q)


def _bytes(result: Result) -> int:
    tensors = result if isinstance(result, tuple) else (result,)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _timed(row: Row, timing: Timing | Exception, shape: Shape) -> Row:
    if isinstance(timing, Exception):
        return _without_time(row.group, timing)
    work = 2 * CEILING**3 if row.group == "ceiling" else 4 * shape.dim * (row.pairs or 0)
    tflops = work / timing.ms / 1e9 if work else None
    return dataclasses.replace(row, ms=timing.ms, spread=timing.spread, calls=timing.calls, tflops=tflops)


def _without_time(group: Group, error: Exception) -> Row:
    """Our own refusals say what the machine lacks, or that a kernel proved wrong; anything else is a failure."""
    status: Status = "failed"
    if isinstance(error, JengaError):
        status = "wrong" if isinstance(error, NoKernelWorks) else "left out"
    first, *_ = str(error).splitlines() or [""]
    why = first if isinstance(error, JengaError) else f"{type(error).__name__}: {first}"
    return Row(group=group, status=status, why=why)
