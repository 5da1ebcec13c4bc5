"""The figures in the README, made from `results/`, so that the two cannot differ.

python -m benchmarks.tables      rewrites the README's tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- numbers: python -m benchmarks.tables -->\n", "<!-- end of numbers -->\n"
KERNELS_BEGIN, KERNELS_END = "<!-- kernels: python -m benchmarks.tables -->\n", "<!-- end of kernels -->\n"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for begin, end, made in ((BEGIN, END, numbers()), (KERNELS_BEGIN, KERNELS_END, kernels())):
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + made + end + after
    readme.write_text(text)


def numbers() -> str:
    """The table of measured figures, in Markdown."""
    rows = [
        *_cpu_attention(_result("cpu_attention")),
        *_closeness(_result("zoo_carving")),
        *_judge(_result("zoo_judge")),
        *_compile(_result("compile")),
    ]
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]) + "\n"


_SHOWN = (0.1, 0.2, 0.5)
"""Of the densities that are measured, those in the README."""

_QUIET = 0.05


def kernels() -> str:
    """What `jenga bench kernels` wrote, in Markdown; that there is nothing yet, where there is no file."""
    if not _file("kernels").exists():
        return "Not measured yet.\n"
    return kernels_table(_result("kernels"), _SHOWN)


def kernels_table(result: Any, densities: tuple[float, ...] | None = None) -> str:
    """A row for each site and density, of lists that the selection made; of `densities` alone, if there are any."""
    about, protocol = result["environment"], result["protocol"]
    machine = about.get("gpu", about["cpu"])
    head = (
        f"{machine}, {protocol['kind']}, torch {about['torch']}, Triton {about['triton']}, {result['inputs']['dtype']}."
    )
    columns = (
        "site",
        "density",
        "attention",
        "in fp8",
        "portable",
        "sparse rival",
        "dense rival",
        "whole site against it",
        "selection's share",
    )
    shown = [case for case in result["cases"] if case["mask"] == "structured"]
    shown = [case for case in shown if densities is None or case["density_wanted"] in densities]
    lines = [columns, ("---",) * len(columns), *map(_kernels_row, shown)]
    what = f"Milliseconds (TFLOP/s); ± half the range of the rounds where that is over {_QUIET:.0%} of the time."
    return f"{head} {what}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _kernels_row(case: Any) -> tuple[str, ...]:
    rows, dense = case["rows"], case["fastest_dense"]
    timed = {name: row for name, row in rows.items() if row["group"] == "sparse" and row["ms"] is not None}
    sparse = min(timed, key=lambda name: timed[name]["ms"], default=None)
    faster, share = case["site_times_faster_than_it"], case["selection_share_of_site"]
    return (
        case["shape"]["name"],
        f"{case['density']:.3f}",
        _kernel_time(rows, "jenga auto"),
        _kernel_time(rows, "jenga fp8"),
        _kernel_time(rows, "jenga portable"),
        "-" if sparse is None else f"{sparse} {_kernel_time(rows, sparse)}",
        "-" if dense is None else f"{dense} {_kernel_time(rows, dense)}",
        "-" if faster is None else f"{faster:.2f}x",
        "-" if share is None else f"{share:.1%}",
    )


def _kernel_time(rows: Any, name: str) -> str:
    row = rows.get(name)
    if row is None or row["ms"] is None:
        return "-"
    half = row["spread"] / 2
    noise = f" ±{half:.0%}" if half > _QUIET else ""
    return f"{row['ms']:.2f} ({row['tflops']:,.0f}){noise}"


def _file(name: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"{name}.json"


def _result(name: str) -> Any:
    return json.loads(_file(name).read_text())


def _cpu_attention(result: Any) -> list[tuple[str, str]]:
    shape, rows, machine = result["shape"], result["rows"], result["environment"]
    where = f"{machine['threads']} threads of an {machine['cpu']}"
    sizes = f"{shape['grid']} video tokens + {shape['text']} text, {shape['heads']} heads x {shape['head_dim']}"
    whole = rows["carved_attention"]
    return [
        (
            f"selection and attention at density {rows['carved']['density']:.2f} against dense SDPA, {sizes}, "
            f"{shape['dtype']}, {where}",
            f"{rows['carved']['times_faster']:.2f}x faster",
        ),
        (
            f"the whole carved site there: reorder, selection, `keep` 0.2 with adjacency (density "
            f"{whole['density']:.2f}), order undone",
            f"{whole['times_faster']:.2f}x faster",
        ),
    ]


def _closeness(result: Any) -> list[tuple[str, str]]:
    values = {name: f"{found['median']:.1f} dB" for name, found in result["psnr_db"].items()}
    another = values.pop("dense, another seed")
    return [
        (
            "packaged model, carved against dense at the same seed, PSNR, median of eight prompts",
            ", ".join(f"{value} at {name.replace('keep', '`keep`')}" for name, value in values.items()),
        ),
        ("two dense clips of one prompt at different seeds, to compare", another),
    ]


def _judge(result: Any) -> list[tuple[str, str]]:
    """Both halves of the prompts, seen and unseen in training, together."""
    model = result["model"]["guidance 3"]
    halves = (model["seen"], model["unseen"])
    found = {}
    for what in ("object", "colour", "motion", "texture"):
        hits, clips = (sum(half[what][count] for half in halves) for count in ("hits", "clips"))
        chance = halves[0][what]["chance"] * clips
        found[what] = f"{what} {hits} of {clips} (chance {chance:.0f})"
    return [
        (
            "packaged model's dense clips (guidance 3) in which a classifier reads what the prompt said",
            ", ".join(found.values()),
        )
    ]


def _compile(result: Any) -> list[tuple[str, str]]:
    """Shares within one process, since seconds of a shared machine are no results."""
    layers = sum(result["depth"].values())
    shares = {}
    for name, (run, *_) in ((name, result["runs"]["jenga"][name]) for name in ("cold", "warm")):
        shares[name] = sum(run["passes"].values()) / run["compile_s"]
    return [
        (
            f"the passes' share of compiling {result['model']}, {layers} layers at narrow width, Inductor on a CPU",
            ", ".join(f"{share:.1%} {name}" for name, share in shares.items()),
        )
    ]


if __name__ == "__main__":
    main()
