"""Contract of `jenga::curve_index`.

    index [t*h*w] int64 = curve_index(t, h, w, kind, inverse, device)

inverse=False   `jenga_compile.curve.curve_order`: the row-major index of the token at each curve position
inverse=True    `jenga_compile.curve.inverse_order`: the curve position of the token at each row-major index

A graph takes sizes in and gets the index tensor from here, so it holds no constants and one graph serves every
resolution. The tensor on each device is computed once and cached; **the result is a fresh copy of it**, since a graph
may write in place to what an operator returned and would corrupt every later call. That costs one copy of 8 bytes a
token (0.9 MB at 720p, a few microseconds on a GPU) per call, and a hoisted graph calls twice a forward.

Refuses grids and kinds as `TokenGrid` and `curve_order` do (InvalidGrid, OptionOutOfRange).
"""

from __future__ import annotations

from functools import lru_cache

import torch

from jenga_compile.config import CurveKind
from jenga_compile.curve import curve_order, inverse_order
from jenga_compile.grid import TokenGrid


@torch.library.custom_op(
    "jenga::curve_index",
    mutates_args=(),
    schema="(SymInt t, SymInt h, SymInt w, str kind, bool inverse, *, Device device) -> Tensor",
)
def curve_index(t: int, h: int, w: int, kind: CurveKind, inverse: bool, *, device: torch.device) -> torch.Tensor:
    """A copy of the index that the caller may write to; the contract is the module's docstring."""
    return cached_index(TokenGrid(t, h, w), kind, inverse, device).clone()


@curve_index.register_fake
def _(t: int, h: int, w: int, kind: CurveKind, inverse: bool, *, device: torch.device) -> torch.Tensor:
    return torch.empty(t * h * w, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def cached_index(grid: TokenGrid, kind: CurveKind, inverse: bool, device: torch.device) -> torch.Tensor:
    """The index itself, for operators that only read it: shared between callers, never write to it.

    Ask once before a CUDA graph is captured: a tensor made inside would live in the graph's memory.
    """
    # The cache outlives the caller's mode.
    with torch.inference_mode(False):
        index = inverse_order(grid, kind) if inverse else curve_order(grid, kind)
        return index.to(device)
