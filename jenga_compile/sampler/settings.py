"""What `accelerate` was asked for, as one value: a preset with its switches, and how to compile."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args

from jenga_compile.backend import read_options
from jenga_compile.config import Carving, Options
from jenga_compile.errors import OptionOfWrongType, OptionOutOfRange, OptionsAtOdds, UnknownSwitch, hint
from jenga_compile.presets import Adaptive, Listed, Preset, Skipping, Stage, find_preset
from jenga_compile.sampler.corner import Resize
from jenga_compile.scalars import plain_float

KEEP: Any = object()
"""Stands for what the preset says."""

SWITCHES = ("stages", "carving", "skip", "amplifier", "resize", "parity", "dynamic", "fullgraph")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of it, checked at birth."""

    preset: Preset
    """With the switches in place: its stages and how it skips."""

    carved: bool
    """Whether attention is carved; if not, the stages' `carving` plays no part."""

    listed: bool
    """Whether the skipped steps are the preset's own, for which a family may have another list."""

    resize: Resize
    parity: bool
    dynamic: bool
    fullgraph: bool
    options: Mapping[str, Any] = dataclasses.field(hash=False)
    """For the backend, but for the knobs."""

    @property
    def amplifies(self) -> bool:
        return self.preset.amplifier != 0.0 and self.preset.resizes

    @property
    def compiles(self) -> bool:
        """Whether the backend is needed: to carve, or to raise the attention to the text."""
        return self.carved or self.amplifies

    @property
    def captures_graphs(self) -> bool:
        """Whether outputs of the compiled model may be overwritten by its next call: CUDA graphs are captured."""
        return self.options.get("mode") is not None

    def for_family(self, computed: tuple[int, ...]) -> Settings:
        """With the family's own list of computed steps, where the preset's list was not replaced."""
        if not self.listed:
            return self
        return dataclasses.replace(self, preset=dataclasses.replace(self.preset, skip=Listed(computed)))

    def knobs(self, stage: int, tokens: int, final_tokens: int) -> tuple[float, float, float]:
        """keep, cutoff and text bias of a stage, whose frames have so many tokens, and the video's so many.

        The bias is rho ln(final / stage) in natural units, in the first stage alone (reference: half its logarithm).
        """
        importance = self.preset.stages[stage].carving.split().importance
        keep, cutoff = (importance.keep, importance.cutoff) if self.carved and importance is not None else (1.0, 0.0)
        bias = self.preset.amplifier * math.log(final_tokens / tokens) if stage == 0 else 0.0
        return keep, cutoff, bias


def read_settings(preset: str | Preset, given: Mapping[str, Any]) -> Settings:
    """The settings of a call of `accelerate`.

    Raises:
        UnknownPreset, UnknownSwitch, OptionOutOfRange, OptionOfWrongType, OptionsAtOdds: they are not as documented.
    """
    whole = find_preset(preset) if isinstance(preset, str) else preset
    if not isinstance(whole, Preset):
        raise OptionOutOfRange(name="preset", value=preset, expected="names and Presets", way_out="Pass 'turbo'.")
    switches = {name: given[name] for name in SWITCHES if name in given}
    options = {name: value for name, value in given.items() if name not in SWITCHES}
    _check_names(options)
    carving = switches.get("carving", KEEP)
    stages = _stages(whole, switches.get("stages", KEEP), carving)
    skip = _skipping(switches.get("skip", KEEP), whole)
    fields = {name: options.pop(name) for name in list(options) if name in _CARVED_BY_STAGE}
    if fields:
        stages = tuple(
            dataclasses.replace(stage, carving=dataclasses.replace(stage.carving, **fields)) for stage in stages
        )
    _check_common(stages)
    common = {name: getattr(stages[0].carving, name) for name in _CARVED_ONCE}
    default = Carving()
    once = {name: value for name, value in common.items() if value != getattr(default, name)}
    amplifier = _number("amplifier", switches.get("amplifier", whole.amplifier) or 0.0)
    read_options({**once, **options})
    return Settings(
        preset=dataclasses.replace(whole, stages=stages, skip=skip, amplifier=amplifier),
        carved=carving is not None,
        listed=switches.get("skip", KEEP) in (KEEP, "static") and whole.skip == Listed(),
        resize=_one_of("resize", switches.get("resize", "trilinear"), get_args(Resize)),
        parity=_one_of("parity", switches.get("parity", False), (False, True)),
        dynamic=_one_of("dynamic", switches.get("dynamic", False), (False, True)),
        fullgraph=_one_of("fullgraph", switches.get("fullgraph", False), (False, True)),
        options={**once, **options},
    )


_CARVED_BY_STAGE = ("keep", "cutoff", "curve", "adjacency", "min_blocks", "blocks")
_CARVED_ONCE = ("curve", "adjacency", "min_blocks", "blocks")
"""Fields of `Carving` that a compiled graph holds, so that all stages share them; the others are knobs."""


def _check_names(options: Mapping[str, Any]) -> None:
    backend = {field.name for field in dataclasses.fields(Options)} - {"carving"}
    known = sorted(backend | set(_CARVED_BY_STAGE))
    for name in options:
        if name == "knobs":
            way_out = "The run sets them: give keep and cutoff, or a Preset with stages of your own."
            raise OptionsAtOdds(name=name, value=options[name], beside="in accelerate", way_out=way_out)
        if name not in known:
            near = hint(name, [*SWITCHES, *known])
            raise UnknownSwitch(name=name, hint=near, switches=", ".join(SWITCHES), options=", ".join(known))


def _stages(preset: Preset, stages: Any, carving: Any) -> tuple[Stage, ...]:
    if stages is None:
        chosen = tuple(dataclasses.replace(stage, scale=1.0, shift=0.0) for stage in preset.stages)
    elif stages is KEEP:
        chosen = preset.stages
    else:
        chosen = tuple(stages) if isinstance(stages, tuple | list) else ()
        if not chosen or not all(isinstance(stage, Stage) for stage in chosen):
            way_out = "Pass a tuple of jenga_compile.presets.Stage, or None for full size throughout."
            raise OptionOutOfRange(name="stages", value=stages, expected="tuples of stages", way_out=way_out)
    if carving is KEEP or carving is None:
        return chosen
    if not isinstance(carving, Carving):
        way_out = "Pass jenga_compile.Carving(keep=0.2), or None for dense attention."
        raise OptionOutOfRange(name="carving", value=carving, expected="Carving values", way_out=way_out)
    return tuple(dataclasses.replace(stage, carving=carving) for stage in chosen)


def _skipping(skip: Any, preset: Preset) -> Skipping | None:
    if skip is KEEP:
        return preset.skip
    if skip is None or isinstance(skip, Listed | Adaptive):
        return skip
    named: dict[Any, Skipping] = {"static": Listed(), "adaptive": Adaptive()}
    if isinstance(skip, str) and skip in named:
        return named[skip]
    way_out = "Pass a jenga_compile.presets.Adaptive(threshold) or Listed(computed) for other values."
    raise OptionOutOfRange(name="skip", value=skip, expected="'static', 'adaptive' and None", way_out=way_out)


def _check_common(stages: tuple[Stage, ...]) -> None:
    for name in _CARVED_ONCE:
        values = [getattr(stage.carving, name) for stage in stages]
        if any(value != values[0] for value in values):
            way_out = "Only keep and cutoff may differ between stages: one compiled model serves them all."
            raise OptionOutOfRange(name=name, value=values, expected="one value for all stages", way_out=way_out)
    if any(stage.carving.knobs is not None for stage in stages):
        way_out = "The run sets them: give the stages keep and cutoff."
        raise OptionsAtOdds(name="knobs", value="in a stage", beside="in accelerate", way_out=way_out)


def _number(name: str, value: Any) -> float:
    number = plain_float(value)
    if number is None:
        raise OptionOfWrongType(
            name=name, value=value, found=type(value).__name__, expected="a number", way_out="Pass e.g. 0.5."
        )
    return number


def _one_of(name: str, value: Any, valid: tuple[Any, ...]) -> Any:
    if value not in valid:
        raise OptionOutOfRange(name=name, value=value, expected=str(valid), way_out="Pick one of them.")
    return value
