"""What `jenga bench compile` has measured as tables for people, at most 120 columns wide."""

from __future__ import annotations

from jenga_compile.bench.compile import BACKENDS, CACHES, GOAL, SHALLOW, Request, Result, measure
from jenga_compile.bench.compile_process import THREADS, Record
from jenga_compile.files import write_text
from jenga_compile.forecast_text import table


def run(request: Request) -> str:
    """Measure, write the JSON file that was asked for, and return the tables."""
    made = measure(request)
    if request.json is None:
        return as_text(made)
    write_text(request.json, made.to_json() + "\n")
    return f"{as_text(made)}\n\nwrote {request.json}"


def as_text(made: Result) -> str:
    """Model and machine, compilation, passes, and what makes new graphs."""
    blocks = [_head(made), _compile_table(made), _pass_table(made), _graph_table(made)]
    return "\n\n".join("\n".join(block) for block in blocks)


def _head(made: Result) -> list[str]:
    request, about = made.request, made.environment
    depth = ", ".join(f"{name} {count}" for name, count in request.depth.items())
    height, width = request.pixels
    grid = request.entry.sizes(*request.pixels, request.count).grid
    return [
        f"{request.entry.name}, made narrow: {depth}",
        f"{request.count} frames of {height}x{width}: grid {grid}, float32, {THREADS} thread, runs {request.runs}",
        f"{about['cpu']}, {about['cores']} cores (load {about['load_1min']}), torch {about['torch']}",
    ]


def _compile_table(made: Result) -> list[str]:
    rows = [
        ("backend", "cache", "compile", "CPU", "a call", "graphs", "FX cache", "carved", "gathers", "passes", "share")
    ]
    for backend in BACKENDS:
        for cache in CACHES:
            first = made.runs[backend][cache][0]
            ours = backend == "jenga"
            rows.append(
                (
                    backend,
                    cache,
                    f"{made.median(backend, cache, 'compile_s'):.1f} s",
                    f"{made.median(backend, cache, 'cpu_s'):.1f} s",
                    f"{1e3 * made.median(backend, cache, 'call_s'):.0f} ms",
                    str(first.graphs[0]),
                    _cache_found(first),
                    f"{first.carved} of {first.seen}" if ours else "-",
                    str(first.gathers) if ours else "-",
                    f"{made.median(backend, cache, 'passes_s'):.2f} s" if ours else "-",
                    f"{made.share(cache):.1%}" if ours else "-",
                )
            )
    return [
        *table(rows, right=(2, 3, 4, 5, 7, 8, 9, 10)),
        "CPU: of the first call, without the C++ compiler's processes",
    ]


def _cache_found(record: Record) -> str:
    found = ((record.fxgraph_hits, "hit"), (record.fxgraph_misses, "miss"))
    return ", ".join(f"{count} {name}" for count, name in found if count) or "not asked"


def _pass_table(made: Result) -> list[str]:
    """Of one run: the shares of different runs do not add up."""
    cold = made.runs["jenga"]["cold"][0]
    rows = [("pass", "seconds", "share")]
    rows += [(name, f"{took:.3f}", f"{took / cold.compile_s:.2%}") for name, took in cold.passes.items()]
    rows.append(("all passes", f"{cold.passes_s:.3f}", f"{cold.passes_s / cold.compile_s:.2%}"))
    share = made.share("cold")
    verdict = "kept" if share <= GOAL else "missed"
    goal = f"goal: at most {GOAL:.0%} of a cold compilation: {verdict}"
    return ["the first cold run:", *table(rows, right=(1, 2)), goal]


def _graph_table(made: Result) -> list[str]:
    sizes = [f"{height}x{width}" for height, width in made.request.sizes]
    rows = [("backend", "torch.compile", *sizes)]
    for backend, modes in made.resolutions.items():
        rows += [(backend, mode, *map(str, graphs)) for mode, graphs in modes.items()]
    records = [record for records in made.runs["jenga"].values() for record in records]
    graphs = max(record.knob_graphs or 0 for record in records)
    changed = all(record.knob_changed for record in records)
    return [
        f"graphs after each resolution, {SHALLOW} block of each kind, counted without Inductor:",
        *table(rows, right=range(2, 2 + len(sizes))),
        f"keep set to another value: {graphs} new graphs, the output {'changes' if changed else 'STAYS AS IT WAS'}",
    ]
