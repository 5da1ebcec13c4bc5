"""`jenga::block_sparse_attention` in plain Triton, for any GPU that Triton knows; the contract is in `op.py`.

One program computes BM queries of a block, with a running maximum and so for any logits. There are two launches. The
first takes the blocks of a list that need nothing but products, nearly all, and writes the output so far with its
log-sum-exp; the second takes the few at the list's end that need a bias or a mask (`special.py`), if there are any, and
merges them in. Two, because Triton gives a loop of products warps of its own (`Config.specialize`) only where it is the
one loop in its kernel. It costs 4 bytes a query and head for the log-sum-exp, 1.6 % of q at head dim 128 and 3.1 % at
64, and one rounding more of the output, by half a unit in the last place at most. In the other order that rounding
would weigh less, as special blocks have a small share of the softmax, but the kernel of the long loop would have to
merge.

Key blocks are read through tensor descriptors where the chip has a copy engine (Hopper and later), through pointers
elsewhere. Which tile sizes are fastest is measured once for a GPU, dtype and head dim, on a small problem whose answer
is checked, and remembered on disk (`tuning.py`).
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
import triton

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.block_sparse_attention import portable_kernel
from jenga_compile.kernels.block_sparse_attention.problem import settle
from jenga_compile.kernels.block_sparse_attention.special import special_blocks
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import LOG2E, on_device

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

MAX_DIM = 256
"""Largest head dim, of keys and of values."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How a kernel is cut."""

    queries: int
    """BM, queries of a program."""
    keys: int
    """BN, keys of a step."""
    warps: int
    stages: int
    """Key blocks in flight."""
    descriptors: bool = False
    """Whether blocks are read by the copy engine."""
    specialize: bool = False
    """Whether Triton gives copies and products to warps of their own; needs descriptors and four warps,
    and makes them twelve."""


_SAFE = Config(queries=64, keys=32, warps=4, stages=1)
"""Fits every GPU and dtype up to head dim 128."""

_SMALLEST = Config(queries=32, keys=16, warps=4, stages=1)
"""For fp32 beyond it: 64 KB, where consumer GPUs have 99."""

_POINTERS = tuple(
    Config(queries=queries, keys=keys, warps=warps, stages=stages)
    for queries, keys, warps, stages in ((128, 64, 4, 2), (128, 64, 8, 3), (128, 32, 4, 3), (64, 64, 4, 2))
)

_IN_FP32 = (Config(queries=128, keys=32, warps=4, stages=3), Config(queries=64, keys=64, warps=4, stages=2))
"""fp32 is multiplied without tensor cores, in code as long as a tile is large: others compile for minutes."""

_DESCRIPTORS = (
    Config(queries=128, keys=64, warps=4, stages=2, descriptors=True),
    Config(queries=128, keys=128, warps=8, stages=2, descriptors=True),
)

_SPECIALIZED = Config(queries=128, keys=128, warps=4, stages=2, descriptors=True, specialize=True)
"""For Hopper and two-byte dtypes; its tiles take 180 KB. With three stages and 64 keys, Triton 3.6 returns NaN: why
every candidate is checked."""

_SPECIALIZED_WIDTHS = (64, 128)

_SPECIAL = Config(queries=64, keys=64, warps=4, stages=2)
"""Of the second launch, which reads little but queries and outputs; `_SAFE` where its tiles would be larger."""


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
    config: Config | None = None,
) -> torch.Tensor:
    """The operator; `config` is chosen by measurement if None."""
    q, k, v = (x if x.stride(3) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    dim = q.shape[-1]
    if config is None:
        config = _tuned(q, k, v) or _safe(q.dtype, dim, v.shape[-1])
    indices, counts = indices.contiguous(), counts.contiguous()
    batch, heads, length, _ = q.shape
    blocks = BlockLayout(length, video)
    out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    special = special_blocks(indices, counts, blocks, key_mask)
    tensors = (q, k, v, out, lse, indices, counts)
    strides = tuple(stride for x in (q, k, v, out) for stride in x.stride()[:3])
    sizes = (batch * heads, heads, blocks.rows, blocks.keys - blocks.rows, blocks.keys, video, length)
    widths = (_width(dim), _width(v.shape[-1]))
    constants: dict[str, object] = dict(
        D=dim,
        DV=v.shape[-1],
        WIDTH=widths[0],
        WIDTH_V=widths[1],
    )
    small = q.element_size() == 2 and max(widths) <= 128
    tiles = batch * heads * blocks.keys
    with on_device(q.device):
        _launch(
            portable_kernel.attend_plain,
            tiles,
            config,
            (*tensors, special.first, special.counts, scale * LOG2E, *strides, *sizes),
            {**constants, "DESCRIPTORS": config.descriptors, "SPECIALIZE": config.specialize},
        )
        _launch(
            portable_kernel.attend_special,
            tiles,
            _SPECIAL if small else _safe(q.dtype, dim, v.shape[-1]),
            (*tensors, special.caps, special.first, special.counts, knobs, scale * LOG2E, *strides, *sizes),
            constants,
        )
    return out


def _width(dim: int) -> int:
    """Columns of a tile that holds `dim`."""
    return max(16, int(triton.next_power_of_2(dim)))


def _launch(
    kernel: Any, tiles: int, config: Config, arguments: tuple[object, ...], constants: dict[str, object]
) -> None:
    """Launch, with programs enough for each tile of 128 queries."""
    cut = dict(BM=config.queries, BN=config.keys, num_warps=config.warps, num_stages=config.stages)
    grid = (tiles * (BLOCK // config.queries),)
    if config.descriptors:
        # Descriptors made by a kernel want memory from an allocator, which is set for this launch alone.
        contextvars.copy_context().run(_launch_with_memory, kernel[grid], arguments, {**constants, **cut})
    else:
        kernel[grid](*arguments, **constants, **cut)


def _launch_with_memory(launch: Any, arguments: tuple[object, ...], constants: dict[str, object]) -> None:
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    launch(*arguments, **constants)


def _safe(dtype: torch.dtype, *dims: int) -> Config:
    """What fits every GPU."""
    return _SMALLEST if dtype == torch.float32 and max(dims) > 128 else _SAFE


def proven(q: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether the kernel was found right for such tensors; False where that was not and cannot be measured now.

    Raises:
        NoKernelWorks: it is not right here.
    """
    return _tuned(q, q, v) is not None


def _tuned(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Config | None:
    """The fastest right configuration for tensors like these, None where nothing may be measured now."""
    if q.device.type != "cuda":
        return None
    copied = torch.version.hip is None and torch.cuda.get_device_capability(q.device) >= (9, 0)
    copied = copied and all(_copyable(x) for x in (q, k, v))
    dims = (q.shape[-1], v.shape[-1])
    return settle(
        f"{q.dtype} {dims[0]} {dims[1]} {copied}",
        lambda config: functools.partial(block_sparse_attention, config=config),
        candidates=lambda: _candidates(q.device, q.dtype, *dims, copied),
        source=Path(portable_kernel.__file__),
        device=q.device,
        dtype=q.dtype,
        dims=dims,
    )


def _copyable(x: torch.Tensor) -> bool:
    """Whether descriptors can read x [B, H, L, D]."""
    step = 16 // x.element_size()
    fits = x.data_ptr() % 16 == 0 and x.stride(2) > 0 and x.stride(2) % step == 0
    return fits and all(x.stride(dim) % step == 0 for dim in (0, 1) if x.shape[dim] > 1)


def _candidates(device: torch.device, dtype: torch.dtype, dim: int, value_dim: int, copied: bool) -> tuple[Config, ...]:
    """What may be fastest; `copied` if descriptors can read the tensors."""
    if dtype == torch.float32:
        safe = _safe(dtype, dim, value_dim)
        return (*_IN_FP32, safe) if safe == _SAFE else (safe,)
    if not copied:
        return (*_POINTERS, _SAFE)
    fits = all(_width(x) in _SPECIALIZED_WIDTHS for x in (dim, value_dim))
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    return (*((_SPECIALIZED,) if fits and hopper else ()), *_DESCRIPTORS, *_POINTERS, _SAFE)
