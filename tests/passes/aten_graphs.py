"""ATen graphs of models as the passes see them, stopped before any pass and run on real tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from jenga_compile.backend import compile_graph, read_options
from jenga_compile.passes import PIPELINE
from jenga_compile.passes.ledger import Ledger


@dataclasses.dataclass
class Stopped:
    """A graph in which all passes before one have run, what it was called with, and the book so far."""

    gm: GraphModule
    inputs: list[Any]
    ledger: Ledger

    def run(self, gm: GraphModule | None = None) -> list[Tensor]:
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = (self.gm if gm is None else gm)(*self.inputs)
        return [out for out in outputs if isinstance(out, Tensor)]


def stopped_before(
    name: str | None,
    model: nn.Module,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    decompose: bool = False,
    dynamic: bool = False,
    **kwargs: Any,
) -> Stopped:
    """The last graph of `model(*args, **kwargs)` before pass `name`, or after all passes for None."""
    from jenga_compile import backend as module

    found: list[Stopped] = []
    real = module.run_passes

    def run_passes(level: str, gm: GraphModule, ledger: Ledger) -> None:
        if level == "dynamo":
            real("dynamo", gm, ledger)
            return
        for step in PIPELINE:
            if step.name == name:
                break
            if step.level == "aten":
                step.run(gm, ledger)
        found.append(stopped := Stopped(gm, [], ledger))

        def forward(*inputs: Any) -> Any:
            stopped.inputs[:] = inputs
            return type(gm).forward(gm, *inputs)

        gm.forward = forward  # what the graph is called with, caught on its way

    def compiler(gm: GraphModule, example_inputs: Any) -> Callable[..., Any]:
        inner = "aot_eager" if decompose else "eager"
        ledger = Ledger(read_options({"min_blocks": 1, "inner": inner, **(options or {})}))
        compiled = compile_graph(gm, example_inputs, ledger)
        return compiled

    torch._dynamo.reset()
    module.run_passes = run_passes  # type: ignore[assignment]
    try:
        with torch.no_grad():
            torch.compile(model, backend=compiler, dynamic=dynamic)(*args, **kwargs)
    finally:
        module.run_passes = real
    return found[-1]
