"""The torch.compile backend: options -> passes on Dynamo's graph -> passes on the ATen graph -> Inductor.

Found by name through the entry point group `torch_dynamo_backends`, so `torch.compile(model, backend="jenga")` needs no
import. The ATen passes run where AOTAutograd hands its graph to Inductor. They run on every compilation, also when
Inductor's cache then finds the rewritten graph, so a report is always complete and options are always honoured.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule

from jenga_compile import block_mask
from jenga_compile.config import Inner, Options, parse_options
from jenga_compile.errors import OptionOfWrongType, OptionOutOfRange
from jenga_compile.kernels.knobs import Knobs
from jenga_compile.passes import run_passes
from jenga_compile.passes.ledger import Ledger
from jenga_compile.self_check import self_checked

Compiled = Callable[..., Any]


class CarvingWarning(UserWarning):
    """Large self-attention stays dense although the backend was asked to carve it."""


def jenga(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile one Dynamo graph with its attention carved. `options` as in `config.Options` and `config.Carving`."""
    parsed = read_options(options, mode)
    ledger = Ledger(parsed)
    compiled = compile_graph(gm, example_inputs, ledger)
    ledger.enforce_strict()
    _publish(ledger)
    return self_checked(compiled) if parsed.self_check else compiled


def read_options(options: Mapping[str, Any] | None, mode: str | None = None) -> Options:
    """`parse_options`, and Inductor's own word on its modes.

    Raises:
        UnknownOption, OptionOutOfRange, OptionOfWrongType, OptionsAtOdds, ModeAndOptions: they are not as documented.
    """
    parsed = parse_options(options, mode)
    carving = parsed.carving
    _require(carving.blocks, block_mask.Mask, "blocks", "a block mask", "Pass e.g. Adjacency() | Window(8.0).")
    _require(carving.knobs, Knobs, "knobs", "a Knobs", "Pass jenga_compile.Knobs(keep=0.3).")
    if carving.blocks is not None:
        block_mask.split(carving.blocks)
    if parsed.mode is not None:
        modes = tuple(torch._inductor.list_mode_options())
        if parsed.mode not in modes:
            raise OptionOutOfRange(name="mode", value=parsed.mode, expected=f"{modes}", way_out="Pick one of them.")
    return parsed


def _require(value: object, kind: type, name: str, expected: str, way_out: str) -> None:
    """An option whose type `config` cannot name, since it stands below it."""
    if value is not None and not isinstance(value, kind):
        raise OptionOfWrongType(name=name, value=value, found=type(value).__name__, expected=expected, way_out=way_out)


def compile_graph(gm: GraphModule, example_inputs: Sequence[Any], ledger: Ledger) -> Compiled:
    """Run all passes on `gm` and hand it to what runs it; the ledger then holds every site."""
    run_passes("dynamo", gm, ledger)
    return _INNER[_usable_inner(ledger.options)](gm, example_inputs, ledger)


def _inductor(gm: GraphModule, example_inputs: Sequence[Any], ledger: Ledger) -> Compiled:
    from torch._functorch import config as functorch_config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner_compile(aten: GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
        run_passes("aten", aten, ledger)
        return compile_fx_inner(aten, inputs, **settings)

    mode = ledger.options.mode
    patches = torch._inductor.list_mode_options(mode) if mode is not None else None
    # A hit in AOTAutograd's own cache would skip the ATen passes; Inductor's cache, keyed on their result, stays on.
    with functorch_config.patch(enable_autograd_cache=False):
        compiled = compile_fx(gm, example_inputs, inner_compile=inner_compile, config_patches=patches)
    return cast(Compiled, compiled)


def _op_by_op(gm: GraphModule, example_inputs: Sequence[Any], ledger: Ledger, *, decompose: bool) -> Compiled:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._inductor.decomposition import select_decomp_table

    def run_as_is(aten: GraphModule, inputs: Sequence[Any]) -> Any:
        run_passes("aten", aten, ledger)
        return make_boxed_func(aten.forward)

    table = select_decomp_table() if decompose else {}
    compiled: Compiled = aot_autograd(fw_compiler=run_as_is, inference_compiler=run_as_is, decompositions=table)(
        gm, example_inputs
    )
    return compiled


_INNER: dict[Inner, Callable[[GraphModule, Sequence[Any], Ledger], Compiled]] = {
    "inductor": _inductor,
    "aot_eager": functools.partial(_op_by_op, decompose=True),
    "eager": functools.partial(_op_by_op, decompose=False),
}


def _usable_inner(options: Options) -> Inner:
    if options.inner == "inductor" and not torch.cuda.is_available() and not _has_cpp_compiler():
        warnings.warn(
            "no C++ compiler: Inductor cannot run on this CPU, so the carved graph runs op by op (inner='eager'). "
            "Install g++ or clang++ to let Inductor fuse the rest.",
            CarvingWarning,
            stacklevel=2,
        )
        return "eager"
    return options.inner


@functools.cache
def _has_cpp_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _publish(ledger: Ledger) -> None:
    report = ledger.report()
    missed = [site for site in report.sites if site.intended and site.decision == "left"]
    if missed:
        warnings.warn(
            f"{len(missed)} large self-attention site(s) stay dense, first {missed[0].path}: {missed[0].reason}",
            CarvingWarning,
            stacklevel=2,
        )
    if ledger.options.on_report is not None:
        ledger.options.on_report(report)


__all__ = ["CarvingWarning", "compile_graph", "jenga", "read_options"]
