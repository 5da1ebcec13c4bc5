"""The command `python -m tests.fuzz`: a progress line, then a table of failures; it exits with 1 if there were any."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

import torch

from tests.fuzz.configuration import draw
from tests.fuzz.shrink import shrink
from tests.fuzz.trial import VERDICTS, Outcome, run

_LONGEST = 180
"""Seconds after which a trial counts as a crash."""

_TRIALS_A_PROCESS = 100
"""After which a process is replaced: compilers leave memory behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every trial went well."""
    options = _parser().parse_args(arguments)
    seeds = [options.only] if options.only is not None else range(options.seed, options.seed + options.count)
    started = time.monotonic()
    outcomes = list(_progress(_outcomes(seeds, options.jobs), len(seeds)))
    failed = [outcome for outcome in outcomes if outcome.verdict != "ok"]
    if options.shrink:
        _prepare()
        failed = [shrink(outcome) for outcome in failed]
    print(summary(outcomes, time.monotonic() - started))
    for outcome in failed:
        print(f"\n{outcome.configuration.seed:>8}  {outcome.verdict:8}  {outcome.what}\n{outcome.configuration}")
    return 1 if failed else 0


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Verdicts, and what the trials have met."""
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    carved, left, reordered = (sum(getattr(o, name) for o in outcomes) for name in ("carved", "left", "reordered"))
    dropping = sum(not o.configuration.is_lossless and o.carved > 0 for o in outcomes)
    return (
        f"{len(outcomes)} configurations in {seconds:.0f} s: "
        + ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
        + f"; sites: {carved} carved, {reordered} of them reordered outside, {left} left as expected"
        + f"; {dropping} configurations drop blocks"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random small DiTs through the backend.")
    parser.add_argument("--count", type=int, default=100, help="configurations to try (100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one (0); the others follow")
    parser.add_argument("--only", type=int, help="try the configuration of this seed alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--shrink", action="store_true", help="look for the plainest configuration that fails alike")
    return parser


def _outcomes(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        _prepare()
        yield from map(_trial, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_prepare, maxtasksperchild=_TRIALS_A_PROCESS) as pool:
        yield from pool.imap_unordered(_trial, seeds)


def _prepare() -> None:
    torch.set_num_threads(1)
    gc.set_threshold(100_000, 20, 20)
    signal.signal(signal.SIGALRM, _out_of_time)


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"not done after {_LONGEST} s")


def _trial(seed: int) -> Outcome:
    signal.alarm(_LONGEST)
    try:
        return run(draw(seed))
    finally:
        signal.alarm(0)


def _progress(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """One line that is written over and over; failures leave theirs at once."""
    verdicts: Counter[str] = Counter()
    for done, outcome in enumerate(outcomes, start=1):
        verdicts[outcome.verdict] += 1
        if outcome.verdict != "ok":
            print(f"\r{outcome.configuration.seed:>8}  {outcome.verdict:8}  {outcome.what[:200]}", file=sys.stderr)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        print(f"\r{done} of {total}: {counts}   ", end="", file=sys.stderr, flush=True)
        yield outcome
    print(file=sys.stderr)
