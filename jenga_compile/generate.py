"""`jenga generate`: one prompt, one video, what was carved to make it, and how close it is to the dense one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jenga_compile.config import Carving
from jenga_compile.errors import (
    DeviceUnavailable,
    ExtraMissing,
    OptionsAtOdds,
    OutOfRange,
    PromptEmpty,
)
from jenga_compile.files import all_or_none
from jenga_compile.media import Frames, check_output, contact_sheet, encode, psnr, write_image
from jenga_compile.presets import Preset, Stage, find_preset
from jenga_compile.sampler import accelerate
from jenga_compile.sampler.run_report import RunReport
from jenga_compile.sites import amount

if TYPE_CHECKING:
    from jenga_compile.zoo.pipeline import ToyVideoPipeline


SKIPPING = ("static", "adaptive", "none")

MOST_PIXELS = 2048
"""Side of the largest file written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to make. Checked at birth, before any work."""

    prompt: str
    output: Path
    seed: int = 0
    steps: int = 24
    size: int = 64
    """Height and width in pixels."""
    guidance: float = 3.0
    keep: float | None = None
    """Least share of the video blocks, in every stage; the preset's own by default, 0.3 without one."""
    preset: str | None = None
    skip: str | None = None
    """How steps are skipped, "static", "adaptive" or "none"; as the preset does by default."""
    dense: bool = False
    compare: bool = False
    """Also make the dense video at the same seed."""
    scale: int = 4
    """Side of a pixel in the written file."""
    fps: int = 12
    device: str = "auto"

    def __post_init__(self) -> None:
        for path in self.files:
            check_output(path)
        Carving(keep=0.3 if self.keep is None else self.keep)
        self._check_preset()
        for name, low, high in (("steps", 1, 1000), ("size", 32, 256), ("scale", 1, 32), ("fps", 1, 120)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise OutOfRange(name=name, value=value, expected=f"[{low}, {high}]", way_out="Stay within.")
        if not 0 <= self.guidance <= 100:
            raise OutOfRange(
                name="guidance", value=self.guidance, expected="[0, 100]", way_out="Try 3; 1 switches it off."
            )
        if self.size * self.scale > MOST_PIXELS:
            way_out = f"Use at most {MOST_PIXELS // self.size} at this size."
            raise OutOfRange(name="scale", value=self.scale, expected=f"{MOST_PIXELS} pixels a side", way_out=way_out)
        if self.output.suffix.lower() == ".gif" and self.fps > 50:
            raise OutOfRange(name="fps", value=self.fps, expected="[1, 50] for a .gif", way_out="Write an .mp4.")
        if not self.prompt.strip():
            raise PromptEmpty(prompts=[self.prompt])
        if not 0 <= self.seed < 2**63:
            raise OutOfRange(name="seed", value=self.seed, expected="[0, 2**63)", way_out="Seeds are not negative.")
        if self.dense and self.compare:
            raise OptionsAtOdds(
                name="compare", value=True, beside="beside --dense", way_out="Drop --dense: --compare makes both."
            )

    def _check_preset(self) -> None:
        if self.preset is not None:
            find_preset(self.preset).slots(self.steps)
        for name in ("preset", "keep"):
            if self.dense and getattr(self, name) is not None:
                way_out = f"Drop one of them; --{name} --compare makes both videos."
                raise OptionsAtOdds(name=name, value=getattr(self, name), beside="beside --dense", way_out=way_out)
        if self.skip is not None and self.preset is None:
            way_out = "Add --preset turbo."
            raise OptionsAtOdds(name="skip", value=self.skip, beside="without --preset", way_out=way_out)
        if self.skip not in (None, *SKIPPING):
            raise OutOfRange(name="skip", value=self.skip, expected=str(SKIPPING), way_out="Pick one of them.")

    @property
    def files(self) -> list[Path]:
        """What will be written: the video, and with `compare` also the dense one and the two side by side."""
        if not self.compare:
            return [self.output]
        dense = self.output.with_name(f"{self.output.stem}.dense{self.output.suffix}")
        return [self.output, dense, self.output.with_name(f"{self.output.stem}.compare.png")]


@dataclasses.dataclass(frozen=True)
class Run:
    """One video and what it took."""

    frames: Frames
    report: RunReport


CARVED = Preset(name="carved", stages=(Stage(carving=Carving()),), skip=None, amplifier=0.0)
"""What is made where no preset is named: every step at full size, with attention carved."""


def generate(request: Request) -> str:
    """Make the video, write its files, and return the report as text."""
    pipe = _pipeline(_device(request.device))
    pipe.check_inputs([request.prompt], size=request.size)
    dense = _sample(pipe, request, carved=False) if request.dense or request.compare else None
    run = _sample(pipe, request, carved=True) if not request.dense else dense
    assert run is not None
    _write(request, run, dense)
    lines = [f"wrote {request.output}: {_describe(run.frames, request)}"]
    if request.compare and dense is not None:
        lines += _compare(request, run, dense)
    elif request.preset is None and request.steps > 1:
        lines.append(f"{_pace(run, request):.2f} s a step, once compiled")
    if request.preset is not None:
        lines += ["", str(run.report)]
    elif not request.dense:
        lines += ["", str(run.report.sites)]
    if not request.dense and run.report.sites.carved == 0:
        lines.append("nothing was carved, for the reasons above: attention is dense")
    return "\n".join(lines)


def _write(request: Request, run: Run, dense: Run | None) -> None:
    with all_or_none(request.files) as (output, *beside):
        encode(output, run.frames, fps=request.fps, scale=request.scale)
        if request.compare and dense is not None:
            encode(beside[0], dense.frames, fps=request.fps, scale=request.scale)
            rows = [frames.repeat(2, axis=1).repeat(2, axis=2) for frames in (dense.frames, run.frames)]
            write_image(beside[1], contact_sheet(rows))


def _compare(request: Request, run: Run, dense: Run) -> list[str]:
    _, beside, sheet = request.files
    name = request.preset or CARVED.name
    lines = [
        f"wrote {beside}: the same seed, dense attention",
        f"wrote {sheet}: dense above, {name} below",
    ]
    if request.preset is not None:
        lines += _side_by_side(name, run.report, dense.report)
    elif request.steps > 1:
        quick, slow = _pace(run, request), _pace(dense, request)
        lines.append(f"{quick:.2f} s a step carved, {slow:.2f} s dense ({slow / quick:.2f}x), once compiled")
    return [*lines, f"PSNR of {name} against dense: {psnr(run.frames, dense.frames):.1f} dB"]


def _side_by_side(name: str, run: RunReport, dense: RunReport) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "seconds", "once compiled", "NFE", "FLOP")]
    for label, report in (("dense", dense), (name, run)):
        seconds = [f"{value:.1f}" if value is not None else "-" for value in (report.seconds, report.steady_seconds)]
        rows.append((label, *seconds, str(report.computed), amount(report.flops or 0)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if run.steady_seconds and dense.steady_seconds:
        lines.append(f"{dense.steady_seconds / run.steady_seconds:.2f}x as fast, once compiled")
    return lines


def _pace(run: Run, request: Request) -> float:
    """Seconds a step once all is compiled."""
    return (run.report.steady_seconds or 0.0) / request.steps


def _sample(pipe: ToyVideoPipeline, request: Request, *, carved: bool) -> Run:
    preset = find_preset(request.preset) if carved and request.preset is not None else CARVED
    options: dict[str, Any] = {} if carved else {"carving": None}
    if carved and request.keep is not None:
        options["keep"] = request.keep
    if carved and request.skip is not None:
        options["skip"] = None if request.skip == "none" else request.skip
    pipe.set_progress_bar_config(desc=preset.name if carved else "dense", leave=False)
    with accelerate(pipe, preset, inner=_inner(pipe.transformer.device), **options) as accelerated:
        frames = pipe(
            request.prompt,
            height=request.size,
            width=request.size,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
        ).frames[0]
        return Run(frames.numpy(), accelerated.report())


def _pipeline(device: torch.device) -> ToyVideoPipeline:
    try:
        from transformers.utils.logging import disable_progress_bar

        from jenga_compile.zoo.pipeline import ToyVideoPipeline
    except ModuleNotFoundError as missing:
        raise ExtraMissing(module=missing.name, extra="diffusers") from missing
    disable_progress_bar()
    return ToyVideoPipeline.packaged(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailable(device=name, why="not a device name", available=", ".join(available)) from error
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        return device
    if device.type != "cpu":
        raise DeviceUnavailable(device=name, why="this machine has none such", available=", ".join(available))
    return device


def _inner(device: torch.device) -> str:
    """On a CPU a short run is over before Inductor has compiled; on a GPU it pays at once."""
    return "inductor" if device.type == "cuda" else "eager"


def _describe(frames: Frames, request: Request) -> str:
    count, height, width, _ = frames.shape
    return f"{count} frames of {width}x{height}, {request.steps} steps, seed {request.seed}"
