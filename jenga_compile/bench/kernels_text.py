"""What `jenga bench kernels` has measured as tables for people, at most 120 columns wide."""

from __future__ import annotations

import itertools
import sys

from jenga_compile.bench.kernels import Request, Result, measure
from jenga_compile.bench.kernels_case import Case, Row
from jenga_compile.bench.kernels_ours import SITE
from jenga_compile.errors import KernelsWrong
from jenga_compile.forecast_text import WIDTH, table

_COLUMNS = 6
"""Densities that fit beside each other."""

_NOT_TIMED = {"left out": "-", "failed": "failed", "wrong": "WRONG"}


def run(request: Request) -> str:
    """Measure, telling of each case on the error stream, and return the tables.

    Raises:
        KernelsWrong: kernels of ours failed, or differ from float64 by more than the gate allows; the tables are
            printed then.
    """
    made = measure(request, lambda line: print(line, file=sys.stderr, flush=True))
    text = as_text(made) if request.json is None else f"{as_text(made)}\n\nwrote {request.json}"
    wrong = [(case, name, row) for case in made.cases for name, row in case.wrong.items()]
    if not wrong:
        return text
    print(text, flush=True)
    case, name, row = wrong[0]
    raise KernelsWrong(count=len(wrong), name=name, case=case.name, why=row.why)


def as_text(made: Result) -> str:
    """Machine, a table for each site and kind of lists, and what has no time and why."""
    blocks = [_head(made)]
    for (shape, mask), cases in itertools.groupby(made.cases, lambda case: (case.shape, case.mask)):
        every = list(cases)
        parts = [_case_table(every[first : first + _COLUMNS]) for first in range(0, len(every), _COLUMNS)]
        blocks.append([f"{shape}; {mask} lists, ms (TFLOP/s)", *itertools.chain(*parts)])
    notes = _reasons(made.cases)
    if made.left_out:
        notes.append(f"no time left for {len(made.left_out)} cases: {made.left_out[0]}, ...")
    return "\n\n".join("\n".join(block) for block in [*blocks, notes] if block)


def _head(made: Result) -> list[str]:
    about, how = made.environment, made.request.how_often
    dtype = str(made.request.dtype).removeprefix("torch.")
    return [
        f"{about.get('gpu', about['cpu'])}, torch {about['torch']}, triton {about['triton']}, {dtype}",
        f"{how.kind}: {how.rounds} rounds of at most {how.reps} calls; values {made.request.values}",
    ]


def _case_table(cases: list[Case]) -> list[str]:
    """A row a kernel, a column a density."""
    names = list(dict.fromkeys(name for case in cases for name in case.rows))
    rows = [("kernel", *(f"keep {case.wanted:g}" for case in cases))]
    rows.append(("density", *(f"{case.density:.3f}" for case in cases)))
    for name in names:
        cells = [_cell(case.rows.get(name)) for case in cases]
        if set(cells) != {"-"}:
            rows.append((name, *cells))
    if any(SITE in case.rows for case in cases):
        rows.append(("selection of site", *(_or_dash(case.share_of_selection(), "{:.1%}") for case in cases)))
        rows.append(("site against dense", *(_or_dash(case.times_faster(), "{:.2f}x") for case in cases)))
    return table(rows, right=range(1, len(cases) + 1))


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.ms is None:
        return _NOT_TIMED[row.status]
    return f"{row.ms:.2f}" if row.tflops is None else f"{row.ms:.2f} ({row.tflops:,.0f})"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _reasons(cases: list[Case]) -> list[str]:
    """Each reason once, with the rows it holds for."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for case in cases:
        for name, row in case.rows.items():
            if row.ms is None:
                found.setdefault((row.status, row.why or ""), {})[name] = None
    lines = [f"{status}: {', '.join(names)}: {why}" for (status, why), names in found.items()]
    return [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines]
