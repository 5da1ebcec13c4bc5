"""`jenga::block_sparse_attention` in fp8 (e4m3) on Hopper: quantises, then launches `hopper_fp8_kernel.py`.

Asked for by name only, since it is not exact. At HunyuanVideo 720p with structured inputs, the relative error of the
worst query block measured against float64 is 0.024, most of it from q and k; bf16 has 0.002. A single key that stands
some 9 nats above all others reaches 0.05, since then one rounded value is the whole answer. Beyond rounding:

- keys below about 2^-17.5 of the largest weight that their row has seen vanish;
- scaled logits beyond about +-1,400 nats leave the range in which f16 holds whole octaves, and mean nothing.

Memory: three copies of 8 bits, together 1.5 times q, besides a number for each block.
"""

from __future__ import annotations

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.block_sparse_attention import hopper, hopper_fp8_kernel
from jenga_compile.kernels.block_sparse_attention.quantise import quantise
from jenga_compile.kernels.block_sparse_attention.special import special_blocks
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import on_device

DTYPES = hopper.DTYPES
MAX_DIM = hopper.MAX_DIM

_STAGES = 4


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    indices, counts = indices.contiguous(), counts.contiguous()
    batch, heads, length, dim = q.shape
    blocks = BlockLayout(length, video)
    eight = quantise(q, k, v, blocks, key_mask, scale)
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    texts = blocks.keys - blocks.rows
    total = batch * heads * blocks.keys
    special = special_blocks(indices, counts, blocks, key_mask)

    width = eight.q.shape[-1]
    tensors = (
        *(_descriptor(x, rows) for x, rows in ((eight.q, 64), (eight.k, BLOCK), (eight.v, width))),
        *hopper.output_parts(out, video, width),
        *(eight.q_scale, eight.k_scale, eight.v_scale),
        *(indices, counts, special.caps, special.first, special.counts, knobs),
    )
    sizes = (total, batch * heads, heads, blocks.rows, texts, blocks.keys, video, length)
    with on_device(q.device):
        hopper_fp8_kernel.attend[(total,)](*tensors, *sizes, D=width, ST=_STAGES, **hopper.ROLES)
    return out


def _descriptor(x: torch.Tensor, rows: int) -> TensorDescriptor:
    """Copies of [rows, C] from x [..., C] of bytes, which lie one after the other."""
    flat = x.view(-1, x.shape[-1])
    layout = gl.NVMMASharedLayout(flat.shape[1], 8, rank=2)
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [rows, flat.shape[1]], layout)
