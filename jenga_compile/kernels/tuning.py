"""Which variant of a kernel is the fastest on this GPU: measured once, checked before it is trusted, kept on disk.

A compiler may accept a variant and miscompile it, so each one first has to give the right answer on a small problem.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import triton

from jenga_compile.errors import JengaError, NoKernelWorks
from jenga_compile.files import write_text
from jenga_compile.kernels.launch import on_device

_log = logging.getLogger(__name__)
_RUNS = 7
"""Timed calls of each candidate; the median counts."""

_HEAD_START = 4_000_000
"""Cycles of the GPU, 2 ms at 2 GHz."""

C = TypeVar("C")


def forbidden(device: torch.device) -> bool:
    """Whether nothing may be measured now: a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def remembered(what: str, *, source: Path, candidates: Sequence[C], device: torch.device) -> C | None:
    """What `fastest` has on disk, with nothing measured; None if it has nothing."""
    names = [repr(candidate) for candidate in candidates]
    known = _read(_file(what, source, names, device))
    return candidates[names.index(known)] if known in names else None


def fastest(
    what: str,
    *,
    source: Path,
    candidates: Sequence[C],
    run: Callable[[C], Callable[[], torch.Tensor]],
    truth: torch.Tensor,
    device: torch.device,
    allowed: float | None = None,
) -> C:
    """The candidate that gives `truth` in the least time, from disk if it was measured before.

    Args:
        what: names the problem.
        source: file of the kernel; the choice is forgotten when it or another module beside it changes.
        run: makes a call out of a candidate.
        allowed: largest relative error; None: what rounding to the dtype of the result explains.

    Raises:
        NoKernelWorks: no candidate runs and is right.
        OutOfMemoryError: there is no memory to try them.
    """
    known = remembered(what, source=source, candidates=candidates, device=device)
    if known is not None:
        return known
    names = [repr(candidate) for candidate in candidates]
    times: dict[str, float] = {}
    why: dict[str, str] = {}
    with on_device(device):
        for name, candidate in zip(names, candidates, strict=True):
            try:
                call = run(candidate)
                error = _error(call(), truth)
                if error <= (_allowed(call().dtype) if allowed is None else allowed):
                    times[name] = _time(call)
                else:
                    why[name] = f"relative error {error:.2g}"
            except torch.OutOfMemoryError:
                raise  # says nothing about the candidate
            except Exception as failure:  # a compiler's or driver's, of any class
                why[name] = (str(failure).splitlines() or [type(failure).__name__])[0]
    for name, reason in why.items():
        _log.info("%s: %s is left out: %s", what, name, reason)
    if not times:
        raise NoKernelWorks(what=what, device=device, why=next(iter(why.values())))
    best = min(times, key=lambda name: times[name])
    for name, milliseconds in sorted(times.items(), key=lambda item: item[1]):
        _log.info("%s: %s takes %.3f ms", what, name, milliseconds)
    _write(_file(what, source, names, device), best)
    return candidates[names.index(best)]


def _error(actual: torch.Tensor, truth: torch.Tensor) -> float:
    error = float((actual.float() - truth).norm() / truth.norm())
    return error if error == error else float("inf")


def _allowed(dtype: torch.dtype) -> float:
    """A unit in the last place, four times what rounding P costs; of fp32 sums, a few dozen."""
    eps = torch.finfo(dtype).eps
    return 64 * eps if dtype == torch.float32 else eps


def _time(call: Callable[[], object]) -> float:
    """Median milliseconds of the GPU's work."""
    times: list[float] = []
    for _ in range(_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # The GPU waits until all launches are queued: else a call shorter than its launches take is timed as those.
        torch.cuda._sleep(_HEAD_START)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _file(what: str, source: Path, names: Sequence[str], device: torch.device) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "jenga_compile"
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    code = (file.read_text() for file in sorted(source.parent.glob("*.py")))
    about = (what, *code, *names, chip, triton.__version__)
    return root / f"{hashlib.sha256('|'.join(about).encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text())["fastest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, name: str) -> None:
    """A cache that cannot be written costs time in the next process, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"fastest": name}))
    except (OSError, JengaError) as error:
        _log.info("cannot remember the fastest kernel in %s: %s", file, error)
