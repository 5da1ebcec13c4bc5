"""`jenga::block_sparse_attention` by FlashAttention 4 (`pip install flash-attn-4`); the contract is in `op.py`.

It knows one sequence a call, blocks at multiples of 128 and no bias, so text is apart from the video. Three calls:

    video queries, video keys    the lists up to the first text block, straight into the output
    video queries, text keys     the rest of the lists; `flash4_merge.py` adds it by log-sum-exp, under the bias
    text queries, every key      dense

What the first two give is rounded to the dtype before it is merged, one rounding more than our own kernels have. A
partial block ends its part of the sequence, where FlashAttention masks the block that is last in a list. Key masks it
cannot take (`providers.py`). Beyond the output it takes another one for the video queries, two float32 for each of
their rows, and three bytes for each place in the lists; inputs that it cannot read are copied. Without text it is one
float32 a row, and the lists.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.block_sparse_attention.flash4_merge import merge
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import on_device

PACKAGE = "flash-attn-4"
"""The distribution."""

DTYPES = (torch.bfloat16, torch.float16)

MAX_DIM = 128
"""Largest head dim: above it FlashAttention's key blocks are smaller than 128."""


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: None,
    scale: float,
) -> torch.Tensor:
    batch, heads, length, dim = q.shape
    blocks = BlockLayout(length, video)
    # shapes: B L H D from here on
    q, k, v = (x.detach().transpose(1, 2) for x in (q, k, v))
    out = q.new_empty(batch, length, heads, dim)
    lse = q.new_empty(2 if blocks.text else 1, batch, heads, video, dtype=torch.float32)
    indices, counts = indices.contiguous(), counts.contiguous()
    used = torch.arange(blocks.keys, device=q.device) < counts[..., None]
    of_video = (used & (indices < blocks.rows)).sum(-1, dtype=torch.int32)
    of_text = counts - of_video
    with on_device(q.device):
        lists = _lists(of_video, indices[..., : blocks.rows])
        _attend(q[:, :video], k[:, :video], v[:, :video], scale, out[:, :video], lse[0], lists)
        text_out = out
        if blocks.text:
            text_out = q.new_empty(batch, video, heads, dim)
            lists = _lists(of_text, _text_indices(indices, of_video, blocks))
            _attend(q[:, :video], k[:, video:], v[:, video:], scale, text_out, lse[1], lists)
            _attend(q[:, video:], k, v, scale, out[:, video:])
        merge(out, text_out, lse, of_video, of_text, knobs, blocks)
    return out.transpose(1, 2)


def _text_indices(indices: torch.Tensor, of_video: torch.Tensor, blocks: BlockLayout) -> torch.Tensor:
    """What follows the video blocks in each list, counted from the first text block; int32 [B, H, R, N - R]."""
    place = of_video[..., None] + torch.arange(blocks.keys - blocks.rows, device=indices.device)
    return indices.gather(-1, place.clamp(max=blocks.keys - 1)) - blocks.rows


def _lists(counts: torch.Tensor, indices: torch.Tensor) -> Any:
    """Blocks that are attended to as a whole, none under a mask of FlashAttention's; it reads up to the count."""
    module = importlib.import_module("flash_attn.cute.block_sparsity")
    return module.BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(counts),
        mask_block_idx=torch.zeros_like(counts)[..., None],
        full_block_cnt=counts,
        full_block_idx=indices,
        block_size=(BLOCK, BLOCK),
    )


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    lists: Any = None,
) -> None:
    """Fill out, like q, and lse [B, H, queries], in natural units; the entry that PyTorch's FlexAttention uses too."""
    flash = importlib.import_module("flash_attn.cute.interface")
    flash._flash_attn_fwd(q, k, v, softmax_scale=scale, block_sparse_tensors=lists, out=out, lse=lse)
