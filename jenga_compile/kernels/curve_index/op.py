"""Contract of `jenga::curve_index`.

    index [before + t*h*w + after] int64 = curve_index(t, h, w, kind, inverse, before, after, cuts, told, device)

The order of a sequence of `before` tokens in place, a video on a curve, and `after` tokens in place:

inverse=False   the position in the model's order of the token at each place (`jenga_compile.curve.curve_order`)
inverse=True    the place of the token at each position in the model's order (`jenga_compile.curve.inverse_order`)
told            the grid is not t, h, w but the one, of as many tokens, that the running call tells (`token_context.py`)
cuts            frames at which the curve starts anew (`jenga_compile.curve.CutCurve`)

A graph takes sizes in and gets the index tensor from here, so it holds no constants and one graph serves every
resolution. The tensor on each device is computed once and cached; **the result is a fresh copy of it**, since a graph
may write in place to what an operator returned and would corrupt every later call. That costs one copy of 8 bytes a
token (0.9 MB at 720p, a few microseconds on a GPU) per call, and a hoisted graph calls twice a forward.

Inside `dispatch.use_order`, the video's order is another one, to check that a graph does not depend on it.

Refuses grids and kinds as `TokenGrid` and `curve_order` do (InvalidGrid, OptionOutOfRange), and a call that tells no
grid or one of other size (GridNotSet, OtherGridTold).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from jenga_compile.curve import CutCurve, curve_order, inverse_order
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.kernels.dispatch import stand_in_order
from jenga_compile.token_context import told_grid


@torch.library.custom_op(
    "jenga::curve_index",
    mutates_args=(),
    schema=(
        "(SymInt t, SymInt h, SymInt w, str kind, bool inverse, SymInt before, SymInt after, int[] cuts, "
        "bool told=False, *, Device device) -> Tensor"
    ),
)
def curve_index(
    t: int,
    h: int,
    w: int,
    kind: CurveKind,
    inverse: bool,
    before: int,
    after: int,
    cuts: Sequence[int],
    told: bool = False,
    *,
    device: torch.device,
) -> torch.Tensor:
    """A copy of the index that the caller may write to; the contract is the module's docstring."""
    grid = told_grid(before + t * h * w + after, t * h * w) if told else TokenGrid(t, h, w)
    sequence = grid, CutCurve(kind, tuple(cuts)), inverse, before, after
    if stand_in_order() is not None:
        return _index(*sequence).to(device)
    return cached_index(*sequence, device).clone()


@curve_index.register_fake
def _(
    t: int,
    h: int,
    w: int,
    kind: CurveKind,
    inverse: bool,
    before: int,
    after: int,
    cuts: Sequence[int],
    told: bool = False,
    *,
    device: torch.device,
) -> torch.Tensor:
    return torch.empty(before + t * h * w + after, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def cached_index(
    grid: TokenGrid, curve: CutCurve, inverse: bool, before: int, after: int, device: torch.device
) -> torch.Tensor:
    """The index itself, for operators that only read it: shared between callers, never write to it.

    Ask once before a CUDA graph is captured: a tensor made inside would live in the graph's memory.
    """
    # The cache outlives the caller's mode.
    with torch.inference_mode(False):
        return _index(grid, curve, inverse, before, after).to(device)


def _index(grid: TokenGrid, curve: CutCurve, inverse: bool, before: int, after: int) -> torch.Tensor:
    stand_in = stand_in_order()
    if stand_in is not None:
        video = stand_in(grid.tokens)
        video = video.argsort() if inverse else video
    else:
        video = inverse_order(grid, curve) if inverse else curve_order(grid, curve)
    end = before + grid.tokens
    return torch.cat((torch.arange(before), video + before, torch.arange(end, end + after)))
