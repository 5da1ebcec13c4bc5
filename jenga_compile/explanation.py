"""What the backend would do to a model, without running or compiling anything but the passes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule, Node

from jenga_compile.backend import compile_graph, read_options
from jenga_compile.dynamo_state import untouched
from jenga_compile.errors import JengaError, NothingTraced
from jenga_compile.passes.ledger import Ledger
from jenga_compile.sites import Report


def explain(model: torch.nn.Module, /, *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Report:
    """Report of every attention site in `model(*args, **kwargs)`.

    Args:
        model: any module, on any device; on `meta` it needs no weights and no memory. One that is compiled already is
            taken as it was before.
        *args, **kwargs: what the model is called with; only shapes, types and devices matter.
        options: as for `torch.compile(model, backend="jenga", options=...)`; a compiled model's own are not known here.

    The call is taken as one without gradients, and `strict` raises nothing. Only shapes are computed: a model whose
    Python reads values (`.item()`) reads zeros. Nothing is left behind: a later `torch.compile` finds Dynamo as it was.

    Returns:
        The sites of all graphs that Dynamo makes of the call, in order.

    Raises:
        UnknownOption, OptionOutOfRange, OptionOfWrongType, OptionsAtOdds: the options are not as documented.
        GridUnfit: no attention lies on the given grid.
        NothingTraced: Dynamo could make no graph of the call.
    """
    parsed = dataclasses.replace(read_options(options), inner="aot_eager", mode=None)
    reports: list[Report] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        stand_in = _zeros_like_outputs(gm)
        ledger = Ledger(parsed)
        compile_graph(gm, example_inputs, ledger)
        reports.append(ledger.report())
        return stand_in

    bare = getattr(model, "_orig_mod", model)
    with torch.no_grad(), untouched(), _as_written(bare), torch._dynamo.config.patch(_UNLIMITED):
        _traced(torch.compile(bare, backend=backend, dynamic=False), *args, **kwargs)
    if not reports:
        raise NothingTraced(model=type(bare).__name__)
    return sum(reports, Report())


def _traced(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        compiled(*args, **kwargs)
    except BackendCompilerFailed as failed:
        if isinstance(failed.inner_exception, JengaError):
            raise failed.inner_exception from None
        raise


_UNLIMITED = {"recompile_limit": 2**31 - 1, "accumulated_recompile_limit": 2**31 - 1}
"""One function may make any number of graphs in a call, as where a graph breaks in every one of many blocks."""


@contextlib.contextmanager
def _as_written(model: torch.nn.Module) -> Iterator[None]:
    """Inside, no module of the model runs what `module.compile()` has put in its place."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    compiled = {module: module._compiled_call_impl for module in modules if module._compiled_call_impl}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, implementation in compiled.items():
            module._compiled_call_impl = implementation


def _zeros_like_outputs(gm: GraphModule) -> Callable[..., Any]:
    """A stand-in for the graph that returns zeros of the right shapes."""
    (outputs,) = gm.graph.output_node().args
    assert isinstance(outputs, (tuple, list))
    examples = [node.meta.get("example_value") if isinstance(node, Node) else node for node in outputs]
    blanks = [
        torch.zeros([int(size) for size in value.shape], dtype=value.dtype, device=value.device)
        if isinstance(value, torch.Tensor)
        else value
        for value in examples
    ]
    return lambda *inputs: tuple(blanks)
