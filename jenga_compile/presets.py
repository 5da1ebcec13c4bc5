"""The paper's operating points as values: stages of resolution and sparsity, and the steps that are computed.

    base          full resolution throughout; skipped steps and carving alone
    turbo         half of the steps at three quarters of the resolution
    flash         turbo with fewer blocks
    three_stage   half, three quarters, full resolution
    *_release     what the authors' released scripts run, where it differs from the paper

Sources: the paper's section 4 gives keep 0.3 in the first stage and 0.2 after it, and cutoff 0.3. Flash is the entry
of its Table 3a (keep 0.2, then 0.1) that has the quality and the time of flash in Table 1. The skipped steps and the
shifts are the release's; the paper counts 24 computed steps with two stages, its code computes 23.
"""

from __future__ import annotations

import dataclasses
import difflib

from jenga_compile.config import Carving
from jenga_compile.errors import OptionOutOfRange, UnknownPreset

STEPS = 50
"""Length of the schedule that a preset is written for."""

COMPUTED = (*range(5), *range(7, 26, 3), *range(26, 42, 3), 43, 45, 46, 47, 49)
"""Steps of 50 in which the transformer runs; between them its last residual is used again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of steps at one resolution and one sparsity.

    Raises:
        OptionOutOfRange: a share of the resolution or of the steps is outside (0, 1].
    """

    scale: float = 1.0
    """Height and width as a share of the final ones, rounded down to whole tokens."""

    until: float = 1.0
    """Share of the steps at which the stage ends; the step that it falls on is its last."""

    carving: Carving

    shift: float = 0.0
    """Added to the flow shift of the model's schedule: more noise, in which resizing is forgotten."""

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("until", self.until)):
            if not 0.0 < value <= 1.0:
                raise OptionOutOfRange(name=name, value=value, expected="(0, 1]", way_out="It is a share.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """All that decides how a video is sampled.

    Raises:
        OptionOutOfRange: the stages do not follow each other up to the last step at full resolution, or `computed` is
            not a rising list of steps that starts with the first.
    """

    name: str
    stages: tuple[Stage, ...]

    computed: tuple[int, ...] = COMPUTED
    """Steps, of `STEPS`, in which the transformer runs."""

    amplifier: float = 0.5
    """Attention to the text in the first stage is raised by this times the logarithm of the final stage's tokens over
    the first's (paper, rho); nothing where both are the same."""

    def __post_init__(self) -> None:
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)) or ends[-1:] != [1.0] or self.stages[-1].scale != 1.0:
            way_out = "Let `until` rise to 1.0, and the last stage have scale 1.0."
            raise OptionOutOfRange(name="stages", value=self.stages, expected="a whole schedule", way_out=way_out)
        rises = list(self.computed) == sorted(set(self.computed))
        if not rises or self.computed[:1] != (0,) or self.computed[-1] >= STEPS:
            way_out = "The first step has nothing to use again, so it is computed."
            raise OptionOutOfRange(
                name="computed", value=self.computed, expected=f"rising steps from 0 to {STEPS - 1}", way_out=way_out
            )

    @property
    def calls(self) -> tuple[int, ...]:
        """Computed steps of each stage."""
        ends = [int(STEPS * stage.until) for stage in self.stages]
        up_to = [sum(step <= end for step in self.computed) for end in ends]
        return tuple(after - before for before, after in zip([0, *up_to], up_to, strict=False))


def _carved(keep: float, cutoff: float = 0.3) -> Carving:
    return Carving(keep=keep, cutoff=cutoff)


def _base(name: str, first: float, last: float) -> Preset:
    return Preset(name=name, stages=(Stage(until=0.5, carving=_carved(first)), Stage(carving=_carved(last))))


def _two_stages(name: str, first: float, last: float, cutoff: float = 0.3) -> Preset:
    low = Stage(scale=0.75, until=0.5, carving=_carved(first, cutoff))
    return Preset(name=name, stages=(low, Stage(carving=_carved(last, cutoff), shift=2.0)))


def _three_stages(name: str, first: float, last: float) -> Preset:
    return Preset(
        name=name,
        stages=(
            Stage(scale=0.5, until=0.3, carving=_carved(first)),
            Stage(scale=0.75, until=0.5, carving=_carved(last), shift=2.0),
            Stage(carving=_carved(last), shift=4.0),
        ),
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _base("base", 0.3, 0.2),
        _two_stages("turbo", 0.3, 0.2),
        _two_stages("flash", 0.2, 0.1),
        _three_stages("three_stage", 0.3, 0.2),
        _base("base_release", 0.25, 0.15),
        _two_stages("flash_release", 0.2, 0.05, cutoff=0.5),
        _three_stages("three_stage_release", 0.25, 0.15),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownPreset: there is none.
    """
    found = PRESETS.get(name)
    if found is None:
        (near,) = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise UnknownPreset(name=name, near=near, valid=", ".join(PRESETS))
    return found
