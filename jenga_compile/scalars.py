"""Numbers of any library as Python's own: what `numpy` computes is as good as what a user types."""

from __future__ import annotations

import numbers
import operator


def plain_float(value: object) -> float | None:
    """`value` as a float; None if it is no real number, as a boolean is none."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def plain_int(value: object) -> int | None:
    """`value` as an integer; None if it is none, as a boolean and 2.0 are none."""
    return operator.index(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def fitted(whole: int, share: float) -> int:
    """A share of so many, rounded down, and not by what binary fractions lack of decimal ones."""
    return int(whole * share + 1e-9)
