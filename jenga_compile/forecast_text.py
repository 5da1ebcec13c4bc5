"""A forecast as tables for people, at most 120 columns wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

from jenga_compile.files import write_text
from jenga_compile.forecast import Forecast, Request, Stage, forecast
from jenga_compile.models.catalogue import CATALOGUE
from jenga_compile.presets import STEPS
from jenga_compile.sites import Report, Site, amount

WIDTH = 120


def run(request: Request) -> str:
    """The forecast as tables, or as JSON where that is to be printed; writes the JSON file that was asked for."""
    made = forecast(request)
    if request.json is None:
        return as_text(made)
    if str(request.json) == "-":
        return made.to_json()
    write_text(request.json, made.to_json() + "\n")
    return f"{as_text(made)}\n\nwrote {request.json}"


def listed() -> str:
    """The catalogue as a table."""
    rows = [("model", "transformer", "height x width", "frames", "grid", "tokens", "text")]
    for entry in CATALOGUE.values():
        grid = entry.sizes(*entry.size, entry.frames).grid
        sizes = ("x".join(map(str, entry.size)), str(entry.frames), str(grid), f"{grid.tokens:,}", f"{entry.text:,}")
        rows.append((entry.name, entry.transformer, *sizes))
    return "\n".join(table(rows, right=(3, 5, 6)))


def as_text(made: Forecast) -> str:
    """Model, stages, sites and what is saved."""
    blocks: list[list[str]] = [_head(made)]
    if made.request.plan is not None:
        blocks.append(_stage_table(made))
    explained: list[Report] = []
    for stage in made.stages:
        if stage.report not in explained:
            explained.append(stage.report)
            blocks += _site_tables(stage, titled=made.stages[0].report != made.stages[-1].report)
    blocks.append(_total(made))
    return "\n\n".join("\n".join(block) for block in blocks)


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows in aligned columns, those of `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _head(made: Forecast) -> list[str]:
    request, last = made.request, made.stages[-1]
    depth = "" if request.layers is None else f", cut to {_count(request.layers, 'block')} of each kind"
    kind = "image" if request.entry.frames == 1 else "video"
    what = "one image" if kind == "image" else _count(request.count, "frame")
    at_most = "at most " if request.entry.sizes_from_data else ""  # the model drops what is padding
    batch = "" if request.batch == 1 else f", {request.batch} samples a call"
    return [
        f"{request.entry.name}: {request.entry.transformer}, {made.parameters / 1e9:.3g} B parameters{depth}",
        f"{what} of {_pixels(last)}: grid {last.grid}, {last.grid.tokens:,} {kind} tokens in "
        f"{last.grid.blocks():,} blocks, {at_most}{request.entry.text:,} text tokens{batch}",
    ]


def _stage_table(made: Forecast) -> list[str]:
    header = ("stage", "pixels", "grid", "tokens", "keep", "cutoff", "calls", "density", "dense call", "carved call")
    rows = [
        (
            str(number),
            _pixels(stage),
            str(stage.grid),
            f"{stage.grid.tokens:,}",
            f"{stage.carving.keep:g}",
            f"{stage.carving.cutoff:g}",
            str(stage.calls),
            _share(stage.carved, stage.dense),
            amount(stage.dense),
            amount(stage.carved),
        )
        for number, stage in enumerate(made.stages, start=1)
    ]
    calls = sum(stage.calls for stage in made.stages)
    title = f"preset {made.request.preset}: the transformer runs in {calls} of {STEPS} steps"
    return [title, *table([header, *rows], right=range(3, len(header)))]


def _site_tables(stage: Stage, *, titled: bool) -> list[list[str]]:
    where = f" at {_pixels(stage)}" if titled else ""
    groups = group(stage.report)
    return [
        lines
        for lines in (
            _carved_table(stage, [pair for pair in groups if pair[1][0].decision == "carved"], where),
            _left_table([pair for pair in groups if pair[1][0].decision == "left"], where),
        )
        if lines
    ]


def _carved_table(stage: Stage, groups: list[tuple[str, list[Site]]], where: str) -> list[str]:
    if not groups:
        return []
    header = (f"carved{where}", "sites", "heads", "tokens", "text", "grid", "curve", "density", "dense", "carved")
    rows = [
        (
            path,
            str(len(sites)),
            f"{site.heads}x{site.head_dim}",
            f"{site.queries:,}",
            f"{site.text:,}",
            "x".join(map(str, site.grid or ())),
            site.curve or "-",
            _share(stage.flops(site), site.dense_flops),
            amount(len(sites) * site.dense_flops),
            amount(len(sites) * stage.flops(site)),
        )
        for path, sites in groups
        for site in sites[:1]
    ]
    lines = _fitted([header, *rows], right=("sites", "tokens", "text", "density", "dense", "carved"))
    notes = [line for note in stage.report.gathered_apart for line in textwrap.wrap(note, WIDTH)]
    return [*lines, f"gathers of tokens: {stage.report.gathers_in} in, {stage.report.gathers_out} out", *notes]


def _fitted(rows: Sequence[Sequence[str]], right: Collection[str]) -> list[str]:
    """The table without the columns that it has no room for: the curve first, then the grid, which the head has too."""
    lines: list[str] = []
    for left_out in ((), ("curve",), ("curve", "grid")):
        shown = [place for place, name in enumerate(rows[0]) if name not in left_out]
        placed = [number for number, place in enumerate(shown) if place and rows[0][place] in right]
        lines = table([[row[place] for place in shown] for row in rows], right=placed)
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _left_table(groups: list[tuple[str, list[Site]]], where: str) -> list[str]:
    if not groups:
        return []
    rows = [(path, str(len(sites)), amount(len(sites) * sites[0].dense_flops), "") for path, sites in groups]
    lines = table([(f"left dense{where}", "sites", "dense", "reason"), *rows], right=(1, 2))
    column = lines[0].index("reason")
    for line, (_, sites) in zip(lines[1:], groups, strict=True):
        told = textwrap.wrap(sites[0].reason, max(WIDTH - column, 30))
        lines[lines.index(line)] = ("\n" + " " * column).join([line.ljust(column) + told[0], *told[1:]])
    return lines


def _total(made: Forecast) -> list[str]:
    preset = made.request.preset
    where = "attention of a call" if preset is None else f"attention in {STEPS} steps, a call each"
    if not any(stage.report.carved for stage in made.stages):
        return [f"{where}: {amount(made.dense)}; nothing is carved, for the reasons above"]
    how = f"at keep {made.request.carving.keep:g}" if preset is None else f"with {preset}"
    return [
        f"{where}: {amount(made.dense)} dense, about {amount(made.carved)} {how}, {made.dense / made.carved:.1f}x less",
        "density: the kept blocks and those that touch, taken as independent; the cutoff can only add to it",
    ]


def group(report: Report) -> list[tuple[str, list[Site]]]:
    """Sites that differ in nothing but the number of their layer, under one path: `blocks.0-39.attn1`."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in report.sites:
        alike = (_NUMBER.sub("#", site.path), site.decision, site.reason, site.batch, site.heads, site.head_dim)
        groups.setdefault((*alike, site.queries, site.keys, site.grid, site.video, site.curve), []).append(site)
    return [(_joined([site.path for site in sites]), sites) for sites in groups.values()]


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def _joined(paths: Sequence[str]) -> str:
    columns = zip(*(map(int, _NUMBER.findall(path)) for path in paths), strict=True)
    ranges = iter([_ranges(sorted(set(column))) for column in columns])
    return _NUMBER.sub(lambda _: next(ranges), paths[0])


def _ranges(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5] -> "0-2,5"`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _pixels(stage: Stage) -> str:
    return "x".join(map(str, stage.pixels))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
