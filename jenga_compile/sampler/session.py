"""One run of a pipeline: where it stands, and what its scheduler and its transformers do in each step.

    set_timesteps   the number of steps is known: the plan, and the stages' schedules put together
    call            the first one shows the size of the latents; each is cropped to the stage, run or skipped, padded
    step            cropped, stepped and padded; at a stage's end noised anew at the next stage's size

All state of a run is here, so a run that is aborted leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from jenga_compile.errors import StageTooSmall
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels.knobs import Knobs
from jenga_compile.presets import Adaptive, Slot
from jenga_compile.sampler.adaptive import Change
from jenga_compile.sampler.corner import Corner, noise_like, resize
from jenga_compile.sampler.families import Family, whole_frame
from jenga_compile.sampler.log import Log
from jenga_compile.sampler.noise import Level, Prediction, levels_of, prediction_of, shift_ratio, shift_schedule
from jenga_compile.sampler.runner import Runner, first_tensor, with_first
from jenga_compile.sampler.settings import Settings
from jenga_compile.scalars import fitted
from jenga_compile.token_context import token_grid

_PLACE = frozenset({"_step_index", "_begin_index", "timesteps", "sigmas", "num_inference_steps"})
"""What says where a scheduler stands; everything else that its steps change is what it has gathered over them."""


class Session:
    """Everything that a run knows."""

    def __init__(
        self,
        pipe: Any,
        settings: Settings,
        family: Family | None,
        knobs: Knobs,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        self.settings, self.branch = settings, ""
        self._pipe, self._family, self._knobs, self._generator = pipe, family, knobs, generator
        self.log = Log(pipe)
        self.slots: tuple[Slot, ...] = ()
        self._levels: list[Level] = []
        self._prediction: Prediction = "flow"
        self._mu: float | None = None
        self._gathered: dict[str, Any] = {}
        self._position = 0
        self._corners: tuple[Corner, ...] = ()
        self._grids: tuple[TokenGrid, ...] = ()
        self._patch = (1, 1, 1)
        self._change: Change | None = None
        self._computes: bool | None = None
        """Whether the transformer runs in this step; None before its first call."""
        self._calls = 0
        self._runners: list[Runner] = []

    # The scheduler.

    def set_timesteps(self, plain: type, scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises StepsTooFew before any step."""
        plain.set_timesteps(scheduler, *args, **kwargs)  # type: ignore[attr-defined]
        given = inspect.signature(plain.set_timesteps).bind(scheduler, *args, **kwargs).arguments  # type: ignore[attr-defined]
        self._mu = given.get("mu")
        self.slots = self.settings.preset.slots(len(scheduler.timesteps))
        if self.settings.preset.resizes:
            self._prediction = prediction_of(scheduler)
            shifts = [self.settings.preset.stages[slot.stage].shift for slot in self.slots]
            if not shift_schedule(scheduler, shifts, self._mu):
                self.log.note(f"the stages' shifts play no part: {type(scheduler).__name__} has a schedule of its own")
        self._levels = levels_of(scheduler) if _mixes_as_known(scheduler) else []
        self._gathered = {name: _kept(value) for name, value in vars(scheduler).items() if name not in _PLACE}
        self._position, self._corners = 0, ()

    def step(self, plain: type, scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = inspect.signature(plain.step).bind(scheduler, *args, **kwargs)  # type: ignore[attr-defined]
        if self._position >= len(self.slots):
            return plain.step(*bound.args, **bound.kwargs)  # type: ignore[attr-defined]
        slot, values = self.slots[self._position], bound.arguments
        corner = self._corners[slot.stage] if self._corners else None
        if corner is not None and self.settings.preset.resizes:
            for name in ("sample", "model_output", "old_pred_original_sample"):
                if isinstance(values.get(name), Tensor):
                    values[name] = corner.crop(values[name])
            if slot.resized and "old_pred_original_sample" in values:
                values["old_pred_original_sample"] = None
        timestep, device = values.get("timestep"), values["sample"].device
        out = plain.step(*bound.args, **bound.kwargs)  # type: ignore[attr-defined]
        if corner is not None:
            following = self._corners[min(slot.stage + 1, len(self._corners) - 1)]
            if slot.ends and following.part != corner.part:
                noised = self._switch(values["sample"], values["model_output"], scheduler, slot, corner, following)
                out = _padded(out, corner, first=following.pad(noised))
            elif not corner.whole:
                out = _padded(out, corner)
        self._finish(slot, timestep, device)
        return out

    def _switch(self, x: Tensor, v: Tensor, scheduler: Any, slot: Slot, source: Corner, target: Corner) -> Tensor:
        """Latents of the next stage: foreseen clean, resized, and with the noise of the next step (paper, Eq. 4)."""
        now, after = self._levels[slot.step], self._levels[slot.step + 1]
        if self.settings.parity and self._prediction == "flow" and self._family is not None:
            before, next_one = (self.settings.preset.stages[stage].shift for stage in (slot.stage, slot.stage + 1))
            if self._family.mismatch == "x0":
                now = now.shifted(shift_ratio(scheduler, self._mu, before, next_one))
            else:
                after = after.shifted(shift_ratio(scheduler, self._mu, next_one, before))
        clean = resize(now.x0(x, v, self._prediction), source, target, self.settings.resize)
        for name, value in self._gathered.items():
            setattr(scheduler, name, _kept(value))
        return after.noised(clean, noise_like(clean, self._generator))

    def _finish(self, slot: Slot, timestep: Any, device: torch.device) -> None:
        sigma = self._levels[slot.step].sigma if self._levels else None
        corner = self._corners[slot.stage] if self._corners else None
        grid = self._grids[slot.stage] if self._grids else None
        self.log.step(slot, sigma, timestep, corner, grid, computed=self._computes is not False, device=device)
        if self.settings.compiles:
            self.log.density(self._knobs.read_meter())
        self._position += 1
        self._computes, self._calls = None, 0

    # The transformers.

    def call(self, runner: Runner, plain: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        signature = inspect.signature(type(runner.model).forward)
        given = dict(signature.bind(runner.model, *args, **kwargs).arguments)
        given.pop(next(iter(signature.parameters)))
        whole = given
        if runner not in self._runners:
            self._runners.append(runner)
        if self._position >= len(self.slots):
            return runner.compute(whole, "outside", plain)
        slot = self.slots[self._position]
        if not self._corners:
            self._learn(runner, whole)
        self.log.begin(whole["hidden_states"].device)
        if slot.starts and self._computes is None:
            self._enter(slot)
        call = self._narrowed(whole, slot.stage)
        branch = self.branch or self._calls
        self._calls += 1
        out = self._predict(runner, call, branch, plain, slot)
        self.log.call(runner, whole, call, computed=bool(self._computes))
        corner = self._corners[slot.stage] if self._corners else None
        return out if corner is None or corner.whole else with_first(out, corner.pad(first_tensor(out)))

    def _predict(self, runner: Runner, call: Mapping[str, Any], branch: Hashable, plain: type, slot: Slot) -> Any:
        first = self._computes is None
        if first:
            self._computes = self._decide(call["hidden_states"], slot)
        if not runner.has_residual(branch):
            self._computes = True
        with self._told(slot.stage):
            if not self._computes:
                return runner.reuse(call, branch)
            out = runner.compute(call, branch, plain)
        if self._change is not None and first:
            self._change.computed(call["hidden_states"], first_tensor(out))
        return out

    def _decide(self, latents: Tensor, slot: Slot) -> bool:
        if self._change is not None:
            small = self._change.is_small(latents)
            return slot.resized or not small
        return slot.computed is not False

    def _told(self, stage: int) -> Any:
        """The grid, told to blocks that are compiled one by one."""
        if not self._grids or self._family is None:
            return contextlib.nullcontext()
        return token_grid(*self._grids[stage].shape, text=self._family.text)

    def _learn(self, runner: Runner, call: Mapping[str, Any]) -> None:
        """The size of the latents, and with it that of every stage.

        Raises:
            StageTooSmall, CallUnreadable: a stage would have no token, or the call shows no size.
        """
        if self._family is None:
            return
        self._patch = self._family.patch(runner.model.config)
        full, grid = whole_frame(self._family, call, self._patch)
        corners, grids = [], []
        for number, stage in enumerate(self.settings.preset.stages, start=1):
            rows, columns = (fitted(side, stage.scale) for side in (grid.h, grid.w))
            if not rows or not columns:
                raise StageTooSmall(stage=number, scale=stage.scale, rows=grid.h, columns=grid.w)
            part = full.full if stage.scale == 1.0 else (rows * self._patch[1], columns * self._patch[2])
            corners.append(Corner(full.layout, full.frames, full.full, part))
            grids.append(TokenGrid(grid.t, rows, columns))
        self._corners, self._grids = tuple(corners), tuple(grids)

    def _enter(self, slot: Slot) -> None:
        """A stage begins: its sparsity and the amplifier are set, and nothing of another resolution is reused."""
        tokens = [grid.h * grid.w for grid in self._grids] or [1] * (slot.stage + 1)
        keep, cutoff, bias = self.settings.knobs(slot.stage, tokens[slot.stage], tokens[-1])
        self._knobs.keep, self._knobs.cutoff, self._knobs.text_bias = keep, cutoff, bias
        if not slot.resized:
            return
        for runner in self._runners:
            runner.forget()
        skip = self.settings.preset.skip
        self._change = Change(skip.threshold) if isinstance(skip, Adaptive) else None

    def _narrowed(self, call: dict[str, Any], stage: int) -> dict[str, Any]:
        if not self._corners or self._corners[stage].whole or self._family is None:
            return call
        corner = self._corners[stage]
        more = self._family.narrow(self._pipe, call, corner, self._patch[1:])
        return {**call, "hidden_states": corner.crop(call["hidden_states"]), **more}


def _kept(value: Any) -> Any:
    """Lists are filled in place as steps are done; everything else that changes is replaced."""
    return list(value) if isinstance(value, list) else value


def _mixes_as_known(scheduler: Any) -> bool:
    try:
        prediction_of(scheduler)
    except ValueError:
        return False
    return True


def _padded(out: Any, corner: Corner, first: Tensor | None = None) -> Any:
    """A scheduler's output with every small tensor padded, the first one replaced by `first` if that is given."""

    def changed(place: int, x: Any) -> Any:
        if place == 0 and first is not None:
            return first
        return corner.pad(x) if corner.is_small(x) else x

    if isinstance(out, tuple):
        return tuple(changed(place, x) for place, x in enumerate(out))
    return type(out)(**{name: changed(place, x) for place, (name, x) in enumerate(dict(out).items())})
