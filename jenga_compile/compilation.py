"""`compile`: what a backend alone cannot do, around `torch.compile(model, backend="jenga")`."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule

from jenga_compile.backend import jenga, read_options
from jenga_compile.errors import CompiledAlready, NotAModule, OptionsInDictionary
from jenga_compile.models import grid_of
from jenga_compile.token_context import token_grid


def compile(
    model: torch.nn.Module, *, dynamic: bool = False, fullgraph: bool = False, **options: Any
) -> torch.nn.Module:
    """`model` compiled with its attention carved, also where `torch.compile(model, backend="jenga")` cannot see it.

    Around every call, Dynamo is told to keep sizes that depend on data in its graph (models that drop padding tokens
    sample by sample, such as Mochi, break it otherwise), and blocks that end up in graphs of their own are told the
    grid, if the model's family is known (`models/`), such as HunyuanVideo 1.5.

    Args:
        model: any module. It is not changed; the result shares its weights.
        dynamic: one graph for every resolution, instead of one each.
        fullgraph: whether a graph break is an error.
        **options: as in `torch.compile(model, backend="jenga", options={...})`.

    Returns:
        A module that is called like `model`.

    Raises:
        UnknownOption, OptionOutOfRange, OptionOfWrongType, OptionsAtOdds, OptionsInDictionary: the options are not as
            documented.
        NotAModule, CompiledAlready: `model` is no module, or the result of a compilation.
    """
    if isinstance(model, OptimizedModule):
        raise CompiledAlready(model=type(model._orig_mod).__name__)
    if not isinstance(model, torch.nn.Module):
        raise NotAModule(value=model, found=type(model).__name__)
    if "options" in options:
        raise OptionsInDictionary(options=options["options"])
    read_options(options)
    compiled = torch.compile(model, backend=jenga, dynamic=dynamic, fullgraph=fullgraph, options=options)
    assert isinstance(compiled, torch.nn.Module)
    compiled.forward = _around(compiled.forward, model)
    return compiled


def _around(forward: Callable[..., Any], model: torch.nn.Module) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _dynamo_settings(), known_grid(model, args, kwargs):
            return forward(*args, **kwargs)

    return call


@contextlib.contextmanager
def _dynamo_settings() -> Iterator[None]:
    shapes: Any = importlib.import_module("torch.fx.experimental._config")

    settings = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
    # Sizes that happen to be equal are not one size: a height of 16 must not become as constant as a head dimension.
    with torch._dynamo.config.patch(settings), shapes.patch(use_duck_shape=False):
        yield


@contextlib.contextmanager
def known_grid(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Inside, the grid of this call is told, if the model's family is known."""
    known = grid_of(model, args, kwargs)
    if known is None:
        yield
        return
    grid, text = known
    with token_grid(*grid.shape, text=text):
        yield


__all__ = ["compile", "known_grid"]
