"""One transformer in all the ways in which a run calls it: as it is, carved, noting its residual, without its trunk."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from jenga_compile.compilation import compile
from jenga_compile.errors import CacheInTheWay
from jenga_compile.kernels.knobs import Knobs
from jenga_compile.sampler import flops, trunk
from jenga_compile.sampler.dressing import undressed
from jenga_compile.sampler.settings import Settings
from jenga_compile.sites import Report

Call = Mapping[str, Any]

_RECOMPILES = {"recompile_limit": 64, "accumulated_recompile_limit": 4096}
"""Graphs that Dynamo allows one model, and one function that many models share: a few resolutions, each with and
without the trunk, and each length of the text, of every acceleration in this process."""

_PROVEN = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference by which a model without its trunk may miss the whole model's output on the residual that
goes with it, in which there is nothing but rounding; 0.05 in 16 bits."""


class Runner:
    """Lives as long as the acceleration, so that nothing is compiled twice; holds no residual between runs."""

    def __init__(self, name: str, given: nn.Module, settings: Settings, knobs: Knobs) -> None:
        self.name, self.given, self.settings, self._knobs = name, given, settings, knobs
        self.model: nn.Module = given._orig_mod if isinstance(given, OptimizedModule) else given
        self.sites = Report()
        """Attention of all graphs of the whole model."""
        self.why_output = ""
        """Why a skipped step reuses the model's output and not its trunk's residual; empty if it does not."""
        self._same = trunk.twin(self.model)
        """What is compiled for the model as it is: a call of that does not come back to the run."""
        self._twins = trunk.make_twins(self.model) if settings.preset.skip is not None else None
        self._proven = False
        self._kept: dict[Hashable, Any] = {}
        """Of each branch, the residual; or all that the model returned."""
        self._hollow: dict[torch.Size, Tensor] = {}
        """A residual without data for latents of each size."""
        self._callables: dict[str, Callable[..., Any]] = {}
        if settings.preset.skip is not None and self._twins is None:
            self.why_output = f"the blocks of a {type(self.model).__name__} are not known"

    def prepare(self) -> None:
        """Before a run.

        Raises:
            CacheInTheWay: a cache of diffusers skips blocks of its own.
        """
        settings = self.settings
        if getattr(self.model, "is_cache_enabled", False) and (settings.compiles or settings.preset.skip is not None):
            raise CacheInTheWay(module=self.name, cache=type(self.model._cache_config).__name__)
        if self._twins is not None:
            trunk.refresh(self._twins, self.model)

    def forget(self) -> None:
        """Drop all residuals: the stage is over, or the run."""
        self._kept.clear()
        if self._twins is not None:
            self._twins.residual.start = self._twins.residual.value = None

    def has_residual(self, branch: Hashable) -> bool:
        return branch in self._kept

    def compute(self, call: Call, branch: Hashable, plain: type) -> Any:
        """Run the whole model, and keep what a skipped step of this branch will need."""
        if self.settings.preset.skip is None or self.why_output:
            out = self._whole(call, plain)
            if self.settings.preset.skip is not None:
                self._kept[branch] = out
            return out
        assert self._twins is not None
        out = self._run("recorded", call)
        value = self._twins.residual.value
        if value is None:
            self.why_output = (
                f"the blocks of a {type(self.model).__name__} do not return the tokens that they are given"
            )
            self._kept[branch] = out
            return out
        self._kept[branch] = self._owned(value)
        self._hollow[call["hidden_states"].shape] = value.to("meta")
        if not self._proven:
            self._prove(call, branch, out)
        self._twins.residual.value = None
        return out

    def reuse(self, call: Call, branch: Hashable) -> Any:
        """The output of a skipped step."""
        if self.why_output:
            return self._kept[branch]
        assert self._twins is not None
        self._twins.residual.value = self._kept[branch]
        try:
            return self._run("reused", call)
        finally:
            self._twins.residual.value = None

    def count(self, call: Call, *, reused: bool) -> float | None:
        """Operations of a call, given as `flops.without_data` returns it."""
        if not reused or self.why_output:
            return 0.0 if reused else _total(flops.operations(self.model, call))
        assert self._twins is not None
        self._twins.residual.value = self._hollow.get(call["hidden_states"].shape)
        try:
            return _total(flops.operations(self._twins.reused, call))
        finally:
            self._twins.residual.value = None

    def _whole(self, call: Call, plain: type) -> Any:
        if self.settings.compiles:
            return self._run("whole", call)
        with undressed(self.given, plain):
            return self.given(**call)

    def _prove(self, call: Call, branch: Hashable, out: Any) -> None:
        """See that the model without its trunk gives the same output on the residual that was just noted."""
        expected = first_tensor(out).clone()
        try:
            difference = trunk.relative_difference(first_tensor(self.reuse(call, branch)), expected)
            why = f"without its blocks, a {type(self.model).__name__} gives another output ({difference:.2g} off)"
        except torch.OutOfMemoryError:
            raise  # says nothing about the model
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            difference, why = float("inf"), f"a {type(self.model).__name__} does not run without its blocks: {error}"
        if not difference <= _PROVEN.get(expected.dtype, 0.05):
            self.why_output = why
            self._kept[branch] = with_first(out, expected)
        self._proven = True

    def _owned(self, tensor: Tensor) -> Tensor:
        """A tensor that no later call overwrites."""
        return tensor.clone() if self._overwrites else tensor

    def _run(self, kind: str, call: Call) -> Any:
        if kind not in self._callables:
            self._callables[kind] = self._callable(kind)
        if self._overwrites:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        limits = {name: max(most, getattr(torch._dynamo.config, name)) for name, most in _RECOMPILES.items()}
        with torch._dynamo.config.patch(limits):
            out = trunk.through_hooks(self.model, self._callables[kind], call)
        return with_first(out, self._owned(first_tensor(out))) if self._overwrites else out

    @property
    def _overwrites(self) -> bool:
        """Whether a call may overwrite what an earlier one returned, as captured CUDA graphs do."""
        return self.settings.captures_graphs or isinstance(self.given, OptimizedModule)

    def _callable(self, kind: str) -> Callable[..., Any]:
        module = self._same
        if self._twins is not None and kind != "whole":
            module = self._twins.recorded if kind == "recorded" else self._twins.reused
        settings = self.settings
        if settings.compiles:
            options = {**settings.options, "knobs": self._knobs}
            if kind == "reused":
                options = {name: value for name, value in options.items() if name not in ("strict", "on_report")}
            else:
                # Dynamo keeps options for as long as its graphs: they must not keep the model.
                options["on_report"] = functools.partial(_note, weakref.ref(self), settings.options.get("on_report"))
            return compile(module, dynamic=settings.dynamic, fullgraph=settings.fullgraph, **options)
        if isinstance(self.given, OptimizedModule):
            compiled: Callable[..., Any] = self.given.dynamo_ctx(module)
            return compiled
        if getattr(self.model, "_compiled_call_impl", None) is not None:
            return torch.compile(module)
        return module


def _total(counted: flops.Operations | None) -> float | None:
    return None if counted is None else counted.total


def _note(runner: weakref.ref[Runner], also: Callable[[Report], None] | None, report: Report) -> None:
    noting = runner()
    if noting is not None:
        noting.sites += report
    if also is not None:
        also(report)


def first_tensor(out: Any) -> Tensor:
    """The prediction in what a transformer of diffusers returns: a tensor, a tuple, or an output of its own class."""
    tensor: Tensor = out if isinstance(out, Tensor) else out[0]
    return tensor


def with_first(out: Any, tensor: Tensor) -> Any:
    """The same with another prediction."""
    if isinstance(out, Tensor):
        return tensor
    if isinstance(out, tuple):
        return (tensor, *out[1:])
    return type(out)(**{name: x if place else tensor for place, (name, x) in enumerate(dict(out).items())})
