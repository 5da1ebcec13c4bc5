"""`jenga bench kernels`: sites, inputs, gate, clock and what the command writes; all on a CPU."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from benchmarks.tables import kernels_table
from jenga_compile.bench import kernels as bench
from jenga_compile.bench import kernels_entry, kernels_timing
from jenga_compile.bench.kernels import DEVICES, Request
from jenga_compile.bench.kernels_case import Case, Row, measure_case
from jenga_compile.bench.kernels_entry import Kernel, never_missing
from jenga_compile.bench.kernels_gate import CAPS, Gate
from jenga_compile.bench.kernels_inputs import Inputs, Work, make_inputs, make_work
from jenga_compile.bench.kernels_ours import AUTO, KERNELS, OURS, SELECT, SITE
from jenga_compile.bench.kernels_rivals import RIVALS, quantised
from jenga_compile.bench.kernels_shapes import SHAPES
from jenga_compile.bench.kernels_text import as_text
from jenga_compile.bench.kernels_timing import Protocol, Timing, take
from jenga_compile.cli import BAD_INPUT, INTERRUPTED
from jenga_compile.config import Kernel as Provider
from jenga_compile.errors import DeviceUnavailable
from jenga_compile.forecast_text import WIDTH
from jenga_compile.models.catalogue import find_model
from tests.command import assert_refused, exit_code

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]
QUICK = ["bench", "kernels", "--device", "cpu", "--densities", "0.4", "--rounds", "1", "--reps", "1"]
ONCE = Protocol("sustained", 1, 1)

MODELS = {
    "hunyuan-video-720p": "hunyuan-video",
    "hunyuan-video-540p": "hunyuan-video",
    "hunyuan-video-360p": "hunyuan-video",
    "hunyuan-video-i2v-720p": "hunyuan-video-i2v-concat",
    "wan-1.3b-480p": "wan2.1-t2v-1.3b",
    "wan-14b-720p": "wan2.1-t2v-14b",
    "cogvideox-5b": "cogvideox-5b",
    "ltx-video": "ltx-video",
}
LENGTHS = {
    "hunyuan-video-720p": (115_200, 256),
    "hunyuan-video-540p": (63_360, 256),
    "hunyuan-video-360p": (28_160, 256),
    "wan-1.3b-480p": (32_760, 0),
    "wan-14b-720p": (75_600, 0),
    "cogvideox-5b": (17_550, 226),
    "hunyuan-video-i2v-720p": (115_200, 540),
    "ltx-video": (7_392, 0),
}

BAD: dict[str, tuple[list[str], str]] = {
    "site": (["--models", "hunyuan-video"], "no site 'hunyuan-video' to measure; did you mean 'hunyuan-video-"),
    "rival": (["--rivals", "fa3-fp9"], "no rival 'fa3-fp9' to measure; did you mean 'fa3-fp8'? Known: sdpa, "),
    "kernel": (["--kernels", "hoper"], "no kernel 'hoper' to measure; did you mean 'hopper'? Known: select, "),
    "density": (["--densities", "0.5", "0"], "density 0.0 is outside (0, 1]. Use 1"),
    "nan": (["--densities", "nan"], "density nan is outside"),
    "mask": (["--masks", "dense"], "argument --masks: invalid choice: 'dense'"),
    "rounds": (["--rounds", "0"], "rounds 0 is outside [1, inf)"),
    "reps": (["--reps", "0"], "reps 0 is outside [1, inf)"),
    "budget": (["--budget", "0"], "budget 0.0 is outside (0, inf) seconds"),
    "device": (["--device", "tpu"], "device 'tpu' is not available"),
    "folder": (["--json", "nowhere/a.json"], "'nowhere' is no folder"),
}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return make_inputs(TINY, CPU, torch.float32, "structured")


@pytest.fixture(scope="module")
def work(inputs: Inputs) -> Work:
    return make_work(inputs, 0.3, "structured")


def seen(work: Work) -> torch.Tensor:
    """The definition of the pattern: bool [H, L, L]."""
    shape = work.inputs.shape
    place = torch.arange(shape.length)
    video = shape.grid.tokens
    block = torch.where(place < video, place // 128, shape.blocks.rows + (place - video) // 128)
    table = torch.ones(shape.heads, shape.blocks.keys, shape.blocks.keys, dtype=torch.bool)
    for head in range(shape.heads):
        for row in range(shape.blocks.rows):
            table[head, row] = False
            table[head, row, work.indices[0, head, row, : work.counts[0, head, row]].long()] = True
    return table[:, block][:, :, block]


def kernel(call: Callable[[Work], torch.Tensor], **changes: Any) -> Kernel:
    facts: dict[str, Any] = {"name": "planted", "group": "ours", "sees": "ours", "missing": never_missing}
    return Kernel(**{**facts, "prepare": lambda work: lambda: call(work), **changes})


def exactly(work: Work) -> torch.Tensor:
    """Right, and computed in another order than any of ours."""
    bias = torch.zeros(seen(work).shape).masked_fill_(~seen(work), -torch.inf)
    q, k, v = (x.flip(2) for x in (work.inputs.q, work.inputs.k, work.inputs.v))
    bias = bias.flip(1, 2)
    return ((q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v).flip(2)


def with_a_block_less(work: Work) -> torch.Tensor:
    """Wrong: every row lacks its last video block."""
    less = dataclasses.replace(work, indices=work.indices.clone())
    video = (less.indices >= 0) & (less.indices < TINY.blocks.rows)
    last = video.sum(-1, keepdim=True) - 1
    less.indices.scatter_(-1, last, less.indices.gather(-1, last - 1))
    ops = torch.ops.jenga
    q, k, v = work.inputs.q, work.inputs.k, work.inputs.v
    out: torch.Tensor = ops.block_sparse_attention(
        q, k, v, less.indices, work.counts, work.knob_values, TINY.grid.tokens
    )
    return out


def in_eight_bits(work: Work) -> torch.Tensor:
    """As a kernel for e4m3 would err: by the inputs' rounding."""
    of = dataclasses.replace(work.inputs, **{name: rounded(getattr(work.inputs, name)) for name in "qkv"})
    return exactly(dataclasses.replace(work, inputs=of))


def rounded(x: torch.Tensor) -> torch.Tensor:
    eight, scale = quantised(x)
    return eight.float() * scale[..., None, None]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, text = BAD[name]
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert_refused(["bench", "kernels", *device, *arguments], text, tmp_path, capsys)


def test_without_a_gpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match=r"sees no CUDA GPU. Use one of: cpu, as in --device cpu --models tiny"):
        Request()
    assert [shape.name for shape in Request(device="cpu").shapes] == ["tiny"]
    assert DEVICES == ("cuda", "cpu")


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "tiny"])
def test_the_sites_are_those_of_the_models(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    shape, entry = SHAPES[name], find_model(MODELS[name])
    defaults = inspect.signature(getattr(diffusers, entry.transformer).__init__).parameters
    heads, dim = (entry.config.get(of, defaults[of].default) for of in ("num_attention_heads", "attention_head_dim"))
    assert (shape.heads, shape.dim) == (heads, dim)
    assert (shape.grid.tokens, shape.text) == LENGTHS[name]
    assert shape.text in (0, entry.text)
    assert shape.blocks.length == shape.length


def test_the_tiny_site_has_every_partial_block() -> None:
    assert TINY.blocks.tail
    assert TINY.text % 128
    assert TINY.text > 128


@pytest.mark.parametrize("values", ["structured", "random"])
def test_inputs_are_the_same_each_time_and_near_tokens_are_alike(values: bench.ValueKind) -> None:
    first, second = (make_inputs(TINY, CPU, torch.float32, values) for _ in range(2))
    for name in "qkv":
        x = getattr(first, name)
        assert torch.equal(x, getattr(second, name))
        assert x.shape == (1, TINY.heads, TINY.length, TINY.dim)
        assert x.transpose(1, 2).is_contiguous()
        assert 0.9 < float(x.std()) < 1.1
    video = TINY.grid.tokens
    products = first.q[0, :, :video] @ first.k[0, :, :video].mT / TINY.dim
    near, far = (products.diagonal(offset=away, dim1=1, dim2=2).mean(-1) for away in (1, 700))
    assert (near > 0.3).all()
    assert far[0].abs() < 0.1
    assert products[1].mean() > products[0].mean() > 0


@pytest.mark.parametrize("kind", ["structured", "random"])
@pytest.mark.parametrize("wanted", [0.05, 0.4, 1.0])
def test_lists_keep_the_law(inputs: Inputs, wanted: float, kind: bench.MaskKind) -> None:
    work, structured = make_work(inputs, wanted, kind), make_work(inputs, wanted, "structured")
    assert torch.equal(work.indices, make_work(inputs, wanted, kind).indices)
    assert torch.equal(work.counts, structured.counts)
    assert (kind == "structured" or wanted == 1.0) == torch.equal(work.indices, structured.indices)
    for head in range(TINY.heads):
        for row in range(TINY.blocks.rows):
            count = int(work.counts[0, head, row])
            listed = work.indices[0, head, row].tolist()
            assert listed[:count] == sorted(set(listed[:count]))
            assert set(listed[count:]) <= {-1}
            assert {row, 12, 13} <= set(listed[:count])
            assert count >= wanted * TINY.blocks.rows
    if wanted == 1.0:
        assert work.ours.pairs == TINY.all_pairs


@pytest.mark.parametrize("wanted", [0.05, 0.4, 1.0])
def test_patterns_count_their_pairs_and_rivals_see_no_less(inputs: Inputs, wanted: float) -> None:
    work = make_work(inputs, wanted, "structured")
    table = seen(work)
    assert work.ours.pairs == int(table.sum())
    assert work.dense.pairs == TINY.all_pairs
    flat = torch.zeros_like(table)
    for head in range(TINY.heads):
        for row in range(work.flat.rows):
            flat[head, work.flat.queries(row), work.flat.keys(head, row)] = True
            assert torch.equal(work.flat.keys(head, row), work.flat.keys(head, row).unique())
    assert work.flat.pairs == int(flat.sum()) >= work.ours.pairs
    assert (flat >= table).all()
    row = TINY.blocks.rows - 1
    assert torch.equal(work.ours.keys(1, row), table[1, row * 128].nonzero()[:, 0])


def test_a_video_of_whole_blocks_is_flat_already() -> None:
    shape = dataclasses.replace(TINY, grid=type(TINY.grid)(4, 8, 24))
    work = make_work(make_inputs(shape, CPU, torch.float32, "random"), 0.3, "random")
    assert work.flat.pairs == work.ours.pairs
    count = int(work.counts[0, 0, 2])
    assert torch.equal(work.flat.indices[0, 2, :count], work.indices[0, 0, 2, :count])


@pytest.mark.parametrize("name", [SELECT, SITE, AUTO])
def test_the_gate_is_green_for_ours(work: Work, name: str) -> None:
    verdict = Gate(work).judge(OURS[name], OURS[name].prepare(work)())
    assert verdict is not None
    assert verdict.green


def test_the_gate_is_green_for_what_is_right_and_red_for_a_block_less(work: Work) -> None:
    right, wrong = (Gate(work).judge(kernel(call), call(work)) for call in (exactly, with_a_block_less))
    assert right is not None
    assert right.green
    assert wrong is not None
    assert not wrong.green
    assert wrong.error > 100 * wrong.allowed


def test_the_gate_is_red_for_one_value_that_is_not_finite(work: Work) -> None:
    out = exactly(work)
    out[0, 1, 300, 5] = torch.nan
    verdict = Gate(work).judge(kernel(exactly), out)
    assert verdict is not None
    assert not verdict.green


def test_eight_bits_are_judged_as_such(work: Work) -> None:
    out = in_eight_bits(work)
    as_fp8, as_full = (Gate(work).judge(kernel(exactly, precision=of), out) for of in ("fp8", "same"))
    assert as_fp8 is not None
    assert as_fp8.green
    assert as_full is not None
    assert not as_full.green


def test_the_caps_bound_what_sixteen_bits_are_allowed() -> None:
    inputs = make_inputs(TINY, CPU, torch.bfloat16, "random")
    work = make_work(inputs, 0.3, "structured")
    out = OURS[AUTO].prepare(work)()
    ours, rival = (Gate(work).judge(kernel(exactly, group=group), out) for group in ("ours", "sparse"))
    assert ours is not None
    assert ours.allowed == CAPS["same", "random"]
    assert ours.green
    assert rival is not None
    assert rival.allowed > 2 * ours.allowed


def test_the_gate_sees_a_list_that_breaks_the_law(work: Work) -> None:
    worse = work.indices.clone()
    lowest = [block for block in range(TINY.blocks.rows) if block not in worse[0, 0, 0].tolist()]
    worse[0, 0, 0, int(work.counts[0, 0, 0]) - 3] = lowest[-1]
    verdict = Gate(work).judge(OURS[SELECT], (worse, work.counts))
    assert verdict is not None
    assert not verdict.green


def test_a_failing_rival_is_told_and_kills_nothing(work: Work) -> None:
    def fails(work: Work) -> torch.Tensor:
        raise RuntimeError("no such instruction\nand more")

    failing = kernel(fails, name="rival", group="sparse")
    wrong = kernel(with_a_block_less, name="wrong rival", group="sparse")
    with torch.no_grad():
        case = measure_case(work, [OURS[AUTO], failing, wrong], ONCE)
    assert (case.rows["rival"].status, case.rows["rival"].why) == ("failed", "RuntimeError: no such instruction")
    assert (case.rows["wrong rival"].status, case.rows["wrong rival"].ms) == ("wrong", None)
    assert case.rows[AUTO].times_auto == 1.0
    assert case.wrong == {}


def test_what_the_machine_lacks_is_named(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_entry.importlib.util, "find_spec", lambda name: None)
    request = Request(device="cpu")
    with torch.no_grad():
        case = measure_case(work, request.all_kernels, ONCE)
    assert set(case.rows) == {*OURS, *RIVALS}
    without = {name: row.why for name, row in case.rows.items() if row.status == "left out"}
    assert without["flex"] == "needs a CUDA GPU"
    assert without["fa3"] == "fa3-fwd is not installed"
    assert without["fa4-sparse"] == "flash-attn-4 is not installed"
    text = as_text(bench.Result(request, {"cpu": "a CPU", "torch": "2", "triton": None}, [case]))
    assert "left out: fa3, fa3-fp8: fa3-fwd is not installed" in text
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_the_clock_takes_turns_and_drops_what_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_timing, "ROUND_MS", 1e9)
    order: list[str] = []

    def call(name: str) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            order.append(name)
            if name == "c" and order.count("c") > 1:
                raise RuntimeError("once only")
            return torch.empty(0)

        return run

    made = take({name: call(name) for name in "abc"}, Protocol("sustained", 2, 2), CPU)
    assert "".join(order) == "cc" + "bbb" + "aaa" + "aabb" + "bbaa"
    assert isinstance(made["a"], Timing)
    assert made["a"].calls == 4
    assert isinstance(made["c"], RuntimeError)


def test_a_slow_kernel_is_called_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_timing, "ROUND_MS", 0.0)
    made = take({"a": lambda: torch.empty(0)}, Protocol("sustained", 3, 9), CPU)
    assert isinstance(made["a"], Timing)
    assert made["a"].calls == 3


def test_a_burst_rests_first(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(kernels_timing.time, "sleep", naps.append)
    made = take({"a": lambda: torch.empty(0), "b": lambda: torch.empty(0)}, Protocol("burst", 1, 5), CPU)
    assert naps == [kernels_timing.PAUSE_S] * 2
    assert isinstance(made["b"], Timing)
    assert made["b"].calls == 5


def test_the_command_measures_and_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kernels.json"
    assert exit_code([*QUICK, "--masks", "structured", "random", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"{TINY}; structured lists, ms (TFLOP/s)" in printed
    assert printed.endswith(f"\n\nwrote {file}\n")
    told = json.loads(file.read_text())
    assert {"cpu", "torch", "triton", "commit", "rivals"} <= told["environment"].keys()
    assert told["inputs"]["dtype"] == "float32"
    assert told["protocol"] == {"kind": "sustained", "rounds": 1, "reps": 1, "at_most_ms_a_round": 500.0}
    first, second = told["cases"]
    assert (first["mask"], second["mask"]) == ("structured", "random")
    assert first["shape"]["grid"] == "6x14x17"
    assert first["density_wanted"] == 0.4
    assert 0.4 < first["density"] < 1
    row = first["rows"][AUTO]
    assert row["status"] == "timed"
    assert row["tflops"] == pytest.approx(4 * TINY.dim * row["pairs"] / row["ms"] / 1e9)
    assert first["site_times_faster_than_it"] == pytest.approx(first["rows"]["sdpa"]["ms"] / first["rows"][SITE]["ms"])
    assert 0 < first["selection_share_of_site"] < 1
    assert SITE not in second["rows"]
    assert f"| tiny | {first['density']:.3f} | {row['ms']:.2f} (" in kernels_table(told)
    assert kernels_table(told).count("| tiny |") == 1


def test_a_kernel_of_ours_that_is_wrong_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OURS, AUTO, kernel(with_a_block_less, name=AUTO))
    file = tmp_path / "kernels.json"
    assert exit_code([*QUICK, "--kernels", "auto", "--rivals", "--json", str(file)]) == BAD_INPUT
    captured = capsys.readouterr()
    assert "jenga auto on tiny, structured lists at 0.4: error" in captured.err
    assert "WRONG" in captured.out
    row = json.loads(file.read_text())["cases"][0]["rows"][AUTO]
    assert (row["status"], row["ms"]) == ("wrong", None)


@pytest.mark.parametrize("kernels", [KERNELS])
def test_our_kernels_are_asked_for_by_name(kernels: tuple[str, ...]) -> None:
    request = Request(device="cpu", kernels=("site", *kernels), rivals=())
    assert {found.name for found in request.all_kernels} == {SITE, *(f"jenga {name}" for name in kernels)}
    assert [found.precision for found in request.all_kernels].count("fp8") == 1


def test_the_budget_leaves_cases_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bench, "measure_case", a_case)
    made = bench.measure(Request(device="cpu", densities=(0.1, 0.2, 0.3), budget=25.0, json=tmp_path / "a.json"))
    assert [case.wanted for case in made.cases] == [0.1]
    assert made.left_out == ["tiny, structured lists at 0.2", "tiny, structured lists at 0.3"]
    assert json.loads((tmp_path / "a.json").read_text())["left_out_for_time"] == made.left_out
    made.environment = {"cpu": "a CPU", "torch": "2", "triton": None}
    assert "no time left for 2 cases: tiny, structured lists at 0.2, ..." in as_text(made)


def a_case(work: Work, kernels: object, protocol: object) -> Case:
    return Case(shape=work.inputs.shape, wanted=work.wanted, mask=work.kind, density=work.wanted, rows={})


def test_an_interrupted_run_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(work: Work, *rest: Any) -> Case:
        if work.wanted > 0.4:
            raise KeyboardInterrupt
        return a_case(work, *rest)

    monkeypatch.setattr(bench, "measure_case", once)
    file = tmp_path / "kernels.json"
    assert exit_code([*QUICK, "--densities", "0.4", "0.5", "--json", str(file)]) == INTERRUPTED
    assert f"interrupted, 1 cases are in {file}" in capsys.readouterr().err
    assert [case["density_wanted"] for case in json.loads(file.read_text())["cases"]] == [0.4]


def test_dense_kernels_are_all_timed_once_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def measured(work: Work, kernels: list[Kernel], protocol: Protocol) -> Case:
        asked.append({of.name for of in kernels if of.group == "dense"})
        found = {name: ms for name, ms in (("sdpa", 3.0), ("fa3", 2.0), ("fa3-fp8", 1.0)) if name in asked[-1]}
        rows = {name: Row(group="dense", status="timed", ms=ms) for name, ms in found.items()}
        return dataclasses.replace(a_case(work, kernels, protocol), rows=rows)

    monkeypatch.setattr(bench, "measure_case", measured)
    bench.measure(Request(device="cpu", densities=(0.1, 0.2)))
    assert {"sdpa", "sdpa-cudnn", "sdpa-flash", "fa3", "fa3-fp8", "fa4"} == asked[0]
    assert asked[1] == {"fa3"}


def test_every_kernel_of_the_operator_is_measured() -> None:
    assert {*KERNELS, "auto"} == {*get_args(Provider)}


def fake_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: Any) -> torch.Tensor:
    """Interface of FlashAttention 3 and 4 over [1, L, H, D], by plain attention in float32."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        assert x.is_contiguous()
        assert x.dtype == torch.float32 or more[f"{name}_descale"].shape == (1, TINY.heads)
    scales = (more.get(f"{name}_descale", torch.ones(1, 1))[..., None, None] for name in "qkv")
    q, k, v = (x.float().transpose(1, 2) * scale for x, scale in zip((q, k, v), scales, strict=True))
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if "block_sparse_tensors" in more:
        lists = more["block_sparse_tensors"]
        assert lists.block_size == (128, 128)
        assert int(lists.mask_block_cnt.sum()) == 0
        blocks = torch.arange(logits.shape[-1]) // 128
        counts, indices = lists.full_block_cnt, lists.full_block_idx
        used = torch.arange(indices.shape[-1]) < counts[..., None]
        # Past the count are blocks that exist, for kernels that read ahead.
        assert int(indices.min()) >= 0
        table = torch.zeros(*indices.shape[:-1], indices.shape[-1] + 1, dtype=torch.bool)
        table = table.scatter_(-1, torch.where(used, indices, indices.shape[-1]).long(), True)[..., :-1]
        logits = logits.masked_fill(~table[:, :, blocks][..., blocks], -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).contiguous()


@pytest.mark.parametrize("name", ["fa3", "fa3-fp8", "fa4", "fa4-sparse"])
@pytest.mark.parametrize("kind", ["structured", "random"])
def test_what_a_rival_is_given_computes_its_pattern(
    inputs: Inputs, name: str, kind: bench.MaskKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = SimpleNamespace(BlockSparseTensorsTorch=SimpleNamespace)
    for module in ("fa3_fwd_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_func=fake_flash))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.block_sparsity", lists)
    work = make_work(inputs, 0.1, kind)
    verdict = Gate(work).judge(RIVALS[name], RIVALS[name].prepare(work)())
    assert verdict is not None
    assert verdict.green
