"""What a run did, or will do, step by step: a table, its sums, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jenga_compile.grid import TokenGrid
from jenga_compile.sites import Report, amount


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step. What is not known is None."""

    index: int
    stage: int
    """From 1."""

    sigma: float | None
    """Share of noise in the latents that the step begins with."""

    timestep: float | None
    grid: TokenGrid | None
    pixels: tuple[int, int] | None
    """Height and width of the video that the step's latents stand for."""

    computed: bool
    density: float | None = None
    """Share of the key blocks, text included, that a video query block saw in carved attention; None if none was."""

    seconds: float | None = None
    compiled: bool = False
    """Whether something was compiled in this step, which its seconds then tell more of than of the step."""

    flops: float | None = None
    """Floating-point operations of all calls of the transformer, 2 a multiply-add: matrix products and convolutions."""

    dense_flops: float | None = None
    """The same of a step that is computed at full size with dense attention."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunReport:
    """One run of an accelerated pipeline, or the plan of one."""

    title: str
    steps: tuple[StepReport, ...]
    planned: int
    """Steps that were to be done."""

    notes: tuple[str, ...] = ()
    """What did not go as asked, and why."""

    sites: Report = dataclasses.field(default_factory=Report)
    """What became of every attention site, in all graphs of the run."""

    gpu: str | None = None
    """Of a plan: the GPU whose time is estimated."""

    @property
    def computed(self) -> int:
        """Steps in which the transformer ran (NFE)."""
        return sum(step.computed for step in self.steps)

    @property
    def seconds(self) -> float | None:
        return _sum([step.seconds for step in self.steps])

    @property
    def steady_seconds(self) -> float | None:
        """Seconds of such a run once all is compiled: steps that compiled count as the median of others like them."""

        def like(step: StepReport) -> float | None:
            alike = [
                other.seconds
                for other in self.steps
                if not other.compiled
                and other.seconds is not None
                and (other.stage, other.computed) == (step.stage, step.computed)
            ]
            return statistics.median(alike) if step.compiled and alike else step.seconds

        return _sum([like(step) for step in self.steps])

    @property
    def flops(self) -> float | None:
        return _sum([step.flops for step in self.steps])

    @property
    def dense_flops(self) -> float | None:
        """Operations of the plain pipeline, with as many steps."""
        return _sum([step.dense_flops for step in self.steps])

    def to_json(self) -> str:
        def plain(step: StepReport) -> dict[str, Any]:
            grid = None if step.grid is None else list(step.grid.shape)
            return {**dataclasses.asdict(step), "grid": grid}

        whole = {
            "title": self.title,
            "steps": [plain(step) for step in self.steps],
            "planned": self.planned,
            "computed": self.computed,
            "seconds": self.seconds,
            "steady_seconds": self.steady_seconds,
            "flops": self.flops,
            "dense_flops": self.dense_flops,
            "attention": self.sites.summary() if self.sites.seen else None,
            "gpu": self.gpu,
            "notes": list(self.notes),
        }
        return json.dumps(whole, indent=2)

    def plot(self, path: str | Path) -> None:
        """Draw the run to a PNG: noise, resolution and density by step, computed steps filled, and times.

        Raises:
            ExtraMissing: Pillow is not installed.
            UnknownVideoFormat, OutputFolderMissing, OutputIsFolder, OutputUnusable: `path` cannot be written as .png.
        """
        from jenga_compile.sampler.run_plot import draw

        draw(self, Path(path))

    def __str__(self) -> str:
        lines = [self.title, *_table(self.steps), *self._sums()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _sums(self) -> list[str]:
        done = len(self.steps)
        what = f"{done} steps" if done == self.planned else f"{done} of {self.planned} steps"
        lines = [f"{what}: the transformer ran in {self.computed} (NFE), {done - self.computed} skipped"]
        if self.seconds is not None:
            lines[0] += f"; {self.seconds:.3g} s"
            if self.gpu:
                lines[0] += f", estimated on {self.gpu}, matrix products alone"
            if any(step.compiled for step in self.steps) and self.steady_seconds is not None:
                lines[0] += f", {self.steady_seconds:.3g} s once compiled"
        if self.flops and self.dense_flops:
            saved = 1 - self.flops / self.dense_flops
            lines.append(
                f"{amount(self.flops)} of {amount(self.dense_flops)} dense: {saved:.0%} saved, "
                f"{self.dense_flops / self.flops:.1f}x less"
            )
        if self.sites.seen:
            lines.append(self.sites.summary())
        return lines


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _table(steps: Sequence[StepReport]) -> list[str]:
    header = ("step", "sigma", "t", "stage", "pixels", "grid", "", "density", "FLOP", "seconds")
    rows = [
        (
            str(step.index),
            "-" if step.sigma is None else f"{step.sigma:.4f}",
            "-" if step.timestep is None else f"{step.timestep:.0f}",
            str(step.stage),
            "-" if step.pixels is None else f"{step.pixels[0]}x{step.pixels[1]}",
            "-" if step.grid is None else str(step.grid),
            ("computed" if step.computed else "skipped") + (", compiled" if step.compiled else ""),
            "-" if step.density is None else f"{step.density:.3f}",
            "-" if step.flops is None else amount(step.flops),
            "-" if step.seconds is None else f"{step.seconds:.3f}",
        )
        for step in steps
    ]
    used = [place for place, name in enumerate(header) if not name or any(row[place] != "-" for row in rows)]
    widths = {place: max(len(row[place]) for row in [header, *rows]) for place in used}
    left = {4, 5, 6}
    return [
        "  "
        + "  ".join(
            row[place].ljust(widths[place]) if place in left else row[place].rjust(widths[place]) for place in used
        ).rstrip()
        for row in [header, *rows]
    ]
