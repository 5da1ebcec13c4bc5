"""Why attention stays as it is, in the words that several passes share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jenga_compile.config import Carving
from jenga_compile.grid import BLOCK
from jenga_compile.passes.graph import is_data_dependent, tensor_of
from jenga_compile.passes.sizes import Size, hint_of
from jenga_compile.passes.written.parts import whole_of

HANGS_ON_DATA = "a size that depends on data"
UNKNOWN_SIZES = "its sizes were not known to agree"
"""Why a pass left what it now would take: a size has been specialised since it asked."""


def not_inference(out: torch.Tensor) -> str | None:
    """Why a call with this output is no plain inference; None if it is."""
    return _transformed(out) or _recorded(out)


def not_rewritable(inputs: Iterable[Node], out: torch.Tensor) -> str | None:
    """Why a call cannot be spelled in other ops on its fake tensors; None if it can."""
    if any(map(is_data_dependent, inputs)):
        return HANGS_ON_DATA
    subclass = None if isinstance(out, FakeTensor) else f"a tensor subclass: {type(out).__name__}"
    return _transformed(out) or subclass or _recorded(out)


def _transformed(out: torch.Tensor) -> str | None:
    return "inside a torch.func transform" if torch._C._functorch.is_functorch_wrapped_tensor(out) else None


def _recorded(out: torch.Tensor) -> str | None:
    if out.requires_grad:
        return "gradients required: carving is inference only, run the model under torch.no_grad()"
    return None


def not_meant(queries: Node, dim: int, keys: Size, carving: Carving) -> str | None:
    """Why attention of the tokens along `dim` to so many keys is no large self-attention; None if it is.

    No guard is added.
    """
    size = tensor_of(queries).shape[dim]
    if not statically_known_true(size == keys):
        return not_self(queries, dim, keys)
    return short(hint_of(size), "tokens", carving) if carving.is_short(hint_of(size)) else None


def not_self(queries: Node, dim: int, keys: Size) -> str:
    """Why attention whose queries are not as many as its keys is none of tokens to themselves."""
    size = tensor_of(queries).shape[dim]
    found, others = hint_of(size) or "data-dependent", hint_of(keys) or "data-dependent"
    if found != others and hint_of(whole_of(queries, dim, keys)) == others:
        return f"part of the queries: {found} of {others}"
    by_chance = ", as many only by chance" if found == others != "data-dependent" else ""
    return f"cross-attention: {found} queries, {others} keys{by_chance}"


def short(tokens: int, what: str, carving: Carving) -> str:
    """Why a site with so few tokens stays dense."""
    return f"short: {tokens} {what} are fewer than min_blocks={carving.min_blocks} blocks of {BLOCK}"
