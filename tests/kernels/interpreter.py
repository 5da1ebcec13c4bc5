"""Triton kernels on a CPU: a second copy of a module of kernels, run by Triton's interpreter.

`@triton.jit` decides when it decorates whether a function will be compiled or interpreted, so the copy is imported with
TRITON_INTERPRET=1, and with it a copy of every module of ours that it takes jitted functions from. Nothing else in the
process changes: `sys.modules` keeps the compiled modules, and `triton.language`, which the interpreter patches, is put
back after each kernel.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest


def interpreted(name: str) -> ModuleType:
    """A copy of the module `name` whose kernels run on CPU tensors; skips the test, or test module, without Triton.

    Args:
        name: full name of a module of the package, such as `jenga_compile.kernels.block_select.fused`.
    """
    pytest.importorskip("triton", reason="needs Triton, which has wheels for Linux only", exc_type=ImportError)
    from triton.runtime.interpreter import InterpretedFunction

    importlib.import_module(name)  # else modules without kernels, which have no second copy, would keep those with
    before = {found: module for found, module in sys.modules.items() if _holds_kernels(found, module)}
    for found in before:
        _forget(found)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            copy = importlib.import_module(name)
    finally:
        copies = {found: module for found, module in sys.modules.items() if _holds_kernels(found, module)}
        for found in copies:
            _forget(found)
        for found, module in before.items():
            _restore(found, module)
    for module in copies.values():
        for value in vars(module).values():
            if isinstance(value, InterpretedFunction):
                value.run = _isolated(value.run)
    return copy


def _holds_kernels(name: str, module: ModuleType) -> bool:
    import triton

    return name.startswith("jenga_compile.") and any(value is triton for value in vars(module).values())


def _forget(name: str) -> None:
    parent, _, leaf = name.rpartition(".")
    del sys.modules[name]
    delattr(sys.modules[parent], leaf)


def _restore(name: str, module: ModuleType) -> None:
    parent, _, leaf = name.rpartition(".")
    sys.modules[name] = module
    setattr(sys.modules[parent], leaf, module)


def _isolated(run: Callable[..., Any]) -> Callable[..., Any]:
    def launch(*args: Any, **options: Any) -> Any:
        with _interpreted_language():
            return run(*args, **options)

    return launch


@contextmanager
def _interpreted_language() -> Iterator[None]:
    """Inside, `tl.sum` and the other functions of `triton.language` that are themselves jitted are interpreted too."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    importlib.import_module("triton.experimental.gluon")  # a launch imports it, and it refuses what is interpreted
    places = (tl, tl.core, tl.math, tl.standard, tl.tensor)
    before = [dict(vars(place)) for place in places]
    try:
        for place in (tl, tl.standard):
            for name, value in dict(vars(place)).items():
                if isinstance(value, JITFunction):
                    setattr(place, name, InterpretedFunction(value.fn))
        yield
    finally:
        for place, names in zip(places, before, strict=True):
            for name, value in names.items():
                if vars(place).get(name) is not value:
                    setattr(place, name, value)
