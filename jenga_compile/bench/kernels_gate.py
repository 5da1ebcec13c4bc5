"""No time without a green gate: what a kernel computes is compared with float64 on a sample of its rows.

Six rows of one head each: the first, the last of the video, which may be partial, the last of all, which is text where
there is some, and three between, of the first, the last and a middle head. Over all of them together,
error = |out - truth| / |truth| in the Euclidean norm.

The bound is derived, not chosen. Two correct ways to compute attention in one dtype differ in the order of their sums,
so their errors are of one size. The plain computation, which rounds logits and weights to the dtype, shows that size on
the very same rows, and `FACTOR` times its error is allowed: both errors are norms over some 10,000 elements, which vary
by some percent from input to input and not by multiples. For fp8 the plain computation rounds q, k and v to e4m3 with
one scale a head, and the weights before their sum divides them. `CAPS` bounds ours besides, so that the promise
does not grow with what is plain on some input. There is none for fp8 and random values: their mean is small, and what
rounding v leaves of it is 4 to 5 % off in the plain computation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

from jenga_compile.bench.kernels_entry import Kernel, Result
from jenga_compile.bench.kernels_inputs import Inputs, Work
from jenga_compile.bench.kernels_pattern import Pattern
from jenga_compile.bench.kernels_rivals import FP8_MAX, quantised
from jenga_compile.grid import BLOCK

FACTOR = 2.0
"""Largest error allowed, in errors of the plain computation."""

CAPS = {("same", "structured"): 0.005, ("same", "random"): 0.005, ("fp8", "structured"): 0.03}
"""Largest error allowed of ours, by precision and values, for inputs of 16 bits."""

Precision = Literal["same", "fp8"]

_OfRow: TypeAlias = Callable[[int, int], torch.Tensor]
"""Computes one head's row."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the gate found."""

    error: float
    allowed: float

    @property
    def green(self) -> bool:
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"error {self.error:.2e} of {self.allowed:.2e} allowed"


class Gate:
    """Judges kernels on one work; the truth of each pattern is computed once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._samples: dict[str, _Sample] = {}

    def judge(self, kernel: Kernel, result: Result) -> Verdict | None:
        """None for a kernel that attends to nothing."""
        if isinstance(result, tuple):
            return Verdict(rows_misplaced(self._work, *result), 0.0)
        if kernel.sees == "nothing":
            return None
        sample = self._sample(kernel.sees)
        error = _relative(sample.of(result), sample.truth) if bool(result.isfinite().all()) else math.inf
        allowed = FACTOR * sample.plain_error(kernel.precision)
        if kernel.group == "ours" and result.dtype.itemsize == 2:
            allowed = min(allowed, CAPS.get((kernel.precision, self._work.inputs.values), math.inf))
        return Verdict(error, allowed)

    def _sample(self, sees: Literal["ours", "flat", "dense"]) -> _Sample:
        if sees not in self._samples:
            self._samples[sees] = _Sample(self._work.inputs, getattr(self._work, sees))
        return self._samples[sees]


class _Sample:
    """Some rows of a pattern, with their truth."""

    def __init__(self, inputs: Inputs, pattern: Pattern) -> None:
        self._inputs, self._pattern = inputs, pattern
        self._places = sampled(inputs, pattern.rows)
        self.truth = self._each(lambda head, row: self._attend(head, row, torch.float64))
        self._errors: dict[Precision, float] = {}

    def of(self, out: torch.Tensor) -> torch.Tensor:
        """The sampled rows of an output [1, H, L, D], float64 [n, D]."""
        return self._each(lambda head, row: out[0, head, self._pattern.queries(row)].double())

    def plain_error(self, precision: Precision) -> float:
        """Error of the plain computation on the same rows."""
        if precision not in self._errors:
            compute = self._plain if precision == "same" else self._plain_fp8
            self._errors[precision] = _relative(self._each(compute), self.truth)
        return self._errors[precision]

    def _each(self, compute: _OfRow) -> torch.Tensor:
        return torch.cat([compute(head, row) for head, row in self._places])

    def _rows(self, head: int, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q of the row, and k and v of the keys that it sees; [n, D]."""
        keys = self._pattern.keys(head, row)
        inputs = self._inputs
        return inputs.q[0, head, self._pattern.queries(row)], inputs.k[0, head, keys], inputs.v[0, head, keys]

    def _attend(self, head: int, row: int, dtype: torch.dtype) -> torch.Tensor:
        q, k, v = (x.to(dtype) for x in self._rows(head, row))
        out: torch.Tensor = (q @ k.T * q.shape[-1] ** -0.5).softmax(-1) @ v
        return out.double()

    def _plain(self, head: int, row: int) -> torch.Tensor:
        return self._attend(head, row, self._inputs.q.dtype)

    def _plain_fp8(self, head: int, row: int) -> torch.Tensor:
        whole = (x[:, head : head + 1] for x in (self._inputs.q, self._inputs.k, self._inputs.v))
        q, k, v = (eight.float()[0, 0] * scale for eight, scale in map(quantised, whole))
        keys = self._pattern.keys(head, row)
        logits = q[self._pattern.queries(row)] @ k[keys].T * q.shape[-1] ** -0.5
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        rounded = (weights * FP8_MAX).to(torch.float8_e4m3fn).float() / FP8_MAX
        out: torch.Tensor = rounded @ v[keys] / weights.sum(-1, keepdim=True)
        return out.double()


def sampled(inputs: Inputs, rows: int) -> list[tuple[int, int]]:
    """The heads and rows that the gate looks at."""
    heads = inputs.shape.heads
    chosen = sorted({0, inputs.shape.blocks.rows - 1, rows - 1, rows // 4, rows // 2, 3 * rows // 4})
    return list(zip(itertools.cycle((0, heads - 1, heads // 2)), chosen, strict=False))


def rows_misplaced(work: Work, indices: torch.Tensor, counts: torch.Tensor) -> float:
    """Of the sampled rows, the share whose list breaks the law of `jenga::block_select`, scores being float64.

    Blocks that score above the last one to keep are listed, and so are static ones and all text; ones that score
    below it are not, unless they are static; lists ascend. Scores that float32 cannot tell apart may fall either way.
    """
    blocks = work.inputs.shape.blocks
    places = [(head, row) for head, row in sampled(work.inputs, blocks.keys) if row < blocks.rows]
    broken = 0
    for head, row in places:
        q, k = (_pooled(x[0, head, : blocks.video]) for x in (work.inputs.q, work.inputs.k))
        scores = k @ q[row]
        last = scores.sort(descending=True).values[max(1, math.ceil(work.wanted * blocks.rows - 1e-3)) - 1]
        slack = 1e-5 * scores.abs().max()
        listed = indices[0, head, row, : int(counts[0, head, row])].long()
        seen = torch.zeros(blocks.keys, dtype=torch.bool, device=scores.device)
        seen[listed] = True
        must, may = (scores > last + slack) | work.always[row], (scores >= last - slack) | work.always[row]
        lawful = bool((seen[: blocks.rows] >= must).all() and (seen[: blocks.rows] <= may).all())
        ascending = bool((listed.diff() > 0).all() and seen[blocks.rows :].all())
        broken += not (lawful and ascending)
    return broken / len(places)


def _pooled(x: torch.Tensor) -> torch.Tensor:
    """Mean of each block of [video, D], float64 [R, D]."""
    return torch.stack([x[start : start + BLOCK].double().mean(0) for start in range(0, x.shape[0], BLOCK)])


def _relative(out: torch.Tensor, truth: torch.Tensor) -> float:
    return float((out - truth).norm() / truth.norm())
