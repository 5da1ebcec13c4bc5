"""The book in which every attention site is entered once; a pass may change the entry, never drop it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jenga_compile.config import Options
from jenga_compile.errors import AttentionNotCarved
from jenga_compile.passes.layout.symbolic import SymbolicLayout
from jenga_compile.sites import Report, Site


class Ledger:
    """Entries of one graph while its passes run; a site's number is its place in the book."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.layouts: dict[int, SymbolicLayout] = {}
        """Where the tokens of a site lie, as far as that is known, by the site's number."""

        self._sites: list[Site] = []
        self._inward, self._outward = 0, 0
        self._seconds: dict[str, float] = {}

    def enter(self, site: Site) -> int:
        self._sites.append(site)
        return len(self._sites) - 1

    def settle(self, number: int, **changes: Any) -> None:
        self._sites[number] = dataclasses.replace(self._sites[number], **changes)

    def add_gathers(self, inward: int, outward: int) -> None:
        """Gathers that stand in the graph and serve several sites."""
        self._inward += inward
        self._outward += outward

    def add_seconds(self, name: str, seconds: float) -> None:
        """Time that a pass took."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def __getitem__(self, number: int) -> Site:
        return self._sites[number]

    def report(self) -> Report:
        return Report(tuple(self._sites), self._inward, self._outward, dict(self._seconds))

    def enforce_strict(self) -> None:
        """With `strict`, a site that was meant to be carved and was not is an error."""
        missed = [site for site in self._sites if site.intended and site.decision == "left"]
        if self.options.strict and missed:
            raise AttentionNotCarved(count=len(missed), path=missed[0].path, reason=missed[0].reason)
