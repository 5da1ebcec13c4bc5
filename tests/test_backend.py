"""The backend as a user meets it: by name, with options, in every inner mode, and when something is wrong."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jenga_compile.backend
from jenga_compile import Report, errors
from jenga_compile.backend import CarvingWarning, jenga
from jenga_compile.block_mask import Importance, Own
from jenga_compile.kernels.knobs import Knobs
from tests.passes.plain_dit import Block, PlainDiT, latents, prompt

INPUTS = (latents(), prompt())


def run(model: nn.Module, *inputs: Tensor, backend: Any = jenga, **options: Any) -> Tensor:
    torch._dynamo.reset()
    options = {"min_blocks": 1, "inner": "eager", **options}
    with torch.no_grad():
        out: Tensor = torch.compile(model, backend=backend, options=options)(*inputs)
    return out


def test_the_backend_is_found_by_name() -> None:
    (entry,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="jenga")
    assert entry.value == "jenga_compile.backend:jenga"
    reports: list[Report] = []
    run(PlainDiT(), *INPUTS, backend="jenga", on_report=reports.append)
    assert [(report.seen, report.carved) for report in reports] == [(2, 2)]


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_every_inner_gives_the_same_numbers(inner: str) -> None:
    model = PlainDiT(layers=1)
    with torch.no_grad():
        dense = model(*INPUTS)
    out = run(model, *INPUTS, keep=1.0, inner=inner)
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


def test_a_mode_reaches_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    listed = torch._inductor.list_mode_options

    def list_mode_options(mode: str | None = None, dynamic: bool | None = None) -> Any:
        asked.append(str(mode))
        return listed(mode, dynamic)

    monkeypatch.setattr(torch._inductor, "list_mode_options", list_mode_options)
    run(PlainDiT(layers=1), *INPUTS, inner="inductor", mode="default")
    assert "default" in asked


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kep": 0.2}, errors.UnknownOption, r"unknown option 'kep' for backend 'jenga'; did you mean 'keep'\? Valid"),
        ({"wibble": 1}, errors.UnknownOption, r"'jenga'\. Valid options: adjacency, blocks, curve, cutoff"),
        ({"keep": 0.0}, errors.OptionOutOfRange, r"keep=0.0 is outside \(0, 1\]"),
        ({"keep": 1.5}, errors.OptionOutOfRange, r"keep=1.5 is outside \(0, 1\]"),
        ({"cutoff": 1.0}, errors.OptionOutOfRange, r"cutoff=1.0 is outside \[0, 1\)"),
        ({"curve": "peano"}, errors.OptionOutOfRange, "curve='peano' is outside"),
        ({"min_blocks": 0}, errors.OptionOutOfRange, "min_blocks=0 is outside"),
        ({"grid": (3, 8)}, errors.OptionOutOfRange, r"grid=\(3, 8\) is outside three positive integers"),
        ({"keep": "0.3"}, errors.OptionOfWrongType, "keep='0.3' is of type str, expected a number"),
        ({"keep": True}, errors.OptionOfWrongType, "keep=True is of type bool"),
        ({"adjacency": 1}, errors.OptionOfWrongType, "adjacency=1 is of type int, expected True or False"),
        ({"strict": "yes"}, errors.OptionOfWrongType, "strict='yes' is of type str"),
        ({"min_blocks": 8.0}, errors.OptionOfWrongType, "min_blocks=8.0 is of type float"),
        ({"grid": "3x8x6"}, errors.OptionOfWrongType, "grid='3x8x6' is of type str"),
        ({"mode": "nonsense"}, errors.OptionOutOfRange, "mode='nonsense' is outside"),
        ({"on_report": 3}, errors.OptionOfWrongType, "on_report=3 is of type int, expected a callable"),
        ({"text": "after"}, errors.OptionsAtOdds, "text='after' does nothing without grid"),
        ({"mode": "max-autotune", "inner": "eager"}, errors.OptionsAtOdds, "does nothing with inner='eager'"),
        ({"keep": 0.1, "blocks": Own()}, errors.OptionsAtOdds, "keep=0.1 does nothing beside blocks"),
        ({"cutoff": 0.1, "blocks": Importance()}, errors.OptionsAtOdds, "cutoff=0.1 does nothing beside blocks"),
        ({"adjacency": False, "blocks": Own()}, errors.OptionsAtOdds, "adjacency=False does nothing beside blocks"),
        ({"keep": 0.1, "knobs": Knobs()}, errors.OptionsAtOdds, "keep=0.1 does nothing beside knobs"),
        ({"cutoff": 0.1, "knobs": Knobs()}, errors.OptionsAtOdds, "cutoff=0.1 does nothing beside knobs"),
        ({"inner": "jit"}, errors.OptionOutOfRange, "inner='jit' is outside"),
        ({"text": "left"}, errors.OptionOutOfRange, "text='left' is outside"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], error: type[Exception], text: str) -> None:
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=text) as caught:
        torch.compile(PlainDiT(), backend=jenga, options=options)(*INPUTS)
    assert isinstance(caught.value.inner_exception, error)


def test_large_attention_that_stays_dense_is_said_once_and_runs() -> None:
    model, tokens = Block(), prompt(300)
    with pytest.warns(CarvingWarning, match=r"1 large self-attention site\(s\) stay dense, first <root>: no grid"):
        out = run(model, tokens)
    with torch.no_grad():
        torch.testing.assert_close(out, model(tokens), rtol=0, atol=0)


def test_strict_turns_that_into_an_error() -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="strict: 1 attention site") as caught:
        run(Block(), prompt(300), strict=True)
    assert isinstance(caught.value.inner_exception, errors.AttentionNotCarved)


def test_strict_accepts_what_is_left_by_design() -> None:
    run(PlainDiT(), *INPUTS, strict=True, min_blocks=8)


def test_a_model_without_attention_is_compiled_as_it_is() -> None:
    reports: list[Report] = []
    out = run(nn.Linear(16, 16).eval(), prompt(), on_report=reports.append)
    assert reports == [Report()]
    assert out.shape == (2, 5, 16)


def test_training_still_works_and_is_reported() -> None:
    model = PlainDiT(layers=1)
    torch._dynamo.reset()
    reports: list[Report] = []
    options = {"min_blocks": 1, "inner": "eager", "on_report": reports.append}
    with pytest.warns(CarvingWarning, match="gradients required"):
        torch.compile(model, backend=jenga, options=options)(*INPUTS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert reports[0].sites[0].reason.startswith("gradients required")


def test_without_a_compiler_the_carved_graph_runs_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jenga_compile.backend, "_has_cpp_compiler", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reports: list[Report] = []
    with pytest.warns(CarvingWarning, match="no C\\+\\+ compiler"):
        out = run(PlainDiT(), *INPUTS, keep=1.0, inner="inductor", on_report=reports.append)
    assert reports[0].carved == 2
    assert out.isfinite().all()


def test_one_graph_a_resolution_and_none_for_a_repeat() -> None:
    torch._dynamo.reset()
    reports: list[Report] = []
    options = {"min_blocks": 1, "inner": "eager", "on_report": reports.append}
    compiled = torch.compile(PlainDiT(), backend=jenga, options=options, dynamic=False)
    with torch.no_grad():
        for height in (16, 20, 16, 20):
            compiled(latents(h=height), prompt())
    assert [report.sites[0].grid for report in reports] == [(3, 8, 6), (3, 10, 6)]


def test_automatic_dynamic_shapes_make_the_second_graph_the_last() -> None:
    torch._dynamo.reset()
    reports: list[Report] = []
    options = {"min_blocks": 1, "inner": "eager", "on_report": reports.append, "keep": 1.0}
    model = PlainDiT()
    compiled = torch.compile(model, backend=jenga, options=options)
    with torch.no_grad():
        for height in (16, 20, 24):
            out = compiled(latents(h=height), prompt())
            torch.testing.assert_close(out, model(latents(h=height), prompt()), rtol=1e-5, atol=1e-5)
    assert [report.carved for report in reports] == [2, 2]
