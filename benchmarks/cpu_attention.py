"""Carved against dense attention on a CPU, in one process with the same threads.

    python -m benchmarks.cpu_attention [--json benchmarks/results/cpu_attention.json] [--runs 7]

16,384 video tokens on a 16 x 32 x 32 grid and 128 of text, 6 heads of 64, fp32. Dense is
`F.scaled_dot_product_attention`; every row below it is timed in turn with it, round by round, so that what else the
machine does falls on all alike. No time is printed unless the operators agree with their references first.

    carved            block_select + block_sparse_attention on tokens in curve order, 20 % of the key blocks
    block_select      its first half alone
    carved_attention  keep 0.2 as the compiler runs it: reorder, adjacency joined, reorder back
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from jenga_compile import kernels
from jenga_compile.bench.environment import environment
from jenga_compile.block_mask import Adjacency, adjacency
from jenga_compile.curve import curve_order
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.kernels import static_masks
from jenga_compile.kernels.knobs import Knobs, lookup, make_knobs, register

GRID = TokenGrid(16, 32, 32)
CURVE: CurveKind = "gilbert"
TEXT, HEADS, DIM = 128, 6, 64
KEEP = 0.18
"""With the own block and the text block that makes 20 % of the key blocks."""

ops = torch.ops.jenga


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument("--runs", type=int, default=7, help="timed rounds, at least 5")
    args = parser.parse_args()
    with torch.inference_mode():
        result = measure(max(5, args.runs))
    if result is None:
        return 1
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(runs: int) -> dict[str, object] | None:
    """The whole result, or None where a gate is red."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, GRID.tokens + TEXT, DIM).unbind()
    own, knobs = torch.eye(GRID.blocks(), dtype=torch.bool), make_knobs(KEEP, 0.0)
    handle = register(Knobs(keep=0.2, cutoff=0.0))
    masks = static_masks.register(static_masks.StaticMasks(Adjacency()))

    def select() -> tuple[torch.Tensor, torch.Tensor]:
        return ops.block_select(q, k, own, knobs, GRID.tokens)

    def carved() -> torch.Tensor:
        return ops.block_sparse_attention(q, k, v, *select(), knobs, GRID.tokens)

    if not gate(q, k, v, own, knobs):
        return None
    rows: dict[str, Callable[[], object]] = {
        "dense": lambda: scaled_dot_product_attention(q, k, v),
        "carved": carved,
        "block_select": select,
        "carved_attention": lambda: ops.carved_attention(q, k, v, None, *GRID.shape, 0, CURVE, [], masks, handle),
    }
    times = interleaved(rows, runs)
    order = torch.cat((curve_order(GRID, CURVE), torch.arange(GRID.tokens, q.shape[2])))
    neighbours, values = adjacency(GRID, CURVE), lookup(handle, q.device)
    inside = ops.block_select(q[:, :, order], k[:, :, order], neighbours, values, GRID.tokens)
    densities = {"dense": 1.0, "carved": density(*select()), "carved_attention": density(*inside)}
    return {
        "environment": environment(),
        "shape": {"grid": str(GRID), "text": TEXT, "batch": 1, "heads": HEADS, "head_dim": DIM, "dtype": "float32"},
        "runs": runs,
        "rows": {name: row(times[name], times["dense"], densities.get(name)) for name in rows},
    }


def gate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: torch.Tensor, knobs: torch.Tensor) -> bool:
    """Lists equal the reference's on float64; the attention error is within twice the reference's own in fp32."""
    arguments = (q.double(), k.double(), own, knobs, GRID.tokens)
    lists = ops.block_select(*arguments)
    fast = ops.block_sparse_attention(q, k, v, *lists, knobs, GRID.tokens)
    with kernels.use_reference():
        defined = ops.block_select(*arguments)
        plain = ops.block_sparse_attention(q, k, v, *lists, knobs, GRID.tokens)
        truth = ops.block_sparse_attention(q.double(), k.double(), v.double(), *lists, knobs, GRID.tokens)
    unit = torch.finfo(q.dtype).eps * float(v.abs().max())
    error, allowed = (float((x.double() - truth).abs().max()) for x in (fast, plain))
    allowed = 2 * allowed + 4 * unit
    green = all(map(torch.equal, lists, defined)) and error <= allowed
    print(f"gate {'green' if green else 'RED'}: error {error:.2e} of {allowed:.2e} allowed", file=sys.stderr)
    return green


def interleaved(rows: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each row in each round, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(runs + 1):
        for name, compute in rows.items():
            start = time.perf_counter()
            compute()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def row(seconds: list[float], dense: list[float], kept: float | None) -> dict[str, object]:
    """Median, spread, and how many times faster than dense in the median round."""
    result: dict[str, object] = {
        "median_ms": round(1e3 * statistics.median(seconds), 1),
        "min_ms": round(1e3 * min(seconds), 1),
        "max_ms": round(1e3 * max(seconds), 1),
        "times_faster": round(statistics.median(d / s for d, s in zip(dense, seconds, strict=True)), 2),
    }
    return result if kept is None else result | {"density": round(kept, 4)}


def density(indices: torch.Tensor, counts: torch.Tensor) -> float:
    """Listed share of the key blocks of a video row."""
    return float(counts.double().mean()) / indices.shape[-1]


if __name__ == "__main__":
    sys.exit(main())
