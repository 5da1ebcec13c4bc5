"""`jenga explain`: what carving would do to a named model at real size, and what it would save; no weights needed."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from jenga_compile.compilation import known_grid
from jenga_compile.config import Carving
from jenga_compile.cost import expected_keep
from jenga_compile.errors import OptionsAtOdds, OutOfRange
from jenga_compile.explanation import explain
from jenga_compile.files import check_writable
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.models.catalogue import find_model
from jenga_compile.models.entry import Entry
from jenga_compile.presets import STEPS, Preset, find_preset
from jenga_compile.sites import Report, Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to explain. Checked at birth, before any work."""

    model: str
    size: tuple[int, int] | None = None
    """Height and width in pixels; the model's own by default. So are `frames`."""
    frames: int | None = None
    preset: str | None = None
    keep: float | None = None
    cutoff: float | None = None
    layers: int | None = None
    """Blocks of each kind, of a model that is cut short; all by default."""
    batch: int = 1
    json: Path | None = None
    """File for the whole report; `-` prints it in place of the tables."""

    def __post_init__(self) -> None:
        self.entry.sizes(*self.pixels, self.count)
        if self.batch < 1:
            raise OutOfRange(name="batch", value=self.batch, expected="[1, inf)", way_out="It counts samples a call.")
        for name in ("keep", "cutoff"):
            if self.preset is not None and getattr(self, name) is not None:
                raise OptionsAtOdds(
                    name=name, value=getattr(self, name), beside="beside --preset", way_out="Leave out one of the two."
                )
        if self.plan is not None:
            for stage in self.plan.stages:
                self.entry.sizes(*self.entry.scaled(*self.pixels, stage.scale), self.count)
        _ = self.carving
        if self.json is not None and str(self.json) != "-":
            check_writable(self.json)

    @property
    def entry(self) -> Entry:
        return find_model(self.model)

    @property
    def pixels(self) -> tuple[int, int]:
        return self.size or self.entry.size

    @property
    def count(self) -> int:
        return self.frames if self.frames is not None else self.entry.frames

    @property
    def plan(self) -> Preset | None:
        return None if self.preset is None else find_preset(self.preset)

    @property
    def carving(self) -> Carving:
        default = Carving()
        return Carving(
            keep=default.keep if self.keep is None else self.keep,
            cutoff=default.cutoff if self.cutoff is None else self.cutoff,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """Calls of the transformer at one resolution and one sparsity."""

    pixels: tuple[int, int]
    grid: TokenGrid
    carving: Carving
    calls: int
    report: Report

    def flops(self, site: Site) -> int:
        """Floating-point operations of a site, as it is carved or left; of a carved one, what is expected."""
        if site.grid is None:
            return site.flops
        return site.flops_at(expected_keep(TokenGrid(*site.grid), cast(CurveKind, site.curve), self.carving))

    @property
    def dense(self) -> int:
        """Floating-point operations of all attention in a call, were it dense."""
        return sum(site.dense_flops for site in self.report.sites)

    @property
    def carved(self) -> int:
        return sum(self.flops(site) for site in self.report.sites)

    def to_dict(self) -> dict[str, Any]:
        told = json.loads(self.report.to_json())
        flops = [{"dense_flops": site.dense_flops, "expected_flops": self.flops(site)} for site in self.report.sites]
        told["sites"] = [{**site, **cost} for site, cost in zip(told["sites"], flops, strict=True)]
        return {
            "height": self.pixels[0],
            "width": self.pixels[1],
            "grid": list(self.grid.shape),
            "blocks": self.grid.blocks(),
            "keep": self.carving.keep,
            "cutoff": self.carving.cutoff,
            "calls": self.calls,
            "dense_flops": self.dense,
            "expected_flops": self.carved,
            "report": told,
        }


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One model, stage by stage; without a preset there is one stage of one call."""

    request: Request
    parameters: int
    stages: tuple[Stage, ...]

    @property
    def dense(self) -> int:
        """Floating-point operations of dense attention for the whole video, every step computed; or of one call."""
        last = self.stages[-1]
        return last.dense * (1 if self.request.plan is None else STEPS)

    @property
    def carved(self) -> int:
        return sum(stage.calls * stage.carved for stage in self.stages)

    def to_json(self) -> str:
        request = self.request
        facts = {
            "model": request.entry.name,
            "transformer": request.entry.transformer,
            "parameters": self.parameters,
            "layers": request.layers or request.entry.layers,
            "height": request.pixels[0],
            "width": request.pixels[1],
            "frames": request.count,
            "batch": request.batch,
            "text": request.entry.text,
            "preset": request.preset,
            "steps": None if request.plan is None else STEPS,
            "dense_flops": self.dense,
            "expected_flops": self.carved,
        }
        return json.dumps({**facts, "stages": [stage.to_dict() for stage in self.stages]}, indent=2)


def forecast(request: Request) -> Forecast:
    """Explain the model once at every resolution that the request has.

    Raises:
        OutOfRange: the model is not as deep as `layers`.
        ExtraMissing: diffusers is not installed.
    """
    model = request.entry.build_hollow(request.layers)
    parameters = sum(weight.numel() for weight in model.parameters())
    reports: dict[tuple[int, int], Report] = {}
    stages = []
    for scale, carving, calls in _stages(request):
        pixels = request.entry.scaled(*request.pixels, scale)
        if pixels not in reports:
            reports[pixels] = _explain(request, model, pixels)
        grid = request.entry.sizes(*pixels, request.count).grid
        stages.append(Stage(pixels, grid, carving, calls, reports[pixels]))
    return Forecast(request, parameters, tuple(stages))


def _stages(request: Request) -> Iterator[tuple[float, Carving, int]]:
    """Share of the resolution, carving and number of calls of each stage."""
    if request.plan is None:
        yield 1.0, request.carving, 1
        return
    for stage, calls in zip(request.plan.stages, request.plan.calls(), strict=True):
        yield stage.scale, stage.carving, calls


def _explain(request: Request, model: torch.nn.Module, pixels: tuple[int, int]) -> Report:
    entry = request.entry
    sizes = (*pixels, request.count)
    options = {} if entry.grid_unseen is None else {"grid": entry.sizes(*sizes).grid.shape, "text": entry.grid_unseen}
    inputs = entry.hollow_inputs(*sizes, batch=request.batch)
    with (
        _quiet(),
        known_grid(model, (), inputs),
        torch._dynamo.config.patch(
            capture_dynamic_output_shape_ops=entry.sizes_from_data, capture_scalar_outputs=entry.sizes_from_data
        ),
    ):
        return _with_all_text(explain(model, **inputs, options=options), entry)


def _with_all_text(report: Report, entry: Entry) -> Report:
    """With the tokens that a call has at most, where padding is dropped when the graph runs."""

    def counted(site: Site) -> Site:
        if site.queries or site.grid is None:
            return site
        tokens = math.prod(site.grid) + entry.text
        return dataclasses.replace(site, queries=tokens, keys=tokens, text=entry.text)

    return dataclasses.replace(report, sites=tuple(map(counted, report.sites)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch does not warn of how fast or precise the model's own operations would be: nothing is computed."""
    with warnings.catch_warnings():
        for message in ("Mismatch dtype between input and weight", "In CPU autocast, but the target dtype"):
            warnings.filterwarnings("ignore", message=message)
        yield
