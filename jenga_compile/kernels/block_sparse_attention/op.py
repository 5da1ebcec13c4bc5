"""Contract of `jenga::block_sparse_attention`.

    out [B, H, L, Dv] = block_sparse_attention(q, k, v, indices, counts, knobs, video, key_mask, scale, provider)

Legend: B batch, H heads, L tokens = video + text, D head dim, R = ceil(video / 128) video blocks (query rows),
N = R + ceil((L - video) / 128) key blocks. Tokens come as [video in curve order, text]; text starts a block of its own
(`blocks.BlockLayout`). Text may be empty, any partial last block is allowed.

    q, k      [B, H, L, D]   bf16, fp16, fp32 or fp64, any strides
    v         [B, H, L, Dv]  of the same dtype
    indices   [B, H, R, N]   int32: the key blocks of each query row, ascending, without repeats; read up to the count
    counts    [B, H, R]      int32, 0 allowed
    knobs     [3]            float32: keep, cutoff, text_bias (`knobs.py`); only text_bias plays a part here
    key_mask  [B, L]         bool; True = attend to this key. None = all
    scale     factor on the logits, D**-0.5 if None
    provider  who computes it (`providers.py`); "auto" takes the fastest that can
    out       dtype of q; BSHD storage seen as BHSD, the strides of new_empty(B, L, H, Dv).transpose(1, 2)

Video queries attend to the keys of the blocks listed for their row, with text_bias (natural-log units, after scaling)
added to the logits of text keys. Text queries attend to every key, without the bias. Masked keys take no part and
have no influence whatever their finite content. A query without any key to attend to gives zeros.
Softmax and sums are at least fp32 inside; the result is within rounding of `reference.py`.

Refuses other shapes, dtypes and devices (ShapeMismatch, DtypeMismatch, DeviceMismatch), video outside [1, L]
(VideoOutOfRange), on a CPU lists naming blocks that do not exist (BlockListOutOfRange), and a provider that there is
not (OptionOutOfRange), that cannot compute this (KernelUnavailable) or is wrong on this GPU (NoKernelWorks).
Has no backward (NotDifferentiable).
"""

from __future__ import annotations

import torch

from jenga_compile.kernels.block_sparse_attention import reference
from jenga_compile.kernels.block_sparse_attention.providers import find
from jenga_compile.kernels.checks import check_knobs, check_lists, check_qkv, check_sequence, refuse_backward
from jenga_compile.kernels.dispatch import reference_requested, without_autocast

_NAME = "block_sparse_attention"


@torch.library.custom_op(
    "jenga::block_sparse_attention",
    mutates_args=(),
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, Tensor knobs, SymInt video, "
        "Tensor? key_mask=None, float? scale=None, str provider='auto') -> Tensor"
    ),
)
def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None = None,
    scale: float | None = None,
    provider: str = "auto",
) -> torch.Tensor:
    """Attend to the listed key blocks; the contract is the module's docstring."""
    check_qkv(_NAME, q, k, v)
    blocks = check_sequence(_NAME, q, video, key_mask)
    check_lists(_NAME, indices, counts, q, blocks)
    check_knobs(_NAME, knobs, q.device)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(q):
        compute = reference.block_sparse_attention
        if not reference_requested():
            compute = find(provider, q, v, scale, masked=key_mask is not None)
        return compute(q, k, v, indices, counts, knobs, video, key_mask, scale)


@block_sparse_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None = None,
    scale: float | None = None,
    provider: str = "auto",
) -> torch.Tensor:
    batch, heads, length, _ = q.shape
    return q.new_empty((batch, length, heads, v.shape[-1])).transpose(1, 2)


def _backward(ctx: object, grad: torch.Tensor) -> None:
    refuse_backward(_NAME)


block_sparse_attention.register_autograd(_backward)
