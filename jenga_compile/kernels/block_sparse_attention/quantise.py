"""e4m3 copies of q, k and v for attention over lists, in whole blocks of 128 tokens.

q and k have a scale for each block, a power of two that keeps entries within 22: a product of two vectors of 128 such
entries fits a half, and the kernel's scales are exact in fp16. K is smoothed first, as in SageAttention: its mean over
keys is taken off, which moves all logits of a query alike and so changes nothing in exact arithmetic. The mean is of a
sample, every eighth tile of 64 keys. V has a scale for each channel, its largest absolute value over 448.

Three launches read k once and an eighth, v twice, q once.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import LOG2E, on_device

_TILE, _TILES, _EVERY = 64, 32, 8
"""Keys of a tile; tiles that one program reads; of how many tiles one counts for the mean of k."""


@dataclasses.dataclass(frozen=True)
class Quantised:
    """Bytes, and the float32 numbers that they are to be multiplied by. Tokens that are not there are zeros, and so are
    k and v of masked keys; D' is 64 or 128, zeros from D on."""

    q: torch.Tensor
    """q * scale in eighths of an octave, [B, H, N, 128, D']."""
    k: torch.Tensor
    """k less its mean, [B, H, N, 128, D']."""
    v: torch.Tensor
    """[B, H, N, D', 128]; of each 16 keys, place 4 t + 2 g + e holds key 8 g + 2 t + e (g, e < 2, t < 4), the order in
    which a product's result lies in registers (`hopper_fp8_parts.operand`)."""
    q_scale: torch.Tensor
    """[B, H, N]."""
    k_scale: torch.Tensor
    """[B, H, N]."""
    v_scale: torch.Tensor
    """[B, H, D']."""
    k_mean: torch.Tensor
    """What was taken off k, [B, H, D']."""


def quantise(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: BlockLayout,
    key_mask: torch.Tensor | None,
    scale: float,
) -> Quantised:
    """Quantise q, k and v [B, H, L, D] of any strides, D up to 128."""
    batch, heads, length, dim = q.shape
    width = 64 if dim <= 64 else 128
    chunks = -(-length // (_TILE * _TILES))

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(batch, heads, *shape, dtype=dtype, device=q.device)

    of_keys = new(blocks.keys, BLOCK, width, dtype=torch.float8_e4m3fn)
    out = Quantised(
        q=of_keys,
        k=torch.empty_like(of_keys),
        v=new(blocks.keys, width, BLOCK, dtype=torch.float8_e4m3fn),
        q_scale=new(blocks.keys),
        k_scale=new(blocks.keys),
        v_scale=new(width),
        k_mean=new(width),
    )
    sums, numbers, tops = new(chunks, width), new(chunks), new(chunks, width)
    mask_strides = (0, 0) if key_mask is None else key_mask.stride()
    kv_strides = (*k.stride(), *v.stride())
    sizes = (blocks.rows, blocks.keys, blocks.video, length)
    with on_device(q.device):
        _survey[(chunks, batch * heads)](
            k, v, key_mask, sums, numbers, tops, heads, length, *mask_strides, *kv_strides, dim,
            D=width, TILE=_TILE, TILES=_TILES, EVERY=_EVERY,
        )  # fmt: skip
        _conclude[(batch * heads,)](sums, numbers, tops, out.k_mean, out.v_scale, chunks, D=width, CHUNKS=16)
        _quantise[(blocks.keys, batch * heads)](
            q, k, v, key_mask, out.k_mean, out.v_scale, out.q, out.k, out.v, out.q_scale, out.k_scale,
            scale * 8 * LOG2E, heads, *sizes, *mask_strides, *q.stride(), *kv_strides, dim,
            D=width, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
    return out


@triton.jit
def _read(x, item, head, token, here, strides, dim, D: tl.constexpr):
    """x at the tokens that are here, float32 [tokens, D], zeros elsewhere."""
    d = tl.arange(0, D)
    at = x + item * strides[0] + head * strides[1] + token.to(tl.int64)[:, None] * strides[2] + d[None, :] * strides[3]
    return tl.load(at, mask=here[:, None] & (d < dim)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _attended(key_mask, item, token, here, batch_stride, token_stride):
    """Of the tokens that are here, those that are not masked."""
    if key_mask is not None:
        row = key_mask + item * batch_stride
        here = tl.load(row + token.to(tl.int64) * token_stride, mask=here, other=0).to(tl.int8) != 0
    return here


@triton.jit(do_not_specialize=["heads", "length"])
def _survey(
    k, v, key_mask, k_sums, k_numbers, v_tops, heads, length, mb, ml, kb, kh, kl, kd, vb, vh, vl, vd, dim,
    D: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Of a chunk of TILES tiles: sum and number of the keys in every EVERY-th, and each channel's largest |v|."""
    item = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    k_sum = tl.zeros([D], tl.float32)
    number = 0.0
    top = tl.zeros([TILE, D], tl.float32)
    for i in range(TILES):
        token = (tl.program_id(0) * TILES + i) * TILE + tl.arange(0, TILE)
        here = _attended(key_mask, item, token, token < length, mb, ml)
        top = tl.maximum(top, tl.abs(_read(v, item, head, token, here, (vb, vh, vl, vd), dim, D)))
        if i % EVERY == 0:
            k_sum += tl.sum(_read(k, item, head, token, here, (kb, kh, kl, kd), dim, D), 0)
            number += tl.sum(here.to(tl.float32), 0)
    at = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(k_sums + at * D + tl.arange(0, D), k_sum)
    tl.store(k_numbers + at, number)
    tl.store(v_tops + at * D + tl.arange(0, D), tl.max(top, 0))


@triton.jit(do_not_specialize=["chunks"])
def _conclude(k_sums, k_numbers, v_tops, k_mean, v_scale, chunks, D: tl.constexpr, CHUNKS: tl.constexpr):
    """The mean of k and the scale of v of one head."""
    d = tl.arange(0, D)
    k_sum = tl.zeros([D], tl.float32)
    number = 0.0
    top = tl.zeros([D], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        at = tl.program_id(0) * chunks + chunk
        there = chunk < chunks
        square = at[:, None] * D + d[None, :]
        k_sum += tl.sum(tl.load(k_sums + square, mask=there[:, None], other=0.0), 0)
        number += tl.sum(tl.load(k_numbers + at, mask=there, other=0.0), 0)
        top = tl.maximum(top, tl.max(tl.load(v_tops + square, mask=there[:, None], other=0.0), 0))
    tl.store(k_mean + tl.program_id(0) * D + d, k_sum / tl.maximum(number, 1.0))
    tl.store(v_scale + tl.program_id(0) * D + d, top / 448.0)


@triton.jit
def _fits_22(x):
    """Largest power of two that leaves all of x within 22."""
    top = tl.max(tl.max(tl.abs(x), 1), 0)
    ratio = 22.0 / tl.minimum(tl.maximum(top, 1e-30), 1e30)
    return (ratio.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["heads", "rows", "keys", "video", "length"])
def _quantise(
    q, k, v, key_mask, k_mean, v_scale, q8, k8, v8, q_scale, k_scale, factor, heads, rows, keys, video, length,
    mb, ml, qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, dim, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one head."""
    block = tl.program_id(0)
    item = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    d = tl.arange(0, D)
    place = tl.arange(0, BLOCK)
    start = tl.where(block >= rows, video + (block - rows) * BLOCK, block * BLOCK)
    end = tl.where(block >= rows, length, video)
    number = (tl.program_id(1) * keys + block).to(tl.int64)
    square = number * BLOCK * D + place[:, None] * D + d[None, :]

    token = start + place
    here = token < end
    x = _read(q, item, head, token, here, (qb, qh, ql, qd), dim, D) * factor
    power = _fits_22(x)
    tl.store(q8 + square, (x * power).to(tl.float8e4nv, fp_downcast_rounding="rtne"))
    tl.store(q_scale + number, 1.0 / power)

    here = _attended(key_mask, item, token, here, mb, ml)
    x = _read(k, item, head, token, here, (kb, kh, kl, kd), dim, D)
    x = tl.where(here[:, None], x - tl.load(k_mean + tl.program_id(1) * D + d)[None, :], 0.0)
    power = _fits_22(x)
    tl.store(k8 + square, (x * power).to(tl.float8e4nv, fp_downcast_rounding="rtne"))
    tl.store(k_scale + number, 1.0 / power)

    token = start + place // 16 * 16 + place // 2 % 2 * 8 + place // 4 % 4 * 2 + place % 2
    here = _attended(key_mask, item, token, token < end, mb, ml)
    inverse = 1.0 / tl.maximum(tl.load(v_scale + tl.program_id(1) * D + d), 1e-30)
    x = _read(v, item, head, token, here, (vb, vh, vl, vd), dim, D) * inverse[None, :]
    x = tl.minimum(tl.maximum(x, -448.0), 448.0).to(tl.float8e4nv, fp_downcast_rounding="rtne")
    tl.store(v8 + number * BLOCK * D + d[:, None] * BLOCK + place[None, :], tl.trans(x))
