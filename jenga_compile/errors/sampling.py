"""What can be wrong with a pipeline that is to be accelerated, and with how it is to be sampled."""

from __future__ import annotations

from jenga_compile.errors.base import JengaError


class NotAPipeline(JengaError, TypeError):
    template = (
        "accelerate was given {value}, of type {found}, expected a diffusers pipeline with a transformer and a "
        "scheduler. Pass the pipeline itself; a bare model is compiled by jenga_compile.compile(model)."
    )


class AcceleratedAlready(JengaError, ValueError):
    template = (
        "this {pipeline} is accelerated already, with preset {preset!r}. "
        "Call remove() on what accelerate returned, or leave its `with` block, before accelerating it anew."
    )


class UnknownSwitch(JengaError, TypeError):
    template = "accelerate has no argument {name!r}{hint} Switches: {switches}. Options of the backend: {options}."


class StepsTooFew(JengaError, ValueError):
    template = (
        "{steps} steps are too few for the {stages} stages of {preset!r}: stage {empty} would have none. "
        "Sample with at least {least} steps, or pass stages=None."
    )


class StagesUnfit(JengaError, ValueError):
    template = (
        "progressive resolution cannot be used with {pipeline}: {why}. "
        "Use preset 'base' or pass stages=None; carving and skip work as they are."
    )


class StageTooSmall(JengaError, ValueError):
    template = (
        "stage {stage} at {scale:g} of the size leaves no token of the {rows}x{columns} that a frame has. "
        "Sample a larger video, or use a preset with larger stages."
    )


class SchedulerUnfit(JengaError, ValueError):
    template = (
        "{scheduler} cannot be used with {switch}: {why}. "
        "Give the pipeline another scheduler, for example {better}, or pass {switch}=None."
    )


class CacheInTheWay(JengaError, ValueError):
    template = (
        "the {module} of this pipeline has diffusers' {cache} enabled, which skips work of its own. "
        "Call disable_cache() on it, or pass skip=None and carving=None."
    )


class CallUnreadable(JengaError, ValueError):
    template = (
        "a call of {transformer} shows no video: {why}. "
        "Pass stages=None, with which a call is left as it is; skip and carving work."
    )


class NoRunYet(JengaError, RuntimeError):
    template = "there is no run of {what} to report. Call the pipeline inside `with jenga_compile.accelerate(pipe):`."
