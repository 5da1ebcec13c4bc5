"""`plan`: the table of a run before there is one, for a named model; no weights, no GPU.

Operations are those of the model's own `forward` on tensors without data. How much of the attention carving leaves is
read off the graph of one block of each kind, since blocks of a kind are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch

from jenga_compile.config import Carving
from jenga_compile.cost import expected_keep
from jenga_compile.errors import CallUnreadable, OutOfRange, StagesUnfit
from jenga_compile.explanation import explain
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.models.catalogue import find_model
from jenga_compile.models.entry import Entry
from jenga_compile.presets import Preset, Slot
from jenga_compile.sampler import trunk
from jenga_compile.sampler.families import FAMILIES
from jenga_compile.sampler.flops import Operations, operations
from jenga_compile.sampler.run_report import RunReport, StepReport
from jenga_compile.sampler.settings import Settings, read_settings
from jenga_compile.sites import Report, Site

RATES = {"H100": (675e12, 650e12)}
"""Operations a second in bf16, sustained: of matrix products, and of attention on the pairs that it sees
(benchmarks/results/kernels.json)."""


def plan(
    preset: str | Preset = "turbo",
    steps: int = 50,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    model: str = "hunyuan-video",
    *,
    batch: int = 1,
    gpu: str | None = None,
    **overrides: Any,
) -> RunReport:
    """What `accelerate` would do with a known model, step by step: print it.

    Args:
        preset: as in `accelerate`, as are `overrides`.
        steps: denoising steps.
        size: height and width in pixels; the model's own by default, as are `frames`.
        model: a name from `jenga explain --list`.
        batch: samples a call; 2 where guidance doubles the batch, or calls the model twice a step.
        gpu: "H100" for an estimate of the time; by default the one of this machine, if it is known.

    Returns:
        A table of its steps, with no time unless the GPU is known. Steps that an adaptive run decides on count as
        computed.

    Raises:
        UnknownModel, UnknownPreset, UnknownSwitch, OptionOutOfRange: as they say.
        SizeNotDivisible, FramesDoNotFit: the model does not take that video.
        StepsTooFew, StagesUnfit: the preset does not fit the steps, or the model.
        ExtraMissing: diffusers is not installed.
    """
    if steps < 1:
        raise OutOfRange(name="steps", value=steps, expected="[1, inf)", way_out="There is at least one.")
    if gpu is not None and gpu not in RATES:
        raise OutOfRange(name="gpu", value=gpu, expected=str(tuple(RATES)), way_out="Leave it out for no estimate.")
    entry = find_model(model)
    settings = read_settings(preset, overrides)
    family = FAMILIES.get(entry.transformer)
    if entry.from_image and family is not None:
        settings = settings.for_family(family.from_image)
    _check_stages(entry, settings)
    pixels, count = size or entry.size, frames if frames is not None else entry.frames
    slots = settings.preset.slots(steps)
    costs = [_Cost.of(entry, settings, stage, pixels, count, batch) for stage in range(len(settings.preset.stages))]
    whole = costs[-1]
    rates = RATES.get(gpu or _this_gpu())
    sigmas = _sigmas(entry, settings.preset, slots)
    reports = []
    for slot in slots:
        cost = costs[slot.stage]
        linear, attention = cost.carved if slot.computed is not False else cost.skipped
        reports.append(
            StepReport(
                index=slot.step,
                stage=slot.stage + 1,
                sigma=sigmas[slot.step],
                timestep=None,
                grid=cost.grid,
                pixels=cost.pixels,
                computed=slot.computed is not False,
                density=cost.density if slot.computed is not False else None,
                seconds=None if rates is None else linear / rates[0] + attention / rates[1],
                flops=linear + attention,
                dense_flops=whole.dense.total,
            )
        )
    height, width = pixels
    return RunReport(
        title=f"{entry.name}, {count} frames of {height}x{width}, preset {settings.preset.name}",
        steps=tuple(reports),
        planned=steps,
        notes=_notes(settings, slots),
        gpu=None if rates is None else gpu or _this_gpu(),
    )


@dataclasses.dataclass(frozen=True)
class _Cost:
    """Operations of a call at one stage: of linear layers, and of attention."""

    grid: TokenGrid
    pixels: tuple[int, int]
    dense: Operations
    carved: tuple[float, float]
    skipped: tuple[float, float]
    density: float | None

    @classmethod
    def of(cls, entry: Entry, settings: Settings, stage: int, size: tuple[int, int], frames: int, batch: int) -> _Cost:
        chosen = settings.preset.stages[stage]
        pixels = size if chosen.scale == 1.0 else entry.scaled(*size, chosen.scale)
        grid = entry.sizes(*pixels, frames).grid
        call = entry.inputs(*pixels, frames, batch=batch)
        model = entry.build()
        dense = _counted(entry, model, call)
        twins = trunk.make_twins(model)
        skipped = (0.0, 0.0)
        if twins is not None and settings.preset.skip is not None:
            with torch.no_grad():
                twins.recorded(**call)  # on `meta`, for the residual's shape
            reused = _counted(entry, twins.reused, call)
            skipped = (reused.linear, reused.attention)
        share, density = _share(entry, settings, chosen.carving, (*pixels, frames), batch)
        return cls(grid, pixels, dense, (dense.linear, share * dense.attention), skipped, density)


def _counted(entry: Entry, model: torch.nn.Module, call: Mapping[str, Any]) -> Operations:
    counted = operations(model, call)
    if counted is None:
        why = "its operations cannot be counted without data"
        raise CallUnreadable(transformer=entry.transformer, why=why)
    return counted


def _share(
    entry: Entry, settings: Settings, carving: Carving, sizes: tuple[int, int, int], batch: int
) -> tuple[float, float | None]:
    """What carving leaves of the attention's operations, and the expected density; from one block of each kind."""
    if not settings.carved:
        return 1.0, None
    given = {} if entry.grid_unseen is None else {"grid": entry.sizes(*sizes).grid.shape, "text": entry.grid_unseen}
    model, inputs = entry.build_hollow(1), entry.hollow_inputs(*sizes, batch=batch)
    report: Report = explain(model, **inputs, options={**given, **settings.options})
    dense = sum(site.dense_flops for site in report.sites)
    carved = [site for site in report.sites if site.decision == "carved" and site.grid is not None]
    saved = sum(site.dense_flops - site.flops_at(_expected(site, carving)) for site in carved)
    if not dense or not carved:
        return 1.0, None
    first = carved[0]
    video = (first.video or (0, 0))[1] - (first.video or (0, 0))[0]
    density = (_expected(first, carving) * video + first.keys - video) / first.keys
    return 1 - saved / dense, density


def _expected(site: Site, carving: Carving) -> float:
    assert site.grid is not None
    return expected_keep(TokenGrid(*site.grid), cast(CurveKind, site.curve), carving)


def _check_stages(entry: Entry, settings: Settings) -> None:
    if not settings.preset.resizes:
        return
    if entry.from_image:
        why = "its video starts from an image, and latents of another size cannot be mixed with that"
        raise StagesUnfit(pipeline=entry.name, why=why)
    if entry.transformer not in FAMILIES:
        why = f"nothing is known of how a call of {entry.transformer} shows its size"
        raise StagesUnfit(pipeline=entry.name, why=why)


def _sigmas(entry: Entry, preset: Preset, slots: tuple[Slot, ...]) -> list[float | None]:
    """Of a flow schedule with the model's shift, of u = 1 - i / steps: s u / (1 + (s - 1) u)."""
    if entry.shift is None:
        return [None] * len(slots)
    sigmas: list[float | None] = []
    for slot in slots:
        u, shift = 1 - slot.step / len(slots), entry.shift + preset.stages[slot.stage].shift
        sigmas.append(shift * u / (1 + (shift - 1) * u))
    return sigmas


def _notes(settings: Settings, slots: tuple[Slot, ...]) -> tuple[str, ...]:
    notes = []
    if any(slot.computed is None for slot in slots):
        notes.append("an adaptive run decides on skipping as it goes: all its steps count as computed here")
    if settings.carved:
        notes.append("density is what is expected of keep and of blocks that touch; the cutoff can only add to it")
    return tuple(notes)


def _this_gpu() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((known for known in RATES if known in name), "")
