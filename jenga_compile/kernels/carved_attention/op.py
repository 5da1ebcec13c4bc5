"""Contract of `jenga::carved_attention`.

    out [B, H, L, Dv] = carved_attention(
        q, k, v, key_mask, t, h, w, video_start, curve, cuts, blocks, knobs, scale, reordered,
        told, provider)

Legend: B batch, H heads, L tokens, D head dim. Tokens come as
[text before: video_start tokens] [video: t*h*w tokens] [text after]. Either text may be empty.

    q, k         [B, H, L, D]   bf16, fp16, fp32 or fp64, any strides
    v            [B, H, L, Dv]  of the same dtype
    key_mask     [B or 1, L]    bool in the order of the tokens; True = attend to this key. None = all
    curve, cuts  the curve that blocks of 128 video tokens are cut from, and frames at which it starts anew (`CutCurve`)
    blocks       handle from `kernels.static_masks.register`: which blocks are seen always, and which never
    knobs        handle from `kernels.knobs.register`; both handles are looked up when the operator runs. Where these
                 knobs are metered, what was seen is counted there, except by the reference
    scale        factor on the logits, D**-0.5 if None
    told         the grid is not t, h, w but the one that the running call tells (`token_context.py`), and the video's
                 place with it; of tokens that come reordered, a grid of as many tokens in the same place
    provider     who computes the attention, as in `jenga::block_sparse_attention`
    reordered    False: the video comes row-major, as the model has it. True: it comes on the curve already
    out          the order of the input; BSHD storage seen as BHSD, as `jenga::block_sparse_attention` returns

Means: reorder to [video in curve order, text before, text after], `jenga::block_select`,
`jenga::block_sparse_attention`, and undo the order. With keep=1 this is dense attention.

Refuses what those two refuse, a grid that does not fit or is not told (InvalidGrid, VideoSpanOutOfRange, GridNotSet,
OtherGridTold), an unknown curve (OptionOutOfRange) and an unregistered handle (UnknownKnobs, UnknownMask). Has no
backward (NotDifferentiable).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jenga_compile.curve import CutCurve
from jenga_compile.errors import GridNotSet, VideoSpanOutOfRange
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.kernels import static_masks
from jenga_compile.kernels.carved_attention import gathered, reference
from jenga_compile.kernels.checks import check_qkv, check_tensor, refuse_backward
from jenga_compile.kernels.dispatch import reference_requested, stand_in_order, without_autocast
from jenga_compile.kernels.knobs import lookup as knobs_of
from jenga_compile.kernels.knobs import meter_of
from jenga_compile.token_context import current_context, told_grid

_NAME = "carved_attention"


@torch.library.custom_op(
    "jenga::carved_attention",
    mutates_args=(),
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor? key_mask, SymInt t, SymInt h, SymInt w, SymInt video_start, "
        "str curve, int[] cuts, int blocks, int knobs, float? scale=None, bool reordered=False, "
        "bool told=False, str provider='auto') -> Tensor"
    ),
)
def carved_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    t: int,
    h: int,
    w: int,
    video_start: int,
    curve: CurveKind,
    cuts: Sequence[int],
    blocks: int,
    knobs: int,
    scale: float | None = None,
    reordered: bool = False,
    told: bool = False,
    provider: str = "auto",
) -> torch.Tensor:
    """Carve tokens in the model's order; the contract is the module's docstring."""
    check_qkv(_NAME, q, k, v)
    batch, _, length, _ = q.shape
    grid = TokenGrid(t, h, w)
    if told and reordered:
        grid = told_grid(length, grid.tokens)
    elif told:
        grid, video_start = _told(length)
    if not 0 <= video_start <= length - grid.tokens:
        raise VideoSpanOutOfRange(tokens=grid.tokens, start=video_start, length=length)
    if key_mask is not None:
        rows = 1 if key_mask.shape[:1] == (1,) else batch
        check_tensor(_NAME, "key_mask", key_mask, (rows, length), torch.bool, q.device)
        key_mask = key_mask.expand(batch, length)
    how = CutCurve(curve, tuple(cuts)), static_masks.lookup(blocks), knobs_of(knobs, q.device), scale, reordered
    with without_autocast(q):
        if stand_in_order() is not None:
            return gathered.attend_to_all(q, k, v, key_mask, scale)
        if reference_requested():
            return reference.carved_attention(q, k, v, key_mask, grid, video_start, *how)
        return gathered.carved_attention(
            q, k, v, key_mask, grid, video_start, *how, provider, meter_of(knobs, q.device)
        )


def _told(length: int) -> tuple[TokenGrid, int]:
    """Grid and place of the video, as the running call tells them."""
    context = current_context()
    if context is None:
        raise GridNotSet(length=length)
    return context.grid, length - context.grid.tokens if context.text == "before" else 0


@carved_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    t: int,
    h: int,
    w: int,
    video_start: int,
    curve: CurveKind,
    cuts: Sequence[int],
    blocks: int,
    knobs: int,
    scale: float | None = None,
    reordered: bool = False,
    told: bool = False,
    provider: str = "auto",
) -> torch.Tensor:
    batch, heads, length, _ = q.shape
    return q.new_empty((batch, length, heads, v.shape[-1])).transpose(1, 2)


def _backward(ctx: object, grad: torch.Tensor) -> None:
    refuse_backward(_NAME)


carved_attention.register_autograd(_backward)
