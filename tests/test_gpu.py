"""The same promises on a CUDA GPU: operators, compiled models, the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jenga_compile import Report
from jenga_compile.backend import jenga
from jenga_compile.block_mask import Adjacency
from jenga_compile.cli import main
from jenga_compile.kernels import static_masks, use_reference
from jenga_compile.kernels.knobs import Knobs, register
from tests.tolerance import assert_rounding
from tests.toys import Toy, hunyuan, wan

MASKS = static_masks.register(static_masks.StaticMasks(Adjacency()))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_agrees_with_its_definition(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 607, 64, generator=random).to("cuda", dtype) for _ in range(3))
    mask = torch.ones(2, 607, dtype=torch.bool, device="cuda")
    mask[0, -9:] = False
    rest = (mask, 5, 9, 13, 3, "gilbert", [], MASKS, register(Knobs(keep=0.4, cutoff=0.0)))
    actual = torch.ops.jenga.carved_attention(q, k, v, *rest)
    with use_reference():
        baseline = torch.ops.jenga.carved_attention(q, k, v, *rest)
        truth = torch.ops.jenga.carved_attention(q.double(), k.double(), v.double(), *rest)
    assert_rounding(actual, truth, baseline, v)


@pytest.mark.parametrize("make", [hunyuan, wan])
@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_a_compiled_model_that_keeps_everything_equals_eager(make: Callable[..., Toy], inner: str) -> None:
    toy = make().cuda()
    torch._dynamo.reset()
    reports: list[Report] = []
    options = {"keep": 1.0, "min_blocks": 2, "inner": inner, "on_report": reports.append}
    actual = toy.run(torch.compile(toy.model, backend=jenga, options=options, fullgraph=True))
    assert reports[0].carved == len(toy.carved)
    eager = toy.run()
    assert_rounding(actual, truth=toy.to(torch.float64).run(), baseline=eager, values=eager)


def test_the_command_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "a fox moving left on a red background", "-o", str(tmp_path / "fox.gif"), "--compare"]
    assert main([*command, "--device", "cuda", "--steps", "4"]) == 0
    assert "6 carved" in capsys.readouterr().out
