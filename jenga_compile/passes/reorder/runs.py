"""How the tokens of one dimension are ordered, as consecutive runs: what the verifier computes with.

A run is `fixed` (tokens stand where the model has them), on a curve over so many frames, rows and columns, or `uniform`
(all tokens are equal, so that no order can be told). Equal runs mean equal permutations, wherever they came from.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeAlias

from jenga_compile.grid import CurveKind


class Fault(Exception):
    """Tokens are not in the order that an op takes them to be in; the text says which and where."""


@dataclasses.dataclass(frozen=True)
class Run:
    tokens: int
    curve: CurveKind | None = None
    """The curve that these tokens are on, if any."""

    grid: tuple[int, int, int] | None = None
    uniform: bool = False

    def __str__(self) -> str:
        where = "uniform" if self.uniform else "in place" if self.grid is None else f"on {self.curve} {self.grid}"
        return f"{self.tokens} {where}"


Runs: TypeAlias = tuple[Run, ...]


def fixed(tokens: int) -> Runs:
    return (Run(tokens),) if tokens else ()


def uniform(tokens: int) -> Runs:
    return (Run(tokens, uniform=True),) if tokens else ()


def on_curve(
    grid: tuple[int, int, int], curve: CurveKind, cuts: Sequence[int], before: int = 0, after: int = 0
) -> Runs:
    """Tokens in place, then the grid on a curve that starts anew at the frames `cuts`, then tokens in place."""
    frames, rows, columns = grid
    bounds = (0, *cuts, frames)
    parts = [(last - first, rows, columns) for first, last in itertools.pairwise(bounds)]
    video = tuple(Run(n * h * w, curve, (n, h, w)) for n, h, w in parts)
    return joined(fixed(before), video, fixed(after))


def is_fixed(runs: Runs) -> bool:
    return all(run.grid is None and not run.uniform for run in runs)


def is_permuted(runs: Runs) -> bool:
    """Whether some of the tokens are on a curve."""
    return any(run.grid is not None for run in runs)


def tokens_of(runs: Runs) -> int:
    return sum(run.tokens for run in runs)


def joined(*pieces: Runs) -> Runs:
    """One after the other; neighbours in place are one run. Uniform ones are not, since each has a value of its own."""
    out: list[Run] = []
    for run in (run for piece in pieces for run in piece):
        if out and run == Run(run.tokens) and out[-1] == Run(out[-1].tokens):
            run = Run(out.pop().tokens + run.tokens)
        out.append(run)
    return tuple(out)


def cut(runs: Runs, begin: int, end: int) -> Runs:
    """Tokens [begin, end).

    Raises:
        Fault: a bound lies inside a curve.
    """
    out, start = [], 0
    for run in runs:
        low, high = max(begin, start), min(end, start + run.tokens)
        if low < high:
            if run.grid is not None and high - low != run.tokens:
                raise Fault(f"tokens {begin} to {end} cut the run {run}")
            out.append(dataclasses.replace(run, tokens=high - low))
        start += run.tokens
    return joined(tuple(out))


def met(several: Sequence[Runs]) -> Runs:
    """The order of what is computed from tensors in these orders, token by token.

    Raises:
        Fault: they differ.
    """
    first, *others = several
    for other in others:
        first = _met(first, other)
    return first


def _met(left: Runs, right: Runs) -> Runs:
    if tokens_of(left) != tokens_of(right):
        raise Fault(f"{tokens_of(left)} tokens meet {tokens_of(right)}")
    out: list[Run] = []
    bounds = sorted(bound for bound in {*_bounds(left), *_bounds(right)} if not _inside_curve(bound, left, right))
    for begin, end in itertools.pairwise(bounds):
        here = [_run_at(runs, begin, end) for runs in (left, right)]
        told = [run for run in here if not run.uniform] or here[:1]
        if any(run != told[0] for run in told):
            raise Fault(f"tokens {begin} to {end} are {told[0]} in one operand, {told[1]} in another")
        out.append(told[0])
    return joined(tuple(out))


def _bounds(runs: Runs) -> list[int]:
    return list(itertools.accumulate((run.tokens for run in runs), initial=0))


def _inside_curve(token: int, *several: Runs) -> bool:
    """Whether a cut before this token would lie inside a curve."""
    return any(
        run.grid is not None and start < token < start + run.tokens
        for runs in several
        for run, start in zip(runs, _bounds(runs), strict=False)
    )


def _run_at(runs: Runs, begin: int, end: int) -> Run:
    """What tokens [begin, end) are; several runs pass as one only if they are uniform."""
    part = cut(runs, begin, end)
    if len(part) == 1:
        return part[0]
    if all(run.uniform for run in part):
        return Run(end - begin, uniform=True)
    raise Fault(f"tokens {begin} to {end} are {' and '.join(map(str, part))}, where another operand has one run")
