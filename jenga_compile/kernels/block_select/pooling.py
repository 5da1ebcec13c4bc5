"""Means of the tokens of each video block, of q and k in one Triton kernel that reads both once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout


def pool(
    q: torch.Tensor, k: torch.Tensor, key_mask: torch.Tensor | None, blocks: BlockLayout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Pool q and k [B, H, L, D] of any strides; the device of q is the current one, or both are on the CPU.

    Returns:
        The means of q and of k over valid tokens, fp32 [B, H, R, D] each, 0 for a block without any; and with a
        key_mask [B, L] the number of valid tokens in each block, text too, int32 [B, N].
    """
    batch, heads, _, dim = q.shape
    q_means, k_means = (q.new_empty((batch, heads, blocks.rows, dim), dtype=torch.float32) for _ in range(2))
    valid = None if key_mask is None else q.new_empty((batch, blocks.keys), dtype=torch.int32)
    _pool[(heads * (blocks.rows if key_mask is None else blocks.keys), 2 * batch)](
        q,
        k,
        key_mask,
        q_means,
        k_means,
        valid,
        q.stride(),
        k.stride(),
        (0, 0) if key_mask is None else key_mask.stride(),
        heads,
        blocks.length,
        blocks.video,
        blocks.rows,
        blocks.keys,
        DIM=dim,
        DIM_TILE=triton.next_power_of_2(dim),
        BLOCK=BLOCK,
        HEADS_FIRST=q.stride(1) < q.stride(2),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return q_means, k_means, valid


@triton.jit
def _pool(
    q,
    k,
    key_mask,
    q_means,
    k_means,
    valid,
    q_strides,
    k_strides,
    mask_strides,
    heads,
    length,
    video,
    rows,
    keys,
    DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS_FIRST: tl.constexpr,
):
    # Programs that run at the same time read neighbouring memory, whichever of heads and tokens lies closer together.
    blocks = tl.num_programs(0) // heads
    if HEADS_FIRST:
        block, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    else:
        block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    side, batch = tl.program_id(1) % 2, tl.program_id(1) // 2

    in_video = block < rows
    start = tl.where(in_video, block * BLOCK, video + (block - rows) * BLOCK)
    token = start + tl.arange(0, BLOCK)
    counted = token < tl.where(in_video, video, length)
    if key_mask is not None:
        place = batch.to(tl.int64) * mask_strides[0] + token.to(tl.int64) * mask_strides[1]
        counted = tl.load(key_mask + place, counted, False)
    tokens = tl.sum(counted.to(tl.int32), 0)
    if valid is not None:
        tl.store(valid + batch * keys + block, tokens, mask=(side == 0) & (head == 0))

    if in_video:
        if side == 0:
            total = _sum(q, q_strides, batch, head, start, counted, DIM, DIM_TILE, BLOCK)
        else:
            total = _sum(k, k_strides, batch, head, start, counted, DIM, DIM_TILE, BLOCK)
        mean = tl.div_rn(total, tl.maximum(tokens, 1).to(tl.float32))
        d = tl.arange(0, DIM_TILE)
        means = tl.where(side == 0, q_means, k_means)
        tl.store(means + ((batch * heads + head).to(tl.int64) * rows + block) * DIM + d, mean, mask=d < DIM)


@triton.jit
def _sum(x, strides, batch, head, start, counted, DIM: tl.constexpr, DIM_TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the counted tokens of one block, fp32 [DIM_TILE]."""
    d = tl.arange(0, DIM_TILE)
    first = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1] + start.to(tl.int64) * strides[2]
    place = tl.arange(0, BLOCK)[:, None] * strides[2] + d[None, :] * strides[3]
    tile = tl.load(x + first + place, counted[:, None] & (d < DIM)[None, :], 0.0)
    return tl.sum(tile.to(tl.float32), 0)
