"""`jenga::block_sparse_attention` in plain Triton, for any GPU that Triton knows; the contract is in `op.py`.

One program computes BM queries of a block, with a running maximum and so for any logits. As in `hopper_kernel.py` a
list is walked from its end: blocks that need a bias or a mask come first, the rest is a loop of products alone.

Key blocks are read through tensor descriptors where the chip has a copy engine (Hopper and later), through pointers
elsewhere. Which tile sizes are fastest is measured once for a GPU, dtype and head dim, on a small problem whose answer
is checked, and remembered on disk (`tuning.py`).
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from pathlib import Path

import torch
import triton
import triton.language as tl

from jenga_compile.grid import BLOCK
from jenga_compile.kernels import tuning
from jenga_compile.kernels.block_sparse_attention.problem import attention_problem
from jenga_compile.kernels.block_sparse_attention.special import first_special
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import on_device

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

MAX_DIM = 256
"""Largest head dim, of keys and of values."""

_LOG2E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Config:
    """How the kernel is cut."""

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
    """Whether Triton gives copies and products to warps of their own; needs descriptors and four warps."""


_SAFE = Config(queries=64, keys=32, warps=4, stages=1)
"""Fits every GPU and dtype; what runs where nothing may be measured."""

_POINTERS = tuple(
    Config(queries=queries, keys=keys, warps=warps, stages=stages)
    for queries, keys, warps, stages in ((128, 64, 4, 2), (128, 64, 8, 3), (128, 32, 4, 3), (64, 64, 4, 2))
)

_DESCRIPTORS = (
    Config(queries=128, keys=128, warps=4, stages=2, descriptors=True, specialize=True),
    Config(queries=128, keys=64, warps=4, stages=2, descriptors=True),
    Config(queries=128, keys=128, warps=8, stages=2, descriptors=True),
)
"""With three stages and 64 keys, Triton 3.6 returns NaN from a specialized kernel: why every candidate is checked."""


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
    if config is None:
        config = _tuned(q, k, v)
    batch, heads, length, dim = q.shape
    blocks = BlockLayout(length, video)
    out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
    special = first_special(blocks, batch, key_mask, q.device)
    mask = None if key_mask is None else key_mask.contiguous().view(torch.int8)
    arguments = (
        *(q, k, v, out, indices.contiguous(), counts.contiguous()),
        *(q.new_empty(1, dtype=torch.int8) if mask is None else mask, special, knobs, scale * _LOG2E),
        *(stride for x in (q, k, v, out) for stride in x.stride()[:3]),
        *(batch * heads, heads, blocks.rows, blocks.keys - blocks.rows, blocks.keys, video, length),
    )
    constants = dict(
        D=dim,
        DV=v.shape[-1],
        WIDTH=max(16, triton.next_power_of_2(dim)),
        WIDTH_V=max(16, triton.next_power_of_2(v.shape[-1])),
        BM=config.queries,
        BN=config.keys,
        LIST=min(1024, max(16, triton.next_power_of_2(blocks.keys))),
        HAS_MASK=mask is not None,
        DESCRIPTORS=config.descriptors,
        SPECIALIZE=config.specialize,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.warps,
        num_stages=config.stages,
    )
    grid = (batch * heads * blocks.keys * (BLOCK // config.queries),)
    with on_device(q.device):
        # Descriptors made by a kernel want memory from an allocator, which is set for this launch alone.
        contextvars.copy_context().run(_launch, grid, arguments, constants)
    return out


def _launch(grid: tuple[int, ...], arguments: tuple[object, ...], constants: dict[str, object]) -> None:
    if constants["DESCRIPTORS"]:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    _attend[grid](*arguments, **constants)


def _tuned(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Config:
    """The fastest right configuration for tensors like these."""
    if q.device.type != "cuda":
        return _SAFE
    copied = torch.version.hip is None and torch.cuda.get_device_capability(q.device) >= (9, 0)
    copied = copied and all(_copyable(x) for x in (q, k, v))
    return _measured(q.device, q.dtype, q.shape[-1], v.shape[-1], copied) or _SAFE


def _copyable(x: torch.Tensor) -> bool:
    """Whether descriptors can read x [B, H, L, D]."""
    step = 16 // x.element_size()
    return x.data_ptr() % 16 == 0 and all(stride % step == 0 for stride in x.stride()[:3])


_chosen: dict[tuple[object, ...], Config] = {}


def _measured(device: torch.device, dtype: torch.dtype, dim: int, value_dim: int, copied: bool) -> Config | None:
    """The winner, None where nothing may be measured now."""
    key = (device, dtype, dim, value_dim, copied)
    if key not in _chosen:
        if tuning.forbidden(device):
            return None
        candidates = (*(_DESCRIPTORS if copied else ()), *_POINTERS, _SAFE)
        problem = attention_problem(device, dtype, dim, value_dim)
        _chosen[key] = tuning.fastest(
            f"{dtype} {dim} {value_dim} {copied}",
            source=Path(__file__),
            candidates=candidates,
            run=lambda config: functools.partial(block_sparse_attention, *problem.arguments, config=config),
            truth=problem.truth,
            device=device,
        )
    return _chosen[key]


@triton.jit
def _span(block, R, video, length):
    """First token of a block, and how many tokens follow before its part ends: at least 128 if it is a full one."""
    is_text = block >= R
    start = tl.where(is_text, video + (block - R) * 128, block * 128)
    end = tl.where(is_text, length, video)
    return start, end - start


@triton.jit
def _listed(row_list, row, place, R):
    """Key block at a place of a row's list; a text row lists every block."""
    block = place
    if row < R:
        block = tl.load(row_list + place)
    return block


@triton.jit
def _rows(base, stride, start, left, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """[ROWS, WIDTH] from token `start` on, by pointers; past D, and unless WHOLE past `left` rows, zero."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    pointers = base + (start + row).to(tl.int64)[:, None] * stride + column[None, :]
    if WHOLE and D == WIDTH:
        x = tl.load(pointers)
    else:
        x = tl.load(pointers, mask=((row < left) | WHOLE)[:, None] & (column < D)[None, :], other=0.0)
    return x


@triton.jit
def _accumulate(s, v, m, sums, acc, PRECISION: tl.constexpr):
    """Online softmax: s [BM, BN] logits of base 2, v [BN, WIDTH_V], m and sums [BM], acc [BM, WIDTH_V]."""
    top = tl.maximum(m, tl.max(s, 1))
    # A row that has seen no valid key yet.
    base = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(s - base[:, None])
    factor = tl.exp2(m - base)
    sums = sums * factor + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
    return top, sums, acc


@triton.jit(
    do_not_specialize=["heads", "H", "R", "T", "N", "video", "length"],
    do_not_specialize_on_alignment=["key_mask"],
)
def _attend(
    q, k, v, out, indices, counts, key_mask, special, knobs, scale,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l,
    heads, H, R, T, N, video, length,
    D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    LIST: tl.constexpr, HAS_MASK: tl.constexpr, DESCRIPTORS: tl.constexpr, SPECIALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = 128 // BM
    STEPS: tl.constexpr = 128 // BN
    part = tl.program_id(0) % PARTS
    number = tl.program_id(0) // PARTS
    # Text rows see every key and take longest: they start first.
    texts = heads * T
    is_text = number < texts
    head = tl.where(is_text, number // tl.maximum(T, 1), (number - texts) // R)
    row = tl.where(is_text, R + number % tl.maximum(T, 1), (number - texts) % R)
    item = (head // H).to(tl.int64)
    q_start, q_left = _span(row, R, video, length)
    q_start += part * BM
    q_left -= part * BM
    q_head = q + item * q_b + (head % H) * q_h
    k_head = k + item * k_b + (head % H) * k_h
    v_head = v + item * v_b + (head % H) * v_h
    mask_row = key_mask + item * length
    if DESCRIPTORS:
        k_desc = tl.make_tensor_descriptor(k_head, [length, D], [k_l, 1], [BN, WIDTH])
        v_desc = tl.make_tensor_descriptor(v_head, [length, DV], [v_l, 1], [BN, WIDTH_V])

    first_needing = tl.load(special + item)
    row_list = indices + (head * R + tl.minimum(row, R - 1)).to(tl.int64) * N
    n = N
    specials = N - tl.minimum(first_needing, N)
    if row < R:
        n = tl.load(counts + head * R + row)
        specials = 0
        for start in range(0, n, LIST):
            place = start + tl.arange(0, LIST)
            needs = tl.load(row_list + place, mask=place < n, other=-1) >= first_needing
            specials += tl.sum(needs.to(tl.int32), 0)
    # The amplifier is in natural units, exponentials here are of base 2.
    bias = tl.load(knobs + 2) * 1.4426950408889634

    b_q = _rows(q_head, q_l, q_start, q_left, D, WIDTH, BM, False)
    # shapes: b_q is BM x WIDTH, m and sums BM, acc BM x WIDTH_V
    m = tl.full([BM], float("-inf"), tl.float32)
    sums = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDTH_V], tl.float32)
    for i in range(0, specials * STEPS):
        block = _listed(row_list, row, n - 1 - i // STEPS, R)
        start, left = _span(block, R, video, length)
        start += i % STEPS * BN
        left -= i % STEPS * BN
        b_k = _rows(k_head, k_l, start, left, D, WIDTH, BN, False)
        b_v = _rows(v_head, v_l, start, left, DV, WIDTH_V, BN, False)
        key = tl.arange(0, BN)
        valid = key < left
        if HAS_MASK:
            valid = tl.load(mask_row + start + key, mask=valid, other=0) != 0
        s = tl.dot(b_q, b_k.T, input_precision=PRECISION) * scale
        s += tl.where((block >= R) & (row < R), bias, 0.0)
        s = tl.where(valid[None, :], s, float("-inf"))
        m, sums, acc = _accumulate(s, b_v, m, sums, acc, PRECISION)
    for i in tl.range(specials * STEPS, n * STEPS, warp_specialize=SPECIALIZE):
        start = _listed(row_list, row, n - 1 - i // STEPS, R) * 128 + i % STEPS * BN
        if DESCRIPTORS:
            b_k = k_desc.load([start, 0])
            b_v = v_desc.load([start, 0])
        else:
            b_k = _rows(k_head, k_l, start, BN, D, WIDTH, BN, True)
            b_v = _rows(v_head, v_l, start, BN, DV, WIDTH_V, BN, True)
        s = tl.dot(b_q, b_k.T, input_precision=PRECISION) * scale
        m, sums, acc = _accumulate(s, b_v, m, sums, acc, PRECISION)

    o = acc * tl.where(sums > 0, 1.0 / sums, 0.0)[:, None]
    query = tl.arange(0, BM)
    column = tl.arange(0, WIDTH_V)
    o_head = out + item * o_b + (head % H) * o_h
    pointers = o_head + (q_start + query).to(tl.int64)[:, None] * o_l + column[None, :]
    tl.store(pointers, o.to(out.dtype.element_ty), mask=(query < q_left)[:, None] & (column < DV)[None, :])
