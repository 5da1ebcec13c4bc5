"""`accelerate`: a diffusers pipeline that samples by a preset, and is otherwise the pipeline it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule

from jenga_compile.errors import AcceleratedAlready, ExtraMissing, NoRunYet, NotAPipeline, SizeNotDivisible, StagesUnfit
from jenga_compile.kernels.knobs import Knobs
from jenga_compile.presets import Preset
from jenga_compile.sampler.dressing import dressed, put_on, take_off
from jenga_compile.sampler.families import FAMILIES, Family, starts_from_pixels
from jenga_compile.sampler.log import pixels_per_latent
from jenga_compile.sampler.noise import check_order, prediction_of
from jenga_compile.sampler.run_report import RunReport
from jenga_compile.sampler.runner import Runner
from jenga_compile.sampler.session import Session
from jenga_compile.sampler.settings import Settings, read_settings

_TRANSFORMERS = ("transformer", "transformer_2")
"""Components of a pipeline that are its denoisers; Wan 2.2 has two."""


def accelerate(pipe: Any, preset: str | Preset = "turbo", **overrides: Any) -> Accelerated:
    """Let a diffusers pipeline sample by a preset: fewer blocks, smaller stages, skipped steps, nothing trained.

    The pipeline is called as before, with the same arguments. Use the result in a `with` statement, or call `remove()`
    on it; the pipeline is then what it was. `report()` tells of the last run.

    Args:
        pipe: any text-to-video pipeline of diffusers with a transformer; of those that start from images or videos,
            all but `stages`.
        preset: its name (`jenga_compile.presets.PRESETS`), or a `Preset`.
        stages: a tuple of `Stage`; None: full size in every step.
        carving: a `Carving` for all stages; None: dense attention.
        skip: "static" (the paper's list), "adaptive", a `Listed` or an `Adaptive`; None: every step is computed.
        amplifier: the paper's rho; 0.0: none.
        resize: "trilinear" (default) or "area".
        parity: take sigma where the authors' code takes it, to compare with it.
        dynamic, fullgraph: as in `torch.compile`.
        **overrides: beside these switches, options of the backend (`keep`, `cutoff`, `kernel`, `mode`, `inner`, ...).

    Raises:
        UnknownPreset, UnknownSwitch, OptionOutOfRange, OptionOfWrongType, OptionsAtOdds: the arguments are not so.
        NotAPipeline, AcceleratedAlready: `pipe` is no pipeline of a transformer, or is accelerated.
        StagesUnfit, SchedulerUnfit: the stages cannot be used with this pipeline, or with its scheduler.
    """
    settings = read_settings(preset, overrides)
    _check_pipeline(pipe)
    return Accelerated(pipe, settings)


class Accelerated:
    """A pipeline while it is accelerated; what `accelerate` returns."""

    def __init__(self, pipe: Any, settings: Settings) -> None:
        self.pipe = pipe
        self._plain = type(pipe)
        self._family = _family(pipe)
        pixels = starts_from_pixels(self._plain)
        if pixels and self._family is not None:
            settings = settings.for_family(self._family.from_image)
        self._idle_amplifier = settings.amplifies and self._family is not None and self._family.text is None
        if self._idle_amplifier:
            settings = dataclasses.replace(settings, preset=dataclasses.replace(settings.preset, amplifier=0.0))
        self.settings = settings
        self._check_switches(pixels)
        self._knobs = Knobs(metered=True)
        self._runners: dict[int, Runner] = {}
        self._last: RunReport | None = None
        self._running = False

        @functools.wraps(self._plain.__call__)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            if pipe is not self.pipe:  # a copy, which has the class with the rest
                return self._plain.__call__(pipe, *args, **kwargs)
            return self._run(args, kwargs)

        put_on(pipe, __call__=call, _jenga_preset=settings.preset.name)
        self._dress = type(pipe)

    def remove(self) -> None:
        """Make the pipeline what it was; does nothing if that was done."""
        if type(self.pipe) is self._dress:
            take_off(self.pipe, self._plain)
        self._runners.clear()

    def report(self) -> RunReport:
        """The last run of this pipeline.

        Raises:
            NoRunYet: there was none.
        """
        if self._last is None:
            raise NoRunYet(what=f"this {self._plain.__name__}")
        return self._last

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call: Callable[..., Any] = self._plain.__call__
        if self._running:
            return call(self.pipe, *args, **kwargs)
        given = inspect.signature(call).bind(self.pipe, *args, **kwargs).arguments
        self._family = _family(self.pipe)
        self._check_switches(starts_from_pixels(self._plain))
        self._check_sizes(given)
        runners = {name: self._runner(name) for name in _TRANSFORMERS if getattr(self.pipe, name, None) is not None}
        self._runners = {id(runner.given): runner for runner in runners.values()}
        session = Session(self.pipe, self.settings, self._family, self._knobs, given.get("generator"))
        if self._idle_amplifier:
            session.log.note("the amplifier does nothing: the model has no text in its self-attention")
        self._running = True
        try:
            with self._dressed(session, runners):
                return call(self.pipe, *args, **kwargs)
        finally:
            self._running = False
            for runner in runners.values():
                runner.forget()
            self._note(session, list(runners.values()))

    def _note(self, session: Session, runners: list[Runner]) -> None:
        title = f"{self._plain.__name__}, preset {self.settings.preset.name}"
        global _last
        _last = self._last = session.log.report(title, self.settings, len(session.slots), runners)

    def _runner(self, name: str) -> Runner:
        model = getattr(self.pipe, name)
        runner = self._runners.get(id(model))
        if runner is None or runner.given is not model:
            runner = self._runners[id(model)] = Runner(name, model, self.settings, self._knobs)
        runner.prepare()
        return runner

    @contextlib.contextmanager
    def _dressed(self, session: Session, runners: dict[str, Runner]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_dressed_scheduler(self.pipe.scheduler, session))
            for runner in {id(runner): runner for runner in runners.values()}.values():
                stack.enter_context(_dressed_transformer(runner, session))
            yield

    def _check_switches(self, pixels: list[str]) -> None:
        preset, scheduler = self.settings.preset, self.pipe.scheduler
        if preset.skip is not None:
            check_order(scheduler, "skip")
        if not preset.resizes:
            return
        name = self._plain.__name__
        if pixels:
            why = f"its call takes {' and '.join(pixels)}, and latents of another size cannot be mixed with that"
            raise StagesUnfit(pipeline=name, why=why)
        if self._family is None:
            why = f"nothing is known of how a call of {type(_plain_model(self.pipe)).__name__} shows its size"
            raise StagesUnfit(pipeline=name, why=why)
        check_order(scheduler, "stages")
        prediction_of(scheduler)

    def _check_sizes(self, given: dict[str, Any]) -> None:
        """Refuse a size that is not whole tokens before anything is computed."""
        if self._family is None:
            return
        patch = self._family.patch(_plain_model(self.pipe).config)
        for name, latents in (("height", patch[1]), ("width", patch[2])):
            unit, size = pixels_per_latent(self.pipe) * latents, given.get(name)
            if isinstance(size, int) and (size < unit or size % unit):
                near = max(unit, round(size / unit) * unit)
                raise SizeNotDivisible(name=name, size=size, patch=unit, near=near)


_last: RunReport | None = None


def report() -> RunReport:
    """The last run of any accelerated pipeline in this process.

    Raises:
        NoRunYet: there was none.
    """
    if _last is None:
        raise NoRunYet(what="any accelerated pipeline")
    return _last


def _check_pipeline(pipe: Any) -> None:
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as missing:
        raise ExtraMissing(module=missing.name, extra="diffusers") from missing
    whole = isinstance(pipe, DiffusionPipeline) and hasattr(pipe, "scheduler")
    if not whole or not isinstance(_plain_model(pipe), torch.nn.Module):
        raise NotAPipeline(value=repr(pipe)[:80], found=type(pipe).__name__)
    if hasattr(type(pipe), "_jenga_preset"):
        raise AcceleratedAlready(pipeline=type(pipe).__name__, preset=pipe._jenga_preset)


def _plain_model(pipe: Any) -> Any:
    """The first transformer of the pipeline, without what compiles it."""
    for name in _TRANSFORMERS:
        model = getattr(pipe, name, None)
        if model is not None:
            return model._orig_mod if isinstance(model, OptimizedModule) else model
    return None


def _family(pipe: Any) -> Family | None:
    return FAMILIES.get(type(_plain_model(pipe)).__name__)


@contextlib.contextmanager
def _dressed_scheduler(scheduler: Any, session: Session) -> Iterator[None]:
    plain = type(scheduler)

    @functools.wraps(plain.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        if self is scheduler:
            session.set_timesteps(plain, self, args, kwargs)
        else:  # a copy, which has the class with the rest
            plain.set_timesteps(self, *args, **kwargs)

    @functools.wraps(plain.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return session.step(plain, self, args, kwargs) if self is scheduler else plain.step(self, *args, **kwargs)

    with dressed(scheduler, set_timesteps=set_timesteps, step=step):
        yield


@contextlib.contextmanager
def _dressed_transformer(runner: Runner, session: Session) -> Iterator[None]:
    plain, model = type(runner.given), type(runner.model)

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return session.call(runner, plain, args, kwargs)

    @contextlib.contextmanager
    def cache_context(self: Any, name: str, **about: Any) -> Iterator[None]:
        session.branch = name
        try:
            with model.cache_context(runner.model, name, **about):  # type: ignore[attr-defined]
                yield
        finally:
            session.branch = ""

    methods: dict[str, Callable[..., Any]] = {"__call__": call}
    if hasattr(runner.model, "cache_context"):
        methods["cache_context"] = cache_context
    with dressed(runner.given, **methods):
        yield
