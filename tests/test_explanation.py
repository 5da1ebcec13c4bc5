"""explain: whatever state the model is in, the same answer, and the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from jenga_compile import Report, explain
from jenga_compile.backend import jenga
from tests.passes.plain_dit import PlainDiT, latents, prompt

OPTIONS = {"min_blocks": 1}
INPUTS = (latents(), prompt())


def explained(model: nn.Module) -> Report:
    return explain(model, *INPUTS, options=OPTIONS)


def test_as_often_as_one_likes() -> None:
    torch._dynamo.reset()
    model = PlainDiT()
    reports = [explained(model) for _ in range(torch._dynamo.config.recompile_limit + 3)]
    assert [report.carved for report in reports] == [2] * len(reports)


def wrapped(model: nn.Module) -> Any:
    return torch.compile(model, backend=jenga, options=OPTIONS | {"inner": "eager"})


def in_place(model: nn.Module) -> Any:
    model.compile(backend=jenga, options=OPTIONS | {"inner": "eager"})
    return model


def blocks_in_place(model: nn.Module) -> Any:
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(backend=jenga, options=OPTIONS | {"inner": "eager", "grid": (3, 8, 6), "text": "after"})
    return model


@pytest.mark.parametrize("compiled", [wrapped, in_place, blocks_in_place])
def test_a_compiled_model_is_explained_and_stays_compiled(compiled: Any) -> None:
    torch._dynamo.reset()
    model = compiled(PlainDiT().eval())
    with torch.no_grad():
        before = model(*INPUTS)
    report = explained(model)
    assert (report.seen, report.carved) == (2, 2)
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(model(*INPUTS), before)


def test_on_the_meta_device_nothing_is_needed() -> None:
    torch._dynamo.reset()
    with torch.device("meta"):
        model = PlainDiT()
    assert explain(model, *(x.to("meta") for x in INPUTS), options=OPTIONS).carved == 2


def test_a_function_may_be_explained() -> None:
    torch._dynamo.reset()
    assert explain(lambda x: x * 2, torch.ones(3)).seen == 0  # type: ignore[arg-type]


def test_the_models_own_argument_names_are_free() -> None:
    class Named(nn.Module):
        def forward(self, model: torch.Tensor) -> torch.Tensor:
            return model * 2

    torch._dynamo.reset()
    assert explain(Named(), model=torch.ones(3)).seen == 0
