"""What a configuration must give: which sites are carved, and the output, computed without compiler and operators.

The truth is the model itself in float64, eagerly. Where blocks are dropped, each carved attention is replaced by dense
attention under a boolean mask of tokens, [B, H, L, L], that follows from the block mask and the configuration's grid:
no gathers, no hoisting, no inferred layout. So a wrong grid, start or curve shows in the numbers.

Rounding can turn a choice of importance, which then changes everything behind it; two right answers may so be far
apart. Configurations in which importance chooses run in float64 alone, where a choice is as good as never within
rounding; those whose blocks are fixed or all kept run in any type. In float64 there is no more precise truth: what
rounding may do is taken from float32 and scaled by the ratio of the types' units.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from jenga_compile.block_mask import split
from jenga_compile.curve import CutCurve, curve_order
from jenga_compile.grid import BLOCK, TokenGrid
from jenga_compile.kernels.block_select import reference
from jenga_compile.kernels.carved_attention import gathered
from jenga_compile.kernels.knobs import make_knobs
from jenga_compile.sites import Report
from tests.fuzz.configuration import ADDITIVE, MERGES_HEADS, UNREADABLE, Configuration
from tests.fuzz.small_dit import SmallDiT
from tests.fuzz.spelling import scale_of

Expected = dict[str, str]
"""What must become of the site at each path: "carved", or how the reason begins with which it is left."""


def expected_sites(c: Configuration) -> Expected:
    sites: Expected = {}
    for place in range(c.layers):
        sites[f"blocks.{place}.attn"] = why_left(c) or "carved"
        if c.streams == "cross":
            sites[f"blocks.{place}.cross"] = f"cross-attention: {c.tokens} queries, {c.text} keys"
    if c.refiner:
        given = "the given grid" if c.grid_given else "no grid"
        sites["refiner"] = "short" if _is_short(c, c.text) else given
    return sites


def _is_short(c: Configuration, tokens: int) -> bool:
    return tokens <= (c.min_blocks - 1) * BLOCK


def why_left(c: Configuration) -> str | None:
    """How the reason begins for which the video's attention is left by design; None if it is carved."""
    if _is_short(c, c.tokens):
        return "short"
    if c.is_joint and c.autocast and c.is_written and c.mask in ADDITIVE:
        return "torch.float32 scores and torch.bfloat16 values under autocast"
    if c.embed == "tokens" and not c.grid_given:
        return "no grid"
    if _is_short(c, c.video):
        return "short"
    if c.is_joint and c.mask in UNREADABLE:
        return UNREADABLE[c.mask]
    merged = c.spelling in MERGES_HEADS and not (c.is_joint and c.mask != "none")  # a mask is applied to each apart
    if c.blocks == "per_head" and (c.heads == 1 or merged):
        return "the block mask has 2 kinds of heads, the call 1: "
    return None


def is_carved(c: Configuration) -> bool:
    return expected_sites(c)["blocks.0.attn"] == "carved"


def complaints(c: Configuration, report: Report) -> list[str]:
    """What is wrong with a report."""
    expected = expected_sites(c)
    found = {site.path: site for site in report.sites}
    wrong = []
    if report.seen != report.carved + report.left or report.seen != len(expected) or set(found) != set(expected):
        wrong.append(f"{len(expected)} attention calls {sorted(expected)}, {report.seen} seen {sorted(found)}")
    for path, outcome in expected.items():
        site = found.get(path)
        if site is None:
            continue
        if site.decision == "carved":
            shown = (site.grid, site.video, site.text)
            right = (c.grid, (c.start, c.start + c.video), c.tokens - c.video)
            if outcome != "carved":
                wrong.append(f"{path} is carved, expected to be left: {outcome}")
            elif shown != right:
                wrong.append(f"{path} is carved as {shown}, expected {right}")
        elif outcome == "carved" or not site.reason.startswith(outcome):
            wrong.append(f"{path} is left: {site.reason}; expected {outcome}")
    return wrong


@dataclasses.dataclass(frozen=True)
class Call:
    """How the operator was called."""

    grid: tuple[int, int, int]
    start: int
    curve: CutCurve


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """The calls of the carved operator inside, in order."""
    calls: list[Call] = []
    compute = gathered.carved_attention

    def record(q: Any, k: Any, v: Any, mask: Any, grid: TokenGrid, start: int, curve: CutCurve, *rest: Any) -> Tensor:
        calls.append(Call(grid.shape, start, curve))
        return compute(q, k, v, mask, grid, start, curve, *rest)

    with mock.patch.object(gathered, "carved_attention", record):
        yield calls


def plain_output(c: Configuration, model: SmallDiT, given: dict[str, Any], calls: Sequence[Call]) -> Tensor:
    """What the model must give, computed eagerly in the type of its weights.

    Args:
        calls: of the operator; only the cuts of their curves are believed.
    """
    if c.is_lossless or not is_carved(c):
        return model(**given)
    model = copy.deepcopy(model)
    for block, call in zip(model.blocks, calls, strict=True):
        block.attn.stand_in = StandIn(c, call.curve.cuts)
    return model(**given)


class StandIn:
    """Carved attention as dense attention under a mask of tokens."""

    def __init__(self, c: Configuration, cuts: tuple[int, ...]) -> None:
        self.c, self.curve, self.grid = c, CutCurve(c.curve or "gilbert", cuts), TokenGrid(*c.grid)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> Tensor:
        seen = self._seen(q, k, key)
        if key is not None:
            seen = seen & key[:, None, None, :]
        scores = (q @ k.mT * scale_of(self.c)).masked_fill(~seen, -math.inf)
        return (scores.softmax(-1).nan_to_num(0) @ v).transpose(1, 2).flatten(2)

    def _seen(self, q: Tensor, k: Tensor, key: Tensor | None) -> Tensor:
        """bool [B, H, L, L]"""
        c, length = self.c, q.shape[2]
        others = [place for place in range(length) if not c.start <= place < c.start + c.video]
        order = torch.cat([curve_order(self.grid, self.curve) + c.start, torch.tensor(others, dtype=torch.long)])
        parts = split(c.block_mask())
        always, allowed = (mask.dense(self.grid, self.curve) for mask in (parts.always, parts.allowed))
        knobs = make_knobs(c.keep, c.cutoff)
        on_curve = None if key is None else key[:, order]
        indices, counts = reference.block_select(
            q[:, :, order], k[:, :, order], always, knobs, c.video, on_curve, False, allowed
        )
        rows, positions = -(-c.video // BLOCK), torch.arange(length)
        block = torch.where(positions < c.video, positions // BLOCK, rows + (positions - c.video) // BLOCK)
        listed = torch.zeros(*indices.shape[:3], indices.shape[3] + 1, dtype=torch.bool)
        used = torch.arange(indices.shape[3]) < counts[..., None]
        listed.scatter_(-1, torch.where(used, indices, indices.shape[3]).long(), True)
        seen = torch.ones(*q.shape[:2], length, length, dtype=torch.bool)
        seen[:, :, : c.video] = listed[:, :, block[: c.video]][..., block]
        place = order.argsort()
        return seen[:, :, place][..., place]
