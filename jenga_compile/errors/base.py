"""What all errors have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class JengaError(Exception):
    """Base of the catalogue; never raised itself."""

    template: ClassVar[str]

    def __init__(self, **facts: object) -> None:
        super().__init__(self.template.format(**facts))
        self.facts = facts


def hint(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: which valid one is near, if any is."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."
