"""`jenga explain` as a user types it: known models at real size, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jenga_compile import forecast_text
from jenga_compile.config import Carving
from jenga_compile.forecast import Forecast, Request, Stage, forecast
from jenga_compile.forecast_text import WIDTH, as_text, group
from jenga_compile.grid import TokenGrid
from jenga_compile.models.catalogue import CATALOGUE
from jenga_compile.models.entry import Entry
from jenga_compile.sites import Report, Site, amount
from tests.command import assert_refused, exit_code

JOINT = {"hunyuan-video", "hunyuan-video-i2v-concat", "hunyuan-video-i2v-replace", "toy", "cogvideox-2b", "sd3-medium"}
JOINT |= {"cogvideox-5b", "cogvideox1.5-5b", "sd3.5-medium", "sd3.5-large", "qwen-image", "flux-dev", "mochi"}
JOINT |= {"hunyuan-video-1.5"}
"""The text stands on the axis of the video."""

ONE_A_CALL = {(entry.transformer, entry.call): entry for entry in reversed(CATALOGUE.values())}
"""One model for each class and way to call it."""

BAD: dict[str, tuple[list[str], str]] = {
    "no model": ([], "name a model, or --list them"),
    "list": (["--list", "nonsense"], "--list names all models: leave out 'nonsense'"),
    "model": (["hunyuan-vido"], "the nearest is 'hunyuan-video'. `jenga explain --list` names them all"),
    "height": (["hunyuan-video", "--size", "700x1280"], "height=700 is not a positive multiple of the model's patch"),
    "near": (["hunyuan-video", "--size", "720x1281"], "16 pixels. Use 1280 or 1296"),
    "zero": (["toy", "--size", "0x64"], "height=0 is not a positive multiple"),
    "frames": (["wan2.1-t2v-14b", "--frames", "80"], "for 80 frames. Use 77 or 81."),
    "no frames": (["toy", "--frames", "-3"], "for -3 frames. Use 2."),
    "image": (["flux-dev", "--frames", "5"], "for 5 frames. Use 1."),
    "size": (["toy", "--size", "64"], "'64' is not of the form HEIGHTxWIDTH"),
    "negative": (["toy", "--size", "64x-4"], "'64x-4' is not of the form"),
    "preset": (["toy", "--preset", "trubo"], "no preset 'trubo'; the nearest is 'turbo'"),
    "both": (["toy", "--preset", "turbo", "--keep", "0.5"], "keep=0.5 does nothing beside --preset"),
    "both again": (["toy", "--preset", "turbo", "--cutoff", "0"], "cutoff=0.0 does nothing beside --preset"),
    "keep": (["toy", "--keep", "0"], "keep=0.0 is outside (0, 1]"),
    "cutoff": (["toy", "--cutoff", "1"], "cutoff=1.0 is outside [0, 1)"),
    "layers": (["toy", "--layers", "0"], "layers 0 is outside [1, 5]"),
    "deep": (["toy", "--layers", "6"], "layers 6 is outside [1, 5]"),
    "batch": (["toy", "--batch", "0"], "batch 0 is outside [1, inf)"),
    "folder": (["toy", "--json", "nowhere/a.json"], "'nowhere' is no folder"),
    "is folder": (["toy", "--json", "."], "it is a folder"),
    "stage": (["toy", "--size", "4x4", "--preset", "turbo"], "height=0 is not a positive multiple"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, text = BAD[name]
    assert_refused(["explain", *arguments], text, tmp_path, capsys)


@pytest.mark.parametrize("entry", ONE_A_CALL.values(), ids=lambda entry: entry.name)
def test_every_kind_of_call_is_explained_at_real_size(entry: Entry) -> None:
    made = forecast(Request(model=entry.name, layers=1))
    (stage,) = made.stages
    report = stage.report
    assert report.seen == report.carved + report.left > 0
    assert stage.carved <= stage.dense
    assert report.carved
    tokens = stage.grid.tokens + (entry.text if entry.name in JOINT else 0)
    assert max(site.queries for site in report.sites) == tokens or entry.name == "helios"
    assert all(site.grid == stage.grid.shape for site in report.sites if site.decision == "carved")
    assert all(len(line) <= WIDTH for line in as_text(made).splitlines())


def test_a_call_is_told_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "hunyuan-video", "--layers", "2", "--keep", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "125 frames of 720x1280: grid 32x45x80, 115,200 video tokens in 900 blocks, 256 text tokens" in printed
    assert "cut to 2 blocks of each kind" in printed
    for path in ("transformer_blocks.0-1.attn ", "single_transformer_blocks.0-1.attn "):
        (line,) = [line for line in printed.splitlines() if line.startswith(path)]
        assert line.split()[1:6] == ["2", "24x128", "115,456", "256", "32x45x80"]
        assert line.endswith("328 TFLOP  72.1 TFLOP")
    assert "refiner_blocks.0-1.attn" in printed
    assert all(len(line) <= WIDTH for line in printed.splitlines())


def test_a_preset_is_told_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "wan2.1-t2v-1.3b", "--layers", "1", "--preset", "three_stage"]) == 0
    printed = capsys.readouterr().out
    assert "preset three_stage: the transformer runs in 23 of 50 steps" in printed
    for row in ("1      240x416", "2      352x624", "3      480x832"):
        assert row in printed
    assert printed.count("left dense at") == printed.count("carved at") == 3
    assert all(len(line) <= WIDTH for line in printed.splitlines())


def test_one_resolution_is_explained_once() -> None:
    made = forecast(Request(model="toy", layers=1, preset="base"))
    first, second = made.stages
    assert first.report is second.report
    assert first.carved > second.carved
    assert as_text(made).count("left dense") == 1


def test_a_wide_table_leaves_out_what_its_head_has() -> None:
    row = {"decision": "carved", "grid": (32, 45, 80), "video": (0, 115200), "queries": 115200, "keys": 115200}
    sizes, grid = (720, 1280), TokenGrid(32, 45, 80)
    for length, shown in ((30, {"grid", "curve"}), (48, {"grid"}), (56, set())):
        report = Report((at("x" * length, curve="gilbert", heads=24, head_dim=128, **row),))
        made = Forecast(Request(model="hunyuan-video"), 1, (Stage(sizes, grid, Carving(), 1, report),))
        lines = as_text(made).splitlines()
        (header,) = [line for line in lines if line.startswith("carved")]
        assert {"grid", "curve"} & set(header.split()) == shown
        assert all(len(line) <= WIDTH for line in lines)


def test_the_totals_are_those_of_a_full_model() -> None:
    """Attention FLOPs of HunyuanVideo's 60 layers at 720p: 9.828 PFLOP a dense step, 35.2 in all with turbo."""
    made = forecast(Request(model="hunyuan-video", layers=1, preset="turbo"))
    per_layer = 60 / 2
    assert per_layer * made.stages[1].dense == pytest.approx(9.828e15, rel=1e-3)
    assert per_layer * made.dense == pytest.approx(491.4e15, rel=1e-3)
    assert per_layer * made.carved == pytest.approx(35.17e15, rel=0.02)


def test_json_holds_every_site_and_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.json"
    made = forecast(Request(model="toy", layers=1, batch=2, preset="base", json=file))
    monkeypatch.setattr(forecast_text, "forecast", lambda request: made)
    command = ["explain", "toy", "--layers", "1", "--batch", "2", "--preset", "base"]
    assert exit_code([*command, "--json", str(file)]) == 0
    assert capsys.readouterr().out == f"{as_text(made)}\n\nwrote {file}\n"
    assert exit_code([*command, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(file.read_text())
    assert (told["model"], told["preset"], told["batch"], told["layers"]) == ("toy", "base", 2, 1)
    assert told["expected_flops"] == sum(stage["calls"] * stage["expected_flops"] for stage in told["stages"])
    assert told["dense_flops"] == 50 * told["stages"][-1]["dense_flops"]
    for stage in told["stages"]:
        sites = stage["report"]["sites"]
        assert len(sites) == stage["report"]["seen"] == stage["report"]["carved"] + stage["report"]["left"]
        assert all(site["batch"] == 2 for site in sites)
        assert stage["dense_flops"] == sum(site["dense_flops"] for site in sites)
        assert stage["expected_flops"] == sum(site["expected_flops"] for site in sites)


def test_the_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "--list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "model"
    assert [row.split()[0] for row in rows] == list(CATALOGUE)
    assert all(len(row) <= WIDTH for row in rows)


def at(path: str, **changes: object) -> Site:
    facts = {"decision": "left", "reason": "short", "batch": 1, "heads": 1, "queries": 8, "keys": 8, "head_dim": 4}
    return Site(path=path, **(facts | changes))  # type: ignore[arg-type]


def test_sites_are_grouped_where_only_the_layer_differs() -> None:
    odd = at("blocks.3.attn1", heads=2)
    sites = [at(f"blocks.{layer}.attn{kind}") for layer in (0, 1, 2, 5) for kind in (1, 2)]
    grouped = group(Report((*sites, odd, at("final"))))
    assert [(path, len(sites)) for path, sites in grouped] == [
        ("blocks.0-2,5.attn1", 4),
        ("blocks.0-2,5.attn2", 4),
        ("blocks.3.attn1", 1),
        ("final", 1),
    ]


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOP"), (7, "7.00 FLOP"), (9.828e15, "9.83 PFLOP"), (9.996e14, "1.00 PFLOP"), (49.14e16, "491 PFLOP")],
)
def test_amounts_have_three_digits(flops: float, text: str) -> None:
    assert amount(flops) == text
