"""What became of every attention site: carved, or left with its reason. `seen == carved + left` always."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Literal

Decision = Literal["carved", "left"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One attention call of the model."""

    path: str
    """Module path of the call, e.g. `blocks.3.attn1`."""

    decision: Decision
    reason: str
    """Why the site was left; for a carved site, what it was recognised as."""

    batch: int
    heads: int
    queries: int
    """Tokens of the queries; 0 where the number is known only when the graph runs. So are `keys` and `text`."""

    keys: int
    head_dim: int

    grid: tuple[int, int, int] | None = None
    """Token grid (t, h, w) of the video part, if one was proven or given."""

    curve: str | None = None
    """Order in which the video tokens of a carved site are cut into blocks."""

    video: tuple[int, int] | None = None
    """Range [start, stop) of the video tokens on the token axis."""

    text: int = 0
    """Number of condition tokens on the same axis."""

    masked: bool = False
    """Whether a key-padding mask reaches the site."""

    intended: bool = False
    """Whether the site is large self-attention, which leaving dense costs speed."""

    density: float = 1.0
    """Share of the video blocks that a video query block is expected to see, at least; 1 for dense attention."""

    reordered: bool = False
    """Whether a carved site gets its tokens in order, instead of gathering them itself."""

    apart: str = ""
    """Why a carved site gathers its tokens itself."""

    @property
    def gathers_in(self) -> int:
        """Token gathers that the site makes by itself on its way in: q, k and v."""
        return 3 if self.decision == "carved" and not self.reordered else 0

    @property
    def gathers_out(self) -> int:
        """Token gathers that the site makes by itself on its way out: its output."""
        return 1 if self.decision == "carved" and not self.reordered else 0

    @property
    def dense_flops(self) -> int:
        """Floating-point operations of dense attention here: two matrix products, 2 per multiply-add."""
        return 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim

    @property
    def flops(self) -> int:
        """The same as it is carved or left."""
        return self.flops_at(self.density)

    def flops_at(self, density: float) -> int:
        """The same if video queries see this share of the video keys.

        4*B*H*D*(V*(share*V + T) + T*K) with V video queries, T = Q - V condition tokens, Q = K: video rows see all of
        the condition, condition rows see everything.
        """
        if self.decision == "left" or not self.queries:
            return self.dense_flops
        start, stop = self.video or (0, 0)
        video = stop - start
        condition = self.queries - video
        pairs = video * (density * video + self.keys - video) + condition * self.keys
        return round(4 * self.batch * self.heads * self.head_dim * pairs)


@dataclasses.dataclass(frozen=True)
class Report:
    """The sites of one compiled graph, or of several (`+`)."""

    sites: tuple[Site, ...] = ()

    shared_in: int = 0
    """Token gathers that serve several sites: into the order of the curve."""

    shared_out: int = 0
    """And back into the model's order."""

    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)
    """Time that each pass took, by its name."""

    def __add__(self, other: Report) -> Report:
        shared = (self.shared_in + other.shared_in, self.shared_out + other.shared_out)
        seconds = Counter(self.seconds)
        seconds.update(other.seconds)
        return Report(self.sites + other.sites, *shared, seconds=dict(seconds))

    @property
    def seen(self) -> int:
        return len(self.sites)

    @property
    def carved(self) -> int:
        return sum(site.decision == "carved" for site in self.sites)

    @property
    def left(self) -> int:
        return sum(site.decision == "left" for site in self.sites)

    @property
    def gathers_in(self) -> int:
        """Gathers into the order of the curve, shared ones and each site's own."""
        return self.shared_in + sum(site.gathers_in for site in self.sites)

    @property
    def gathers_out(self) -> int:
        """Gathers back into the model's order."""
        return self.shared_out + sum(site.gathers_out for site in self.sites)

    @property
    def gathers(self) -> int:
        return self.gathers_in + self.gathers_out

    @property
    def gathered_apart(self) -> list[str]:
        """How many carved sites gather their tokens by themselves, and why: a line for each reason."""
        apart = Counter(site.apart for site in self.sites if site.apart)
        return [f"{count} carved gather their tokens by themselves: {why}" for why, count in apart.items()]

    def to_json(self) -> str:
        return json.dumps(
            {
                "seen": self.seen,
                "carved": self.carved,
                "left": self.left,
                "gathers_in": self.gathers_in,
                "gathers_out": self.gathers_out,
                "dense_flops": sum(site.dense_flops for site in self.sites),
                "flops": sum(site.flops for site in self.sites),
                "sites": [
                    {**dataclasses.asdict(site), "dense_flops": site.dense_flops, "flops": site.flops}
                    for site in self.sites
                ],
            },
            indent=2,
        )

    def __str__(self) -> str:
        gathers = f"gathers {self.gathers_in} in, {self.gathers_out} out"
        head = f"attention: {self.seen} seen, {self.carved} carved, {self.left} left; {gathers}"
        return "\n".join([head, *_table(self.sites), *(f"  {note}" for note in self.gathered_apart)])

    def summary(self) -> str:
        """One line, reasons counted."""
        reasons = Counter(site.reason for site in self.sites if site.decision == "left")
        listed = "; ".join(f"{count}x {reason}" for reason, count in reasons.most_common())
        return f"{self.carved} of {self.seen} attention sites carved" + (f" (left: {listed})" if listed else "")


def amount(flops: float) -> str:
    """`9828000000000000.0 -> "9.83 PFLOP"`."""
    for prefix in ("", "K", "M", "G", "T", "P", "E"):
        if flops < 999.5 or prefix == "E":
            digits = 0 if flops >= 99.95 or flops == 0 else 1 if flops >= 9.995 else 2
            return f"{flops:.{digits}f} {prefix}FLOP"
        flops /= 1000
    raise AssertionError


def _table(sites: tuple[Site, ...]) -> list[str]:
    rows = [
        (
            site.path,
            site.decision,
            "x".join(map(str, site.grid)) if site.grid else "-",
            f"{site.queries or '?'}x{site.keys or '?'}",
            str(site.text or "-") if site.queries else "?",
            site.curve or "-",
            amount(site.dense_flops) if site.queries else "?",
            amount(site.flops) if site.decision == "carved" and site.queries else "-",
            site.reason,
        )
        for site in sites
    ]
    if not rows:
        return ["  (no attention in the graph)"]
    header = ("path", "decision", "grid", "q x k", "text", "curve", "dense", "carved", "reason")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
