"""`jenga generate`: one prompt, one video, what was carved to make it, and how close it is to the dense one."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jenga_compile.backend import jenga
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
from jenga_compile.sites import Report

if TYPE_CHECKING:
    from jenga_compile.zoo.pipeline import ToyVideoPipeline


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
    keep: float = 0.3
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
        Carving(keep=self.keep)
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
    pace: float | None
    """Seconds a denoising step, without the first, which compiles; None if it was the only one."""
    report: Report


def generate(request: Request) -> str:
    """Make the video, write its files, and return the report as text."""
    pipe = _pipeline(_device(request.device))
    pipe.check_inputs([request.prompt], size=request.size)
    runs = {"dense": _sample(pipe, request, carved=False)} if request.dense or request.compare else {}
    if not request.dense:
        runs["carved"] = _sample(pipe, request, carved=True)
    run = runs["dense" if request.dense else "carved"]
    _write(request, run, runs.get("dense"))
    lines = [f"wrote {request.output}: {_describe(run.frames, request)}"]
    if request.compare:
        lines += _compare(request, run, runs["dense"])
    elif run.pace is not None:
        lines.append(f"{run.pace:.2f} s a step, after the first")
    if not request.dense:
        lines += ["", str(run.report)]
    if not request.dense and run.report.carved == 0:
        lines.append("nothing was carved, for the reasons above: this is the dense video")
    return "\n".join(lines)


def _write(request: Request, run: Run, dense: Run | None) -> None:
    with all_or_none(request.files) as (output, *beside):
        encode(output, run.frames, fps=request.fps, scale=request.scale)
        if request.compare and dense is not None:
            encode(beside[0], dense.frames, fps=request.fps, scale=request.scale)
            rows = [frames.repeat(2, axis=1).repeat(2, axis=2) for frames in (dense.frames, run.frames)]
            write_image(beside[1], contact_sheet(rows))


def _compare(request: Request, carved: Run, dense: Run) -> list[str]:
    _, beside, sheet = request.files
    lines = [f"wrote {beside}: the same seed, dense attention", f"wrote {sheet}: dense above, carved below"]
    if carved.pace and dense.pace:
        ratio = dense.pace / carved.pace
        lines.append(
            f"{carved.pace:.2f} s a step carved, {dense.pace:.2f} s dense ({ratio:.2f}x), after the first step"
        )
    return [*lines, f"PSNR of carved against dense: {psnr(carved.frames, dense.frames):.1f} dB"]


def _sample(pipe: ToyVideoPipeline, request: Request, *, carved: bool) -> Run:
    reports: list[Report] = []
    plain = pipe.transformer
    if carved:
        options: dict[str, Any] = {"keep": request.keep, "on_report": reports.append, "inner": _inner(plain.device)}
        pipe.transformer = torch.compile(plain, backend=jenga, options=options, dynamic=False)
    pipe.set_progress_bar_config(desc="carved" if carved else "dense", leave=False)
    clock = _Clock()
    try:
        frames = pipe(
            request.prompt,
            height=request.size,
            width=request.size,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            callback_on_step_end=clock,
        ).frames[0]
    finally:
        pipe.transformer = plain
    return Run(frames.numpy(), clock.pace(), sum(reports, Report()))


class _Clock:
    """Times the steps after the first, which is where compilation happens."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if tensors["latents"].is_cuda:
            torch.cuda.synchronize()
        self._marks.append(time.perf_counter())
        return {}

    def pace(self) -> float | None:
        """Mean seconds a step; None if no step came after the first."""
        laps = len(self._marks) - 1
        return (self._marks[-1] - self._marks[0]) / laps if laps else None


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
