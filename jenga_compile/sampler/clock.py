"""Times of steps without waiting for the GPU: marks on its stream, read when the run is over."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class Clock:
    def __init__(self) -> None:
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self, device: torch.device) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    @property
    def started(self) -> bool:
        return bool(self._marks)

    def laps(self) -> list[float | None]:
        """Seconds between the marks; waits for the GPU."""
        return [_seconds(before, after) for before, after in pairwise(self._marks)]


def _seconds(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float | None:
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    if isinstance(before, float) or isinstance(after, float):
        return None
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
