"""What a session notes of each step, and the report that is made of it when the run is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jenga_compile.grid import TokenGrid
from jenga_compile.presets import Slot
from jenga_compile.sampler.clock import Clock
from jenga_compile.sampler.corner import Corner
from jenga_compile.sampler.flops import without_data
from jenga_compile.sampler.run_report import RunReport, StepReport
from jenga_compile.sampler.runner import Runner
from jenga_compile.sampler.settings import Settings
from jenga_compile.sites import Report, Site


@dataclasses.dataclass(frozen=True)
class _Called:
    """One call of a transformer: keys into what was noted of calls like it."""

    runner: Runner
    small: Hashable
    full: Hashable
    reused: bool


class Log:
    """Grows with the run; holds no tensor with data but the meters."""

    def __init__(self, pipe: Any) -> None:
        self._scale = pixels_per_latent(pipe)
        self._clock = Clock()
        self._steps: list[StepReport] = []
        self._densities: list[list[Tensor]] = []
        self._calls: list[list[_Called]] = [[]]
        self._like: dict[Hashable, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._graphs = _graphs_compiled()

    def note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def begin(self, device: torch.device) -> None:
        """Before the first call of the run."""
        if not self._clock.started:
            self._clock.mark(device)

    def call(self, runner: Runner, full: Mapping[str, Any], small: Mapping[str, Any], *, computed: bool) -> None:
        self._calls[-1].append(_Called(runner, self._key(runner, small), self._key(runner, full), not computed))

    def step(
        self,
        slot: Slot,
        sigma: float | None,
        timestep: Any,
        corner: Corner | None,
        grid: TokenGrid | None,
        *,
        computed: bool,
        device: torch.device,
    ) -> None:
        """A step is done."""
        self._clock.mark(device)
        before, self._graphs = self._graphs, _graphs_compiled()
        pixels = None if corner is None else (corner.part[0] * self._scale, corner.part[1] * self._scale)
        self._steps.append(
            StepReport(
                index=slot.step,
                stage=slot.stage + 1,
                sigma=sigma,
                timestep=timestep,
                grid=grid,
                pixels=pixels,
                computed=computed,
                compiled=self._graphs != before,
            )
        )
        self._densities.append([])
        self._calls.append([])

    def density(self, meters: list[Tensor]) -> None:
        """What the meters counted in the step that was just done."""
        self._densities[-1] = meters

    def report(self, title: str, settings: Settings, planned: int, runners: Sequence[Runner]) -> RunReport:
        """The run as it stands; waits for the GPU."""
        laps = self._clock.laps()
        counted: dict[Hashable, float | None] = {}
        steps = []
        for number, step in enumerate(self._steps):
            density = _density(self._densities[number])
            calls = self._calls[number]
            steps.append(
                dataclasses.replace(
                    step,
                    timestep=None if step.timestep is None else float(step.timestep),
                    density=density,
                    seconds=laps[number] if number < len(laps) else None,
                    flops=_total([self._flops(called, counted, step.grid, density) for called in calls]),
                    dense_flops=_total([self._dense(called, counted) for called in calls]),
                )
            )
        return RunReport(
            title=title,
            steps=tuple(steps),
            planned=planned,
            notes=(*self._notes, *_remarks(settings, runners, steps, planned)),
            sites=sum((runner.sites for runner in runners), Report()),
        )

    def _key(self, runner: Runner, call: Mapping[str, Any]) -> Hashable:
        shapes = tuple((name, value.shape) for name, value in call.items() if isinstance(value, Tensor))
        key = (id(runner), shapes, call.get("height"), call.get("width"))
        if key not in self._like:
            self._like[key] = without_data(dict(call))
        return key

    def _dense(self, called: _Called, counted: dict[Hashable, float | None]) -> float | None:
        return self._counted(called.runner, called.full, counted, reused=False)

    def _flops(
        self,
        called: _Called,
        counted: dict[Hashable, float | None],
        grid: TokenGrid | None,
        density: float | None,
    ) -> float | None:
        total = self._counted(called.runner, called.small, counted, reused=called.reused)
        if total is None or called.reused or density is None or grid is None:
            return total
        batch = self._like[called.small]["hidden_states"].shape[0]
        carved = {site.path: site for site in called.runner.sites.sites if _is_of(site, grid, batch)}
        return total - sum(site.dense_flops - _seen(site, density) for site in carved.values())

    def _counted(
        self, runner: Runner, key: Hashable, counted: dict[Hashable, float | None], *, reused: bool
    ) -> float | None:
        if (key, reused) not in counted:
            counted[key, reused] = runner.count(self._like[key], reused=reused)
        return counted[key, reused]


def pixels_per_latent(pipe: Any) -> int:
    """Pixels a side that the pipeline's VAE makes one latent of."""
    for name in ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor"):
        if hasattr(pipe, name):
            return int(getattr(pipe, name))
    return 1


def _graphs_compiled() -> int:
    """Graphs that Dynamo has made in this process."""
    counted: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return counted


def _is_of(site: Site, grid: TokenGrid, batch: int) -> bool:
    return site.decision == "carved" and site.grid == grid.shape and site.batch == batch


def _seen(site: Site, density: float) -> float:
    """Operations of a carved site whose video rows saw this share of the keys, and whose text rows saw all."""
    start, stop = site.video or (0, 0)
    pairs = site.keys * (density * (stop - start) + site.queries - (stop - start))
    return 4 * site.batch * site.heads * site.head_dim * pairs


def _density(meters: Sequence[Tensor]) -> float | None:
    counts = [meter.tolist() for meter in meters]
    possible = sum(all_blocks for _, all_blocks in counts)
    return sum(seen for seen, _ in counts) / possible if possible else None


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) and values else None


def _remarks(settings: Settings, runners: Sequence[Runner], steps: Sequence[StepReport], planned: int) -> list[str]:
    """What did not go as asked."""
    remarks = [
        f"skipped steps reuse the model's output: {runner.why_output}" for runner in runners if runner.why_output
    ]
    sites = [site for runner in runners for site in runner.sites.sites]
    carved = [site for site in sites if site.decision == "carved"]
    if settings.compiles and sites and not carved:
        remarks.append("no attention was carved: " + "; ".join(dict.fromkeys(site.reason for site in sites)))
    if settings.compiles and steps and not sites:
        remarks.append("no attention was carved: the compiler ran the model as it is; see torch._dynamo's messages")
    if settings.amplifies and carved and not any(site.text for site in carved):
        remarks.append("the amplifier does nothing: the model has no text in its self-attention")
    if settings.amplifies and not settings.carved:
        remarks.append("attention keeps every block, in the backend: the amplifier acts there")
    if steps and len(steps) < planned:
        small = steps[-1].stage < len(settings.preset.stages) and settings.preset.resizes
        corner = ", before full size: the video is in the top left corner of the latents" if small else ""
        remarks.append(f"the run ended after {len(steps)} of {planned} steps{corner}")
    return remarks
