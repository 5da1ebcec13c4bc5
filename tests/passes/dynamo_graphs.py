"""One pass on the graph that dynamo hands over, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from jenga_compile import Report
from jenga_compile.backend import jenga
from jenga_compile.config import Carving, Options
from jenga_compile.passes.enter_other_attention import enter_other_attention
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.mark_attention import mark_attention
from tests.tolerance import assert_rounding


class Caller(nn.Module):
    """A function as a module."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


@dataclasses.dataclass
class Outcome:
    gm: GraphModule
    ledger: Ledger
    before: str
    after: str
    stride: tuple[int, ...] | None
    """Strides of the first output as it was traced; None if it is no tensor."""

    out: Any
    """What the graph computes after the pass."""

    @property
    def calls(self) -> int:
        """How many calls of scaled-dot-product attention there are now."""
        return len(self.gm.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention))

    def reasons(self) -> list[str]:
        """Reasons in the ledger after the other passes of this level, which run now."""
        mark_attention(self.gm, self.ledger)
        enter_other_attention(self.gm, self.ledger)
        return [site.reason for site in self.ledger.report().sites]


def after_pass(
    rewrite: Callable[[GraphModule, Ledger], None],
    model: Callable[..., Any],
    *inputs: Tensor,
    min_blocks: int = 2,
    grad: bool = False,
) -> Outcome:
    """The one graph of `model` after the pass, linted and run."""
    torch._dynamo.reset()
    found: list[Outcome] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        ledger = Ledger(Options(carving=Carving(min_blocks=min_blocks)))
        before = str(gm.graph)
        value = gm.graph.output_node().args[0][0].meta["example_value"]
        rewrite(gm, ledger)
        gm.graph.lint()
        stride = value.stride() if isinstance(value, Tensor) else None
        found.append(Outcome(gm, ledger, before, str(gm.graph), stride, None))
        return gm.forward

    with torch.set_grad_enabled(grad):
        out = torch.compile(model, backend=backend, fullgraph=True)(*inputs)
    (outcome,) = found
    return dataclasses.replace(outcome, out=out)


def compiled_as_eager(model: nn.Module, x: Tensor, options: Mapping[str, Any]) -> Report:
    """The report of the one graph that the backend makes of `model`, which computes what the model does.

    The model is in float64 afterwards.
    """
    reports: list[Report] = []
    torch._dynamo.reset()
    with torch.no_grad():
        options = {**options, "on_report": reports.append}
        out = torch.compile(model, backend=jenga, options=options, fullgraph=True)(x)
        eager = model(x)
        truth = model.double()(x.double())
    assert_rounding(out, truth, eager, eager)
    (report,) = reports
    return report
