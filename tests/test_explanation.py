"""explain: whatever state the model is in, the same answer, and the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo import convert_frame

from jenga_compile import Report, explain
from jenga_compile.backend import jenga
from tests.passes.plain_dit import WIDTH, PlainDiT, latents, prompt

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


class Breaking(nn.Module):
    """Its graph breaks, also in a function that every call defines anew."""

    def __init__(self) -> None:
        super().__init__()
        self.dit = PlainDiT()

    def forward(self, *inputs: torch.Tensor) -> Any:
        torch._dynamo.graph_break()

        def inner(*inputs: torch.Tensor) -> Any:
            torch._dynamo.graph_break()
            return self.dit(*inputs)

        return inner(*inputs)


def hooked() -> nn.Module:
    model = PlainDiT()
    model.register_forward_pre_hook(lambda module, inputs: None)
    return model


MODELS = pytest.mark.parametrize("make", [PlainDiT, Breaking, hooked])


@MODELS
def test_explaining_takes_nothing_from_the_recompile_limit(make: Any) -> None:
    torch._dynamo.reset()
    model = make().eval()
    for _ in range(torch._dynamo.config.recompile_limit + 1):
        assert explained(model).carved == 2
    reports: list[Report] = []
    compiled = torch.compile(model, backend=jenga, options=OPTIONS | {"inner": "eager", "on_report": reports.append})
    with torch.no_grad():
        compiled(*INPUTS)
    assert sum(reports, Report()).carved == 2


def compiled_codes() -> dict[int, int]:
    """Graphs by the code that holds them."""
    codes = [code for code in map(lambda reference: reference(), convert_frame.input_codes.seen) if code is not None]
    return {id(code): count for code in codes if (count := len(_debug_get_cache_entry_list(code)))}


@MODELS
def test_explaining_keeps_what_was_compiled_and_adds_nothing(make: Any) -> None:
    torch._dynamo.reset()
    model = make().eval()
    explained(model)
    assert not compiled_codes()
    compiled = wrapped(model)
    with torch.no_grad():
        compiled(*INPUTS)
    before = compiled_codes()
    assert before
    assert [site.path for site in explained(model).sites] == [site.path for site in explained(make()).sites]
    assert compiled_codes() == before
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        compiled(*INPUTS)


def test_explaining_one_size_makes_no_other_dynamic() -> None:
    torch._dynamo.reset()
    model, inputs = PlainDiT().eval(), []
    explained(model)
    compiled = torch.compile(model, backend=lambda gm, examples: inputs.extend(examples) or gm.forward)
    with torch.no_grad():
        compiled(latents(h=20), prompt())
    assert not any(isinstance(value, torch.SymInt) for value in inputs)


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


class Renamed(nn.Module):
    def __init__(s) -> None:
        super().__init__()
        s.L = PlainDiT()

    def forward(s, *inputs: torch.Tensor) -> Any:
        return s.L(*inputs)


class Unprompted(PlainDiT):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, x.new_zeros(len(x), 5, WIDTH))


RENAMED = Renamed()


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (PlainDiT(), ""),
        (hooked(), ""),
        (Renamed(), "L."),
        (nn.Sequential(nn.Identity(), nn.Sequential(Unprompted())), "1.0."),
        (lambda *inputs: RENAMED(*inputs), "RENAMED.L."),
    ],
    ids=["plain", "hooked", "renamed", "sequential", "function"],
)
def test_paths_start_below_the_model_whatever_it_calls_itself(model: Any, prefix: str) -> None:
    torch._dynamo.reset()
    inputs = INPUTS[:1] if isinstance(model, nn.Sequential) else INPUTS
    report = explain(model, *inputs, options=OPTIONS)
    assert [site.path for site in report.sites] == [f"{prefix}blocks.{layer}" for layer in (0, 1)]
