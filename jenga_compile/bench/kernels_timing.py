"""How `jenga bench kernels` takes time. Two protocols, whose numbers must not be mixed.

    sustained   what a model sees that runs for minutes: all kernels take turns, in `rounds` rounds whose order
                alternates, after one round that is not counted. A chip at its power limit clocks lower than a cool one,
                and all kernels share its state. The figure is the median of the rounds' medians
    burst       what a single call from a cool chip does: a pause, two calls that are not counted, then the counted ones

A round calls a kernel `reps` times, or as often as fits into `ROUND_MS` where that is less, so that a slow rival does
not take the time of all others. The spread is (largest - smallest) / median, of rounds or, in one burst, of calls.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch

from jenga_compile.bench.kernels_entry import Call

ProtocolKind = Literal["sustained", "burst"]

ROUND_MS = 500.0
"""Time that a round has for one kernel."""

PAUSE_S = 2.5
"""Rest before a burst."""

WARM_UPS = 2
"""Calls at the start of a burst that are not counted."""

DEFAULTS: dict[ProtocolKind, tuple[int, int]] = {"sustained": (7, 7), "burst": (1, 5)}
"""Rounds, and calls a round."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How often each kernel is called."""

    kind: ProtocolKind
    rounds: int
    reps: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one kernel."""

    ms: float
    spread: float
    calls: int
    """How many were counted."""


def take(calls: Mapping[str, Call], protocol: Protocol, device: torch.device) -> dict[str, Timing | Exception]:
    """Time of each call, or what it raised."""
    return (_sustained if protocol.kind == "sustained" else _burst)(calls, protocol, device)


def _sustained(calls: Mapping[str, Call], protocol: Protocol, device: torch.device) -> dict[str, Timing | Exception]:
    laps: dict[str, list[list[float]]] = {name: [] for name in calls}
    reps: dict[str, int] = {}
    raised: dict[str, Exception] = {}
    for number in range(protocol.rounds + 1):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            if name in raised:
                continue
            try:
                if name not in reps:
                    (once,) = _laps(calls[name], 1, device)
                    reps[name] = min(protocol.reps, max(1, int(ROUND_MS / max(once, 1e-6))))
                laps[name].append(_laps(calls[name], reps[name], device))
            except Exception as error:
                raised[name] = error
    return {name: raised[name] if name in raised else _timing(laps[name][1:]) for name in calls}


def _burst(calls: Mapping[str, Call], protocol: Protocol, device: torch.device) -> dict[str, Timing | Exception]:
    found: dict[str, Timing | Exception] = {}
    for name, call in calls.items():
        try:
            rounds = []
            for _ in range(protocol.rounds):
                _wait(device)
                time.sleep(PAUSE_S)
                _laps(call, WARM_UPS, device)
                rounds.append(_laps(call, protocol.reps, device))
            found[name] = _timing(rounds)
        except Exception as error:
            found[name] = error
    return found


def _timing(rounds: list[list[float]]) -> Timing:
    medians = [statistics.median(laps) for laps in rounds]
    several = medians if len(medians) > 1 else rounds[0]
    ms = statistics.median(medians)
    return Timing(ms, (max(several) - min(several)) / ms, sum(map(len, rounds)))


def _laps(call: Call, reps: int, device: torch.device) -> list[float]:
    """Milliseconds of each of `reps` calls, one right after the other."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(reps):
            call()
            marks.append(time.perf_counter())
        return [1e3 * (second - first) for first, second in itertools.pairwise(marks)]
    event_type: Any = torch.cuda.Event
    events = [event_type(enable_timing=True) for _ in range(reps + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    _wait(device)
    return [first.elapsed_time(second) for first, second in itertools.pairwise(events)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
