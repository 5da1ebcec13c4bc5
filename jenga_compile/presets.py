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
import itertools
import math
from collections.abc import Sequence

from jenga_compile.config import Carving
from jenga_compile.errors import OptionOutOfRange, StepsTooFew, UnknownPreset
from jenga_compile.scalars import fitted

STEPS = 50
"""Length of the schedule that the lists of computed steps are written for."""

COMPUTED = (*range(5), *range(7, 26, 3), *range(26, 42, 3), 43, 45, 46, 47, 49)
"""Steps of 50 in which the transformer runs; between them its last residual is used again."""

COMPUTED_FROM_IMAGE = (*range(4), 5, *range(7, 41, 3), 42, *range(44, 50))
"""The same for image-to-video."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """Skips every step but those of a list, whatever the video.

    Raises:
        OptionOutOfRange: `computed` is not a rising list of steps that starts with the first.
    """

    computed: tuple[int, ...] = COMPUTED
    """Steps, of `STEPS`, in which the transformer runs."""

    def __post_init__(self) -> None:
        rises = list(self.computed) == sorted(set(self.computed))
        if not rises or self.computed[:1] != (0,) or self.computed[-1] >= STEPS:
            way_out = "The first step has nothing to use again, so it is computed."
            raise OptionOutOfRange(
                name="computed", value=self.computed, expected=f"rising steps from 0 to {STEPS - 1}", way_out=way_out
            )

    def at(self, steps: int) -> frozenset[int]:
        """The computed ones of any number of steps: those whose part of the schedule holds a computed step of `STEPS`.

        So the gaps stay the same share of the schedule, and a few steps are all computed.
        """
        return frozenset(step * steps // STEPS for step in self.computed)


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Skips while the model's output is foreseen to change by less than a threshold since it was last computed.

    From one step to the next the output changes about as many times its input's change as it last did: EasyCache
    (arXiv:2507.02860), which needs no coefficients of a model.

    Raises:
        OptionOutOfRange: the threshold is negative or no finite number.
    """

    threshold: float = 0.05
    """Relative change, summed over the steps since; 0.0 skips nothing."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < math.inf:
            way_out = "Use 0.0 to compute every step; 0.05 skips about half."
            raise OptionOutOfRange(name="threshold", value=self.threshold, expected="[0, inf)", way_out=way_out)


Skipping = Listed | Adaptive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of steps at one resolution and one sparsity.

    Raises:
        OptionOutOfRange: a share of the resolution or of the steps is outside (0, 1], or the shift is no number.
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
        if not math.isfinite(self.shift):
            raise OptionOutOfRange(name="shift", value=self.shift, expected="numbers", way_out="Use 0.0 for none.")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A step's place in the plan of a run."""

    step: int
    stage: int
    starts: bool
    """Whether it is its stage's first."""

    resized: bool
    """Whether it is the first at its resolution, which is always computed: there is no residual to use again."""

    ends: bool
    computed: bool | None
    """Whether the transformer runs; None where that is decided when the step comes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """All that decides how a video is sampled.

    Raises:
        OptionOutOfRange: the stages do not follow each other up to the last step at full resolution, shrink, or change
            the shift where they do not change the resolution.
    """

    name: str
    stages: tuple[Stage, ...]

    skip: Skipping | None = Listed()
    """In which steps the transformer runs; None: in all."""

    amplifier: float = 0.5
    """Attention to the text in the first stage is raised by this times the logarithm of the final stage's tokens over
    the first's (paper, rho); nothing where both are the same."""

    def __post_init__(self) -> None:
        ends = [stage.until for stage in self.stages]
        scales = [stage.scale for stage in self.stages]
        whole = ends == sorted(set(ends)) and ends[-1:] == [1.0]
        if not whole or scales != sorted(scales) or scales[-1] != 1.0:
            way_out = "Let `until` rise to 1.0, `scale` not fall, and the last stage have scale 1.0."
            raise OptionOutOfRange(name="stages", value=self.stages, expected="a whole schedule", way_out=way_out)
        for before, after in itertools.pairwise(self.stages):
            if before.scale == after.scale and before.shift != after.shift:
                way_out = "Noise is added only where the resolution changes: give both stages the same shift."
                expected = f"that of the stage before, {before.shift}"
                raise OptionOutOfRange(name="shift", value=after.shift, expected=expected, way_out=way_out)
        if not math.isfinite(self.amplifier):
            way_out = "Use 0.0 for none; the paper has 0.5."
            raise OptionOutOfRange(name="amplifier", value=self.amplifier, expected="numbers", way_out=way_out)

    @property
    def resizes(self) -> bool:
        """Whether any stage is smaller than the video."""
        return self.stages[0].scale < 1.0

    def slots(self, steps: int) -> tuple[Slot, ...]:
        """The place of each of so many steps.

        Raises:
            StepsTooFew: there would be a stage without any, and the video would not reach its full size.
        """
        ends = self._ends(steps)
        if self.resizes and (empty := _first_empty(ends)) is not None:
            least = next(count for count in itertools.count(steps + 1) if _first_empty(self._ends(count)) is None)
            raise StepsTooFew(steps=steps, stages=len(self.stages), preset=self.name, empty=empty, least=least)
        listed = self.skip.at(steps) if isinstance(self.skip, Listed) else None
        slots = []
        for stage, (before, last) in enumerate(itertools.pairwise(ends)):
            for step in range(before + 1, last + 1):
                starts = step == before + 1
                resized = starts and (stage == 0 or self.stages[stage].scale != self.stages[stage - 1].scale)
                computed = self._computed(step, resized, listed)
                slots.append(Slot(step, stage, starts, resized, ends=step == last, computed=computed))
        return tuple(slots)

    def calls(self, steps: int = STEPS) -> tuple[int, ...]:
        """Computed steps of each stage, of so many in all; those that are decided later count as computed."""
        computed = [slot.stage for slot in self.slots(steps) if slot.computed is not False]
        return tuple(computed.count(stage) for stage in range(len(self.stages)))

    def _ends(self, steps: int) -> list[int]:
        """The last step of each stage, behind the one before the first."""
        return [-1, *(fitted(steps, stage.until) for stage in self.stages[:-1]), steps - 1]

    def _computed(self, step: int, resized: bool, listed: frozenset[int] | None) -> bool | None:
        if resized or self.skip is None:
            return True
        return None if listed is None else step in listed


def _first_empty(ends: Sequence[int]) -> int | None:
    """The number, from 1, of the first stage without steps."""
    return next((stage for stage, (a, b) in enumerate(itertools.pairwise(ends), start=1) if b <= a), None)


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
