"""`jenga::block_sparse_attention` on Hopper: launches `hopper_kernel.py`; the contract is in `op.py`.

Beyond the output it takes two int32 a tile, for tiles to compute anew. q, k and v are read where they are if the copy
engine can: elements of a token side by side, and every other stride a multiple of 16 bytes; else they are copied.
"""

from __future__ import annotations

import torch
import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.block_sparse_attention import hopper_kernel
from jenga_compile.kernels.block_sparse_attention.special import special_blocks
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import LOG2E, on_device

DTYPES = (torch.bfloat16, torch.float16)

MAX_DIM = 128
"""Largest head dim: accumulators of 64 x 128 fill the registers of a warpgroup."""

_STAGES = 2
ROLES = dict(CONSUMER_REGISTERS=240, PRODUCER_REGISTERS=24, num_warps=4, maxnreg=168, enable_fp_fusion=True)
"""A thread's registers by its role, and at launch: 12 warps of 168 are all that a multiprocessor has."""

_Q_IN_REGISTERS = triton.__version__.startswith("3.6.")
"""Saves a fifth of the reads of shared memory. Only where it was measured: later versions of Triton spill."""


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
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    texts = blocks.keys - blocks.rows
    total = batch * heads * blocks.keys
    noted = torch.zeros(1 + 2 * total, dtype=torch.int32, device=q.device)
    special = special_blocks(indices, counts, blocks, key_mask)

    width = 64 if dim <= 64 else 128
    tensors = (
        *(_descriptor(_copyable(x), rows, width) for x, rows in ((q, 64), (k, BLOCK), (v, BLOCK))),
        *output_parts(out, video, width),
        *(indices, counts, special.caps, special.first, special.counts, knobs, noted),
    )
    sizes = (total, batch * heads, heads, blocks.rows, texts, blocks.keys, video, length, scale * LOG2E)
    constants = dict(
        D=width,
        ST=_STAGES,
        Q_IN_REGISTERS=_Q_IN_REGISTERS,
        **ROLES,
    )
    narrow = q.dtype == torch.float16  # in exponents: needs the running maximum
    with on_device(q.device):
        hopper_kernel.attend[(total,)](*tensors, *sizes, LAZY=narrow, REDO=False, **constants)
        if not narrow:
            programs = min(total, torch.cuda.get_device_properties(q.device).multi_processor_count)
            hopper_kernel.attend[(programs,)](*tensors, *sizes, LAZY=True, REDO=True, **constants)
    return out


def output_parts(out: torch.Tensor, video: int, width: int) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Stores of [64, width] to the video and to the text of out [B, H, L, D]; without text, to the video twice."""
    of_video = _descriptor(out[:, :, :video], 64, width)
    return of_video, _descriptor(out[:, :, video:], 64, width) if video < out.shape[2] else of_video


def _copyable(x: torch.Tensor) -> torch.Tensor:
    """x [B, H, L, D] itself, or a copy that the copy engine can read."""
    step = 16 // x.element_size()
    fits = x.data_ptr() % 16 == 0 and x.stride(3) == 1
    fits &= all(stride % step == 0 and (stride or size == 1) for stride, size in _outer(x) if size > 1)
    return x if fits else x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def _outer(x: torch.Tensor) -> list[tuple[int, int]]:
    return list(zip(x.stride()[:3], x.shape[:3], strict=True))


def _descriptor(x: torch.Tensor, rows: int, width: int) -> TensorDescriptor:
    """Copies of [rows, width] from x [B, H, L, D]; what lies past L or D is zero when read, and not written."""
    # The stride of a dimension of size 1 means nothing, but must be a valid one.
    strides = [stride if size > 1 else x.shape[3] * 16 for stride, size in _outer(x)]
    layout = gl.NVMMASharedLayout(128, 16, rank=4)
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, width], layout)
