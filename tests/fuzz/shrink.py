"""The plainest configuration that fails as a given one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tests.fuzz.configuration import Configuration, settled
from tests.fuzz.trial import Outcome, run

_PLAIN = Configuration()
_SMALLER: dict[str, tuple[object, ...]] = {
    "layers": (1, 2),
    "text": (0, 5),
    "registers": (0, 1),
    "grid": ((2, 8, 9), (3, 8, 8)),
    "dtype": ("float64", "float32"),
    "min_blocks": (1, 2),
}
"""Values to try beside a field's default."""


def shrink(outcome: Outcome) -> Outcome:
    """Put one field after another at its plainest, as long as the verdict stays; 100 to 200 trials."""
    while True:
        found = next(
            (smaller for smaller in map(run, _plainer(outcome.configuration)) if _alike(smaller, outcome)), None
        )
        if found is None:
            return outcome
        outcome = found


def _plainer(c: Configuration) -> Iterator[Configuration]:
    """Configurations with one field nearer to its plainest than `c`, each once."""
    seen = {c}
    for field in dataclasses.fields(c):
        if field.name == "seed":
            continue
        values = [*dict.fromkeys([getattr(_PLAIN, field.name), *_SMALLER.get(field.name, ())])]
        own = getattr(c, field.name)
        for value in values[: values.index(own)] if own in values else values:
            plainer = settled(dataclasses.replace(c, **{field.name: value}))
            if plainer not in seen and len(plainer.differences()) <= len(c.differences()):
                seen.add(plainer)
                yield plainer


def _alike(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are of one kind: the verdict, and how what is said begins."""
    return one.verdict == other.verdict and one.what.split(":")[0][:12] == other.what.split(":")[0][:12]
