"""Contract of `jenga::block_select`.

    indices [B, H, R, N] int32, counts [B, H, R] int32 = block_select(
        q, k, static_mask, knobs, video, key_mask, parity, allowed_mask)

Legend: B batch, H heads, L tokens = video + text, D head dim, R = ceil(video / 128) video blocks (query rows),
N = R + ceil((L - video) / 128) key blocks. Tokens come as [video in curve order, text]; text starts a block of its own
(`blocks.BlockLayout`). Text may be empty, any partial last block is allowed.

    q, k         [B, H, L, D]  bf16, fp16, fp32 or fp64, any strides; read once
    static_mask  [R, R]        bool; True = this video block is always kept (adjacency, own block, windows)
                 [n, R, R]     the same for heads in turn: head h has mask h % n
    allowed_mask [R, R] or [n, R, R]  bool; False = this video block is dropped where importance takes it. None = all
    knobs        [3]           float32: keep, cutoff, text_bias (`knobs.py`); text_bias plays no part here
    key_mask     [B, L]        bool; True = a valid token. None = all valid
    indices                    key blocks in ascending order, without repeats; -1 at and past the count
    counts                     length of each list, at least 1

The rule, for each batch item, head and video query block; fp32 throughout, fp64 for fp64 inputs:

1. q and k are mean-pooled over the valid tokens of each video block (a block without any has mean 0).
2. score = pooled q . pooled k * D**-0.5; blocks without a valid token score -inf. p = softmax over video blocks only.
3. n_keep = smallest n with n >= keep * R - 1e-3, so that keep 0.2 of 900 is 180 in spite of float32.
   n_cut = smallest n whose n best blocks have mass > cutoff: the number of prefix sums of p <= cutoff, plus 1.
   The max(n_keep, n_cut) best blocks by score are taken, at most R; of equal scores the lower block index wins.
4. Blocks that allowed_mask forbids leave; the row of static_mask and all text blocks join.
5. Blocks without a valid token leave, video and text alike. Should none be left (no valid token in the item),
   the query's own block stays, so no list is empty.

parity=True takes n_keep as the paper's release does: int((1 - (1 - keep)) * R) in Python doubles, which makes 179 of
0.2 * 900. A float32 holds keep to 7 digits, so it is first rounded to the 6 decimals that were meant.

Provided by `fused.py` on GPUs that run Triton, up to `fused.most_blocks` key blocks, without ever waiting for the GPU;
by `gathered.py` elsewhere, for fp64 and for parity, which reads the knobs. Scores closer than the rounding of fp32 sums
may be ranked either way, and providers may differ there.

Refuses other shapes, dtypes and devices (ShapeMismatch, DtypeMismatch, DeviceMismatch) and video outside [1, L]
(VideoOutOfRange). Has no backward (NotDifferentiable).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from jenga_compile.kernels.block_select import gathered, reference
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.checks import check_knobs, check_qkv, check_sequence, check_tensor, refuse_backward
from jenga_compile.kernels.dispatch import reference_requested, runs_triton, without_autocast

_NAME = "block_select"


@torch.library.custom_op(
    "jenga::block_select",
    mutates_args=(),
    schema=(
        "(Tensor q, Tensor k, Tensor static_mask, Tensor knobs, SymInt video, "
        "Tensor? key_mask=None, bool parity=False, Tensor? allowed_mask=None) -> (Tensor indices, Tensor counts)"
    ),
)
def block_select(
    q: torch.Tensor,
    k: torch.Tensor,
    static_mask: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None = None,
    parity: bool = False,
    allowed_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the key blocks; the contract is the module's docstring."""
    check_qkv(_NAME, q, k)
    blocks = check_sequence(_NAME, q, video, key_mask)
    for name, mask in (("static_mask", static_mask), ("allowed_mask", allowed_mask)):
        if mask is not None:
            heads = (max(1, mask.shape[0]),) if mask.dim() == 3 else ()
            check_tensor(_NAME, name, mask, (*heads, blocks.rows, blocks.rows), torch.bool, q.device)
    check_knobs(_NAME, knobs, q.device)
    with without_autocast(q):
        return _provider(q, blocks, parity)(q, k, static_mask, knobs, video, key_mask, parity, allowed_mask)


def _provider(q: torch.Tensor, blocks: BlockLayout, parity: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    if reference_requested():
        return reference.block_select
    if not parity and q.dtype != torch.float64 and runs_triton(q.device):
        from jenga_compile.kernels.block_select import fused

        if blocks.keys <= fused.most_blocks(q.device):
            return fused.block_select
    return gathered.block_select


@block_select.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    static_mask: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None = None,
    parity: bool = False,
    allowed_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, _ = q.shape
    blocks = BlockLayout(length, video)
    counts = q.new_empty((batch, heads, blocks.rows), dtype=torch.int32)
    return q.new_empty((batch, heads, blocks.rows, blocks.keys), dtype=torch.int32), counts


def _backward(ctx: object, *grads: torch.Tensor) -> None:
    refuse_backward(_NAME)


block_select.register_autograd(_backward)
