"""What our kernels are measured against in the same process, each adapter as small as its interface allows.

    dense     every key: PyTorch's own choice, cuDNN, FlashAttention 2 and 3 (bf16, fp8) and 4
    sparse    the same block lists: FlashAttention 4 and FlexAttention (with and without TMA loads)
    ceiling   an 8192^3 matrix product, the most that the chip does in bf16

Sparse rivals know one sequence length and blocks at multiples of 128, so they get the `flat` pattern
(`kernels_pattern.py`): no padding, and where the video is no multiple of 128 a few pairs more than ours, which count as
their work. What they need beside q, k and v (lists, masks, fp8 tensors with a scale a head) is made before the clock
starts, and for FlexAttention its compilation as well.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from jenga_compile.bench.kernels_entry import (
    Call,
    Kernel,
    needs_cuda,
    needs_hopper,
    needs_package,
    needs_tma,
    never_missing,
)
from jenga_compile.bench.kernels_inputs import Work
from jenga_compile.grid import BLOCK

CEILING = 8192
"""Side of the matrices whose product is the chip's ceiling."""

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max

_RECOMPILATIONS = 1000
"""Shapes that FlexAttention may be compiled for: Dynamo would run it uncompiled after eight."""


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 of x [1, H, L, D] and the scale of each head, float32 [1, H], by which it is to be multiplied."""
    scale = (x.abs().amax(dim=(2, 3)).float() / FP8_MAX).to(x.dtype)
    return (x / scale[..., None, None]).to(torch.float8_e4m3fn), scale.float()


def _sdpa(backend: SDPBackend | None) -> Callable[[Work], Call]:
    def prepare(work: Work) -> Call:
        inputs = work.inputs

        def call() -> torch.Tensor:
            if backend is None:
                return scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)

        return call

    return prepare


def _fa3(work: Work) -> Call:
    attend = importlib.import_module("fa3_fwd_interface").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (work.inputs.q, work.inputs.k, work.inputs.v))
    return lambda: _bhsd(attend(q, k, v))


def _fa3_fp8(work: Work) -> Call:
    attend = importlib.import_module("fa3_fwd_interface").flash_attn_func
    (q, of_q), (k, of_k), (v, of_v) = (quantised(x) for x in (work.inputs.q, work.inputs.k, work.inputs.v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return lambda: _bhsd(attend(q, k, v, q_descale=of_q, k_descale=of_k, v_descale=of_v))


def _fa4(work: Work) -> Call:
    attend = importlib.import_module("flash_attn.cute").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (work.inputs.q, work.inputs.k, work.inputs.v))
    return lambda: _bhsd(attend(q, k, v))


def _fa4_sparse(work: Work) -> Call:
    attend = importlib.import_module("flash_attn.cute").flash_attn_func
    lists = importlib.import_module("flash_attn.cute.block_sparsity").BlockSparseTensorsTorch
    q, k, v = (x.transpose(1, 2) for x in (work.inputs.q, work.inputs.k, work.inputs.v))
    counts, indices = _flat_lists(work)
    # Ascending lists: only the block that comes last in a list is masked past the end of the sequence.
    tensors = lists(
        mask_block_cnt=torch.zeros_like(counts),
        mask_block_idx=torch.zeros_like(indices[..., :1]),
        full_block_cnt=counts,
        full_block_idx=indices,
        block_size=(BLOCK, BLOCK),
    )
    return lambda: _bhsd(attend(q, k, v, block_sparse_tensors=tensors))


def _flex(options: dict[str, Any]) -> Callable[[Work], Call]:
    def prepare(work: Work) -> Call:
        from torch.nn.attention.flex_attention import BlockMask

        q, k, v, length = work.inputs.q, work.inputs.k, work.inputs.v, work.inputs.shape.length
        counts, indices = _flat_lists(work)
        mask = BlockMask.from_kv_blocks(
            torch.zeros_like(counts),
            torch.zeros_like(indices),
            counts,
            indices,
            BLOCK_SIZE=BLOCK,
            seq_lengths=(length, length),
        )
        attend = _compiled_flex()

        def call() -> torch.Tensor:
            out: torch.Tensor = attend(q, k, v, block_mask=mask, kernel_options=options)
            return out

        with torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS):
            call()
        return call

    return prepare


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _matmul(work: Work) -> Call:
    random = torch.Generator(work.inputs.device).manual_seed(0)
    shape = (2, CEILING, CEILING)
    a, b = torch.randn(shape, generator=random, device=work.inputs.device, dtype=torch.bfloat16)
    return lambda: a @ b


def _flat_lists(work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [1, H, F] and indices [1, H, F, F], with a block that exists past the count."""
    return work.flat.counts[None].contiguous(), work.flat.indices[None].clamp(min=0).contiguous()


def _bhsd(out: Any) -> torch.Tensor:
    """The output [1, L, H, D] of a kernel, which may come with more, as [1, H, L, D]."""
    attended: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return attended.transpose(1, 2)


_FA3, _FA4 = "fa3-fwd", "flash-attn-4"
_NEEDS_FA3 = needs_package("fa3_fwd_interface", _FA3, needs_hopper)
_NEEDS_FA4 = needs_package("flash_attn.cute", _FA4, needs_tma)

RIVALS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="sdpa", group="dense", sees="dense", prepare=_sdpa(None), missing=never_missing),
        Kernel(
            name="sdpa-cudnn",
            group="dense",
            sees="dense",
            prepare=_sdpa(SDPBackend.CUDNN_ATTENTION),
            missing=needs_cuda,
        ),
        Kernel(
            name="sdpa-flash",
            group="dense",
            sees="dense",
            prepare=_sdpa(SDPBackend.FLASH_ATTENTION),
            missing=needs_cuda,
        ),
        Kernel(name="fa3", group="dense", sees="dense", prepare=_fa3, missing=_NEEDS_FA3, package=_FA3),
        Kernel(
            name="fa3-fp8",
            group="dense",
            sees="dense",
            prepare=_fa3_fp8,
            missing=_NEEDS_FA3,
            precision="fp8",
            package=_FA3,
        ),
        Kernel(name="fa4", group="dense", sees="dense", prepare=_fa4, missing=_NEEDS_FA4, package=_FA4),
        Kernel(name="fa4-sparse", group="sparse", sees="flat", prepare=_fa4_sparse, missing=_NEEDS_FA4, package=_FA4),
        Kernel(name="flex", group="sparse", sees="flat", prepare=_flex({}), missing=needs_cuda),
        Kernel(name="flex-tma", group="sparse", sees="flat", prepare=_flex({"USE_TMA": True}), missing=needs_tma),
        Kernel(name="matmul", group="ceiling", sees="nothing", prepare=_matmul, missing=needs_cuda),
    )
}
