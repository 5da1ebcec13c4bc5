"""The catalogue: every error is raised once by the misuse it names, and its text quotes what was found."""

from __future__ import annotations

import string
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from jenga_compile import compile as compile_model
from jenga_compile import config, errors, explain, generate, media
from jenga_compile.bench import compile as bench
from jenga_compile.bench import kernels_text
from jenga_compile.bench.kernels import Request as KernelsRequest
from jenga_compile.bench.kernels import Result as KernelsResult
from jenga_compile.bench.kernels_case import Case, Row
from jenga_compile.bench.kernels_shapes import SHAPES, find_shape
from jenga_compile.block_mask import Fixed, Importance, Own, PerHead, from_flex, split, to_flex
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels import checks, knobs, static_masks, tuning
from jenga_compile.models.catalogue import find_model
from jenga_compile.models.narrow import narrow
from jenga_compile.passes.ledger import Ledger
from jenga_compile.presets import Stage, find_preset
from jenga_compile.sampler import accelerate, families, noise
from jenga_compile.self_check import check_order
from jenga_compile.sites import Site
from jenga_compile.token_context import token_grid
from tests.passes.plain_dit import PlainDiT, latents, prompt
from tests.sampler import pipelines

Q = torch.randn(1, 2, 300, 16)
KNOBS = knobs.make_knobs(0.5, 0.0)
EYE = torch.eye(3, dtype=torch.bool)
FRAMES = np.zeros((2, 8, 8, 3), np.uint8)
ops = torch.ops.jenga


def in_order(x: torch.Tensor) -> tuple[torch.Tensor]:
    return (x * ops.curve_index(2, 3, 4, "gilbert", False, 0, 0, [], device=x.device),)


def other_grid() -> None:
    with token_grid(2, 2, 2):
        carved(told=True, reordered=True)


def carved(**changes: object) -> None:
    arguments = {"t": 3, "h": 8, "w": 12, "video_start": 0, "curve": "gilbert"} | changes
    arguments = {"cuts": [], "blocks": static_masks.register(static_masks.StaticMasks(Own())), "knobs": 0} | arguments
    ops.carved_attention(Q, Q, Q, None, **arguments)


def sparse(**changes: object) -> None:
    lists = torch.zeros(1, 2, 3, 3, dtype=torch.int32), torch.ones(1, 2, 3, dtype=torch.int32)
    ops.block_sparse_attention(Q, Q, Q, *lists, KNOBS, 300, **changes)


def no_kernel_works() -> None:
    def run(_: str) -> torch.Tensor:
        raise RuntimeError("no kernel of that kind")

    what = dict(source=Path(__file__), candidates=["first"], run=lambda name: lambda: run(name))
    tuning.fastest("a test", **what, truth=Q, device=Q.device)


def request(**changes: object) -> None:
    generate.Request(**({"prompt": "a fox", "output": Path("fox.mp4")} | changes))  # type: ignore[arg-type]


def strict() -> None:
    ledger = Ledger(config.Options(strict=True))
    site = Site(
        path="blocks.0", decision="left", reason="mask", batch=1, heads=1, queries=9, keys=9, head_dim=8, intended=True
    )
    ledger.enter(site)
    ledger.enforce_strict()


def size_not_divisible() -> None:
    from jenga_compile.zoo.pipeline import ToyVideoPipeline

    stub = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(patch_size=4)))
    ToyVideoPipeline.check_inputs(stub, ["a fox"], height=66, width=64)  # type: ignore[arg-type]


def bench_failed() -> None:
    died = SimpleNamespace(returncode=1, stderr="Traceback:\n  at a line\nKeyError: 'a'\n")
    with mock.patch("subprocess.run", return_value=died):
        bench.in_processes([bench.Request(model="toy").task("jenga")])


def kernels_wrong() -> None:
    request = KernelsRequest(device="cpu")
    rows = {"jenga auto": Row(group="ours", status="wrong", why="error 2 of 1 allowed")}
    case = Case(shape=SHAPES["tiny"], wanted=0.5, mask="random", density=0.6, rows=rows)
    about = {"cpu": "a CPU", "torch": "2", "triton": None}
    with mock.patch.object(kernels_text, "measure", return_value=KernelsResult(request, about, [case])):
        kernels_text.run(request)


def weights_missing() -> None:
    from jenga_compile.zoo.pipeline import ToyVideoPipeline

    ToyVideoPipeline.from_folder(Path("nowhere"))


def extra_missing() -> None:
    with mock.patch.dict(sys.modules, {"jenga_compile.zoo.pipeline": None}):
        generate._pipeline(torch.device("cpu"))


class Untraceable(torch.nn.Module):
    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def grid_unfit() -> None:
    explain(PlainDiT(layers=1), latents(), prompt(), options={"grid": (3, 6, 8), "min_blocks": 1})


def nothing_traced() -> None:
    explain(Untraceable(), Q)


def a_folder() -> Path:
    folder = Path(tempfile.mkdtemp()) / "clip.gif"
    folder.mkdir()
    return folder


def write_nothing() -> None:
    media.write_video(Path(tempfile.mkdtemp()) / "a.mp4", FRAMES[:, :0])


def select(q: torch.Tensor = Q, k: torch.Tensor = Q, mask: torch.Tensor = EYE, video: int = 300) -> None:
    ops.block_select(q, k, mask, KNOBS, video)


def backward() -> None:
    q = Q.clone().requires_grad_()
    ops.carved_attention(q, Q, Q, None, 3, 8, 12, 0, "gilbert", [], 0, 0).sum().backward()


def attend_lists_out_of_range() -> None:
    indices, counts = ops.block_select(Q, Q, EYE, KNOBS, 300)
    ops.block_sparse_attention(Q, Q, Q, indices + 7, counts, KNOBS, 300)


def accelerate_toy(make: Callable[[], pipelines.Case] = pipelines.hunyuan, **changes: object) -> None:
    """A run of a toy pipeline; `call`, `scheduler`, `cache` and `twice` say how it goes wrong."""
    case = make()
    call = changes.pop("call", {})
    case = replace(case, call=case.call | call)  # type: ignore[operator]
    if "cache" in changes:
        case.pipe.transformer.enable_cache(changes.pop("cache"))
    arguments = {"carving": None, "amplifier": 0.0} | changes
    with accelerate(case.pipe, arguments.pop("preset", "turbo"), **arguments) as accelerated:  # type: ignore[arg-type]
        case.run()
        accelerated.report()


def unreadable_call() -> None:
    families.whole_frame(families.FAMILIES["WanTransformer3DModel"], {"hidden_states": Q}, (1, 2, 2))


def accelerated_twice() -> None:
    case = pipelines.hunyuan()
    with accelerate(case.pipe, "base"):
        accelerate(case.pipe, "turbo")


def no_run_yet() -> None:
    with accelerate(pipelines.hunyuan().pipe, "base") as accelerated:
        accelerated.report()


def scheduler_unfit() -> None:
    import diffusers

    noise.prediction_of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def cache_in_the_way() -> None:
    from diffusers import FirstBlockCacheConfig

    accelerate_toy(cache=FirstBlockCacheConfig(threshold=0.1))


SMALL_STAGES = (Stage(scale=0.2, until=0.5, carving=config.Carving()), Stage(carving=config.Carving()))

MISUSE: dict[type[errors.JengaError], tuple[Callable[[], object], str]] = {
    errors.UnknownOption: (lambda: config.parse_options({"kepe": 1}), "did you mean 'keep'"),
    errors.OptionOutOfRange: (lambda: config.Carving(keep=2.0), "keep=2.0 is outside (0, 1]"),
    errors.OptionOfWrongType: (lambda: config.Carving(adjacency="no"), "adjacency='no' is of type str"),  # type: ignore[arg-type]
    errors.OptionsAtOdds: (lambda: config.Options(text="after"), "text='after' does nothing without grid"),
    errors.OptionsInDictionary: (
        lambda: compile_model(torch.nn.ReLU(), options={"keep": 0.3}),
        "options={'keep': 0.3}",
    ),
    errors.NotAModule: (lambda: compile_model(in_order), "of type function, expected a torch.nn.Module"),  # type: ignore[arg-type]
    errors.CompiledAlready: (lambda: compile_model(compile_model(torch.nn.ReLU())), "a ReLU that is compiled already"),
    errors.NothingTraced: (nothing_traced, "made no graph of the call of Untraceable"),
    errors.ModeAndOptions: (lambda: config.parse_options({"mode": "a"}, "b"), "mode='b' and options['mode']='a'"),
    errors.AttentionNotCarved: (strict, "the first is 'blocks.0': mask"),
    errors.InvalidGrid: (lambda: TokenGrid(0, 4, 4), "(0, 4, 4)"),
    errors.UnreadableGrid: (lambda: TokenGrid.parse("32x45"), "'32x45'"),
    errors.ShapeMismatch: (lambda: select(k=Q[:, :, :200]), "k has shape (1, 2, 200, 16)"),
    errors.DtypeMismatch: (lambda: select(k=Q.half()), "torch.float16"),
    errors.DeviceMismatch: (lambda: checks.check_qkv("block_select", Q, Q.to("meta")), "k is on meta"),
    errors.VideoOutOfRange: (lambda: select(video=301), "video=301 is outside [1, 300]"),
    errors.VideoSpanOutOfRange: (lambda: carved(video_start=20), "a grid of 288 tokens from position 20"),
    errors.BlockListOutOfRange: (attend_lists_out_of_range, "range over"),
    errors.OrderMatters: (lambda: check_order(in_order, (torch.ones(24),)), "output 0"),
    errors.GridUnfit: (grid_unfit, "the given grid (3, 6, 8) contradicts (3, 8, 6) from token 0"),
    errors.GridNotSet: (lambda: carved(told=True), "over 300 tokens"),
    errors.OtherGridTold: (other_grid, "tells a token grid of 2x2x2"),
    errors.UnknownMask: (lambda: carved(blocks=99_999), "handle 99999"),
    errors.KernelUnavailable: (lambda: sparse(provider="hopper"), "kernel='hopper'"),
    errors.NoKernelWorks: (no_kernel_works, "no kernel of that kind"),
    errors.UnknownKnobs: (lambda: carved(knobs=99_999), "handle 99999"),
    errors.UnknownKnob: (
        lambda: setattr(knobs.Knobs(), "kep", 0.1),
        "'kep' to set; did you mean 'keep'? Knobs: keep,",
    ),
    errors.NotDifferentiable: (backward, "jenga::carved_attention has no backward"),
    errors.UnknownVideoFormat: (lambda: request(output=Path("fox.avi")), ".avi is no video format"),
    errors.OutputFolderMissing: (lambda: media.write_video(Path("nowhere/a.gif"), FRAMES), "'nowhere' is no folder"),
    errors.OutputIsFolder: (lambda: request(output=a_folder()), "it is a folder"),
    errors.OutputUnusable: (lambda: request(output=Path("x" * 300 + ".gif")), "File name too long"),
    errors.VideoNotWritten: (write_nothing, "0 of 2 frames"),
    errors.PromptEmpty: (lambda: request(prompt=" "), "empty prompt among [' ']"),
    errors.SizeNotDivisible: (size_not_divisible, "height=66"),
    errors.FramesDoNotFit: (lambda: find_model("wan2.1-t2v-14b").sizes(480, 832, 80), "80 frames. Use 77 or 81"),
    errors.NotAPipeline: (lambda: accelerate(torch.nn.ReLU()), "of type ReLU, expected a diffusers pipeline"),
    errors.AcceleratedAlready: (accelerated_twice, "is accelerated already, with preset 'base'"),
    errors.UnknownSwitch: (lambda: accelerate_toy(stagess=None), "did you mean 'stages'"),
    errors.StepsTooFew: (lambda: find_preset("turbo").slots(2), "2 steps are too few for the 2 stages of 'turbo'"),
    errors.StagesUnfit: (lambda: accelerate_toy(pipelines.wan_image), "its call takes image"),
    errors.StageTooSmall: (lambda: accelerate_toy(stages=SMALL_STAGES), "no token of the 4x6"),
    errors.SchedulerUnfit: (scheduler_unfit, "FlowMatchEulerDiscreteScheduler cannot be used with stages"),
    errors.CacheInTheWay: (cache_in_the_way, "FirstBlockCacheConfig enabled"),
    errors.CallUnreadable: (unreadable_call, "hidden_states has shape (1, 2, 300, 16), not five dimensions"),
    errors.NoRunYet: (no_run_yet, "no run of this HunyuanVideoPipeline"),
    errors.UnknownModel: (lambda: find_model("wan"), "no model 'wan' in the catalogue"),
    errors.NoNarrowModel: (lambda: narrow(replace(find_model("toy"), transformer="Sana")), "arguments of Sana set"),
    errors.BenchFailed: (bench_failed, "compiles toy with 'jenga' ended with exit code 1: KeyError: 'a'"),
    errors.NotKnownToBench: (
        lambda: find_shape("wan-14b"),
        "no site 'wan-14b' to measure; did you mean 'wan-14b-720p'",
    ),
    errors.KernelsWrong: (kernels_wrong, "jenga auto on tiny, random lists at 0.5: error 2 of 1 allowed"),
    errors.UnknownPreset: (lambda: find_preset("slow"), "no preset 'slow'"),
    errors.ModelWeightsMissing: (weights_missing, "no model in 'nowhere'"),
    errors.OutOfRange: (lambda: request(steps=0), "steps 0 is outside [1, 1000]"),
    errors.DeviceUnavailable: (lambda: generate._device("cuda:77"), "device 'cuda:77' is not available"),
    errors.ExtraMissing: (extra_missing, "pip install 'jenga-compile[diffusers]'"),
    errors.MaskNotStatic: (lambda: Importance().dense(TokenGrid(2, 2, 2)), "is chosen at run time"),
    errors.ImportancesDiffer: (lambda: split(Importance(0.5) | Importance()), "holds Importance(keep=0.3"),
    errors.HeadsNested: (lambda: PerHead((PerHead((Own(),)),)), "a PerHead holds PerHead(masks=(Own(),))"),
    errors.MaskUnfit: (lambda: Fixed.of(EYE).dense(TokenGrid(2, 2, 2)), "is (3, 3), expected [1, 1]"),
    errors.FlexMaskUnfit: (lambda: from_flex(to_flex(Own(), TokenGrid(1, 16, 16)), 128), "not all of the last 128"),
}


def test_the_catalogue_is_complete() -> None:
    assert set(MISUSE) == set(errors.JengaError.__subclasses__())


@pytest.mark.parametrize("error", MISUSE, ids=lambda error: error.__name__)
def test_the_misuse_raises_its_error_with_what_was_found(error: type[errors.JengaError]) -> None:
    knobs.register(knobs.Knobs())
    misuse, text = MISUSE[error]
    with pytest.raises(error) as caught:
        misuse()
    assert text in str(caught.value)
    assert caught.value.facts


@pytest.mark.parametrize("error", MISUSE, ids=lambda error: error.__name__)
def test_the_text_states_a_fact_and_a_way_out(error: type[errors.JengaError]) -> None:
    fields = [field for _, field, _, _ in string.Formatter().parse(error.template) if field is not None]
    assert fields
    assert error.template.count(". ") + error.template.count(": ") + error.template.count("; ") >= 1
    assert error.template.rstrip().endswith((".", "}", ")"))
