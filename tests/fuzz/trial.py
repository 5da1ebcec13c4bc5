"""One configuration through the backend, and what is to be said of it."""

from __future__ import annotations

import copy
import dataclasses
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jenga_compile.errors import AttentionNotCarved
from jenga_compile.kernels.knobs import Knobs
from jenga_compile.sites import Report
from tests.fuzz.configuration import DTYPES, Configuration
from tests.fuzz.oracle import Call, complaints, is_carved, plain_output, recorded_calls
from tests.fuzz.small_dit import SmallDiT, build, inputs
from tests.tolerance import assert_rounding

Verdict = Literal["ok", "wrong", "dense", "gathers", "crash"]
"""Numbers outside their budget; a site not as expected; more gathers for more layers; an exception."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    configuration: Configuration
    verdict: Verdict
    what: str = ""
    carved: int = 0
    left: int = 0
    gathers: tuple[int, int] = (0, 0)
    reordered: int = 0
    seconds: float = 0.0


class Failure(Exception):
    """A trial that did not go as it must."""

    def __init__(self, verdict: Verdict, what: str) -> None:
        super().__init__(what)
        self.verdict, self.what = verdict, what


def run(c: Configuration) -> Outcome:
    """Compile and compare; never raises."""
    started = time.process_time()
    torch._dynamo.reset()
    reports: list[Report] = []
    try:
        with warnings.catch_warnings(), torch.inference_mode() if c.inference_mode else torch.no_grad():
            warnings.simplefilter("ignore")
            _try(c, reports)
            _compare_gathers(c, reports[0])
        verdict, what = "ok", ""
    except Failure as failure:
        verdict, what = failure.verdict, failure.what
    except Exception as error:
        verdict, what = _crash(error)
    report = reports[0] if reports else Report()
    return Outcome(
        configuration=c,
        verdict=verdict,
        what=what,
        carved=report.carved,
        left=report.left,
        gathers=(report.gathers_in, report.gathers_out),
        reordered=sum(site.reordered for site in report.sites),
        seconds=time.process_time() - started,
    )


def _crash(error: Exception) -> tuple[Verdict, str]:
    inner = getattr(error, "inner_exception", error)
    if isinstance(inner, AttentionNotCarved):
        return "dense", str(inner)
    frames = traceback.extract_tb(inner.__traceback__)
    where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return "crash", f"{type(inner).__name__}: {' '.join(str(inner).split())[:300]}{where}"


def _try(c: Configuration, reports: list[Report]) -> None:
    model = build(c)
    knobs = Knobs(1.0, 0.0) if c.live_knobs else None
    compiled = compile_model(c, model, reports, knobs)
    for own in [c] if c.second_grid is None else [c, dataclasses.replace(c, grid=c.second_grid)]:
        given = inputs(c, own.grid)
        if knobs is not None:
            knobs.keep, knobs.cutoff = 1.0, 0.0
            _call(dataclasses.replace(own, keep=1.0), model, compiled, given, reports)
            knobs.keep, knobs.cutoff = c.keep, c.cutoff
        _call(own, model, compiled, given, reports)


def _call(
    c: Configuration,
    model: SmallDiT,
    compiled: Callable[..., Tensor],
    given: dict[str, Any],
    reports: Sequence[Report],
) -> None:
    with recorded_calls() as calls, _autocast(c):
        actual = compiled(**given)
    # One graph may serve both grids; its report shows the first.
    wrong = complaints(c, reports[-1]) if len(reports) > 1 or c.grid == model.c.grid else []
    if wrong:
        raise Failure("dense", "; ".join(wrong))
    _compare(c, model, given, actual, calls)


def compile_model(
    c: Configuration, model: SmallDiT, reports: list[Report], knobs: Knobs | None = None
) -> Callable[..., Tensor]:
    options: dict[str, Any] = {
        "curve": c.curve,
        "min_blocks": c.min_blocks,
        "strict": c.strict and is_carved(c) and not c.refiner,
        "inner": c.inner,
        "on_report": reports.append,
    }
    if c.blocks is not None:
        options["blocks"] = c.block_mask()
    else:
        options["adjacency"] = c.adjacency
    if knobs is not None:
        options["knobs"] = knobs
    elif c.blocks is None:
        options |= {"keep": c.keep, "cutoff": c.cutoff}
    if c.grid_given:
        options["grid"] = c.grid
        options["text"] = c.side if c.is_joint and not c.registers else None
    return torch.compile(model, backend="jenga", fullgraph=True, dynamic=c.second_grid is not None, options=options)


def _compare(c: Configuration, model: SmallDiT, given: dict[str, Any], actual: Tensor, calls: Sequence[Call]) -> None:
    with _autocast(c):
        baseline = plain_output(c, model, given, calls)
    truth = plain_output(c, *_as_type(torch.float64, model, given), calls)
    if c.dtype == "float64":
        rough = plain_output(c, *_as_type(torch.float32, model, given), calls)
        baseline = truth + (rough - truth) * (torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps)
    try:
        assert_rounding(actual, truth=truth, baseline=baseline, values=baseline)
    except AssertionError as error:
        raise Failure("wrong", str(error).split("\n")[0] or "not finite") from error


def _autocast(c: Configuration) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=c.autocast)


def _as_type(dtype: torch.dtype, model: SmallDiT, given: dict[str, Any]) -> tuple[SmallDiT, dict[str, Any]]:
    """Model and inputs in another type; tables of angles keep theirs."""
    own = DTYPES[model.c.dtype]
    cast = {name: x.to(dtype) if x.dtype == own and name != "angles" else x for name, x in given.items()}
    return copy.deepcopy(model).to(dtype), cast


def _compare_gathers(c: Configuration, report: Report) -> None:
    """A third layer must not cost gathers; asked of every eighth seed. With one layer, another plan may be cheapest.

    Not asked where every layer views its tokens frame by frame: a curve through several frames does not commute.
    """
    by_frame = c.modulation == "frame"
    if c.seed % 8 or c.layers == 1 or c.second_grid is not None or not report.carved or by_frame:
        return
    torch._dynamo.reset()
    deeper = dataclasses.replace(c, layers=c.layers + 1)
    reports: list[Report] = []
    given = inputs(deeper, deeper.grid)
    with _autocast(c):
        compile_model(deeper, build(deeper), reports)(**given)
    before, after = ((found.gathers_in, found.gathers_out) for found in (report, reports[0]))
    if after[0] > before[0] or after[1] > before[1]:
        raise Failure("gathers", f"{before} gathers with {c.layers} layers, {after} with one more")
