"""`jenga::block_select` in two Triton kernels for GPUs; the contract is in `op.py`.

    pool      means of each video block of q and k, fp32 (`pooling.py`)
    _select   indices [B, H, R, N], counts [B, H, R]; scores stay in registers

Every program of `_select` holds the scores of a few query rows against all key blocks. It sorts nothing: the rule "the
best n blocks, n the larger of n_keep and n_cut" is a threshold on the score, the highest one whose blocks are n_keep or
more and have mass above the cutoff. Both grow as the threshold falls, so it is found by bisection on the scores' bit
patterns, exactly, in 32 steps at most. The blocks at the threshold itself are equal; of these the first few are taken.

The mass is summed as weights exp(score - best), not yet divided by their total, and is compared with cutoff * total.
All blocks together always exceed that: it is their own sum times a number below 1, added up in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jenga_compile.kernels.block_select.pooling import pool
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import on_device


def most_blocks(device: torch.device) -> int:
    """The most key blocks, N, of which a program can hold the scores of its query rows in registers.

    On the way there the means pass through shared memory, of which consumer GPUs have less.
    """
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return 2048 if shared >= 132 << 10 else 1024


def block_select(
    q: torch.Tensor,
    k: torch.Tensor,
    static_mask: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None,
    parity: bool,
    allowed_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, dim = q.shape
    blocks = BlockLayout(length, video)
    planes, rows, keys = batch * heads, blocks.rows, blocks.keys
    indices = q.new_empty((batch, heads, rows, keys), dtype=torch.int32)
    counts = q.new_empty((batch, heads, rows), dtype=torch.int32)
    with on_device(q.device):
        q_means, k_means, valid = pool(q, k, key_mask, blocks)
        keys_tile, rows_tile, chunk, warps = _tiles(keys)
        _select[(triton.cdiv(rows, rows_tile), planes)](
            q_means,
            k_means,
            valid,
            static_mask,
            allowed_mask,
            knobs,
            indices,
            counts,
            _mask_strides(static_mask),
            (0, 0, 0, 1) if allowed_mask is None else _mask_strides(allowed_mask),
            heads,
            rows,
            keys,
            dim**-0.5,
            DIM=dim,
            CHUNK=chunk,
            KEYS=keys_tile,
            ROWS=rows_tile,
            num_warps=warps,
            num_stages=2,
            enable_fp_fusion=False,  # a score is rounded once, wherever it is used
        )
    return indices, counts


def _tiles(keys: int) -> tuple[int, int, int, int]:
    """Key blocks and query rows of a program of `_select`, head dims of a step and warps, for N key blocks."""
    tile = max(64, triton.next_power_of_2(keys))
    return tile, 16 if tile <= 1024 else 8, 16, 8 if tile >= 512 else 4


def _mask_strides(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides over heads, rows and columns of a mask [R, R] or [n, R, R], and n."""
    head, row, column = mask.expand(1, *mask.shape).stride()[-3:]
    return head, row, column, mask.shape[0] if mask.dim() == 3 else 1


@triton.jit
def _select(
    q_means,
    k_means,
    valid,
    static_mask,
    allowed_mask,
    knobs,
    indices,
    counts,
    static_strides,
    allowed_strides,
    heads,
    rows,
    keys,
    scale,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
):
    plane = tl.program_id(1)
    head = plane % heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    q_means += plane.to(tl.int64) * rows * DIM
    k_means += plane.to(tl.int64) * rows * DIM

    # Tensor cores take 11 bits of an fp32 number, so each goes in two parts. What is lost, the product of the low parts
    # and their bits past the 22nd, is 2^-21 of a product at most: no more than the rounding of a sum of D in fp32.
    scores = tl.zeros((ROWS, KEYS), tl.float32)
    for first in range(0, DIM, CHUNK):
        d = first + tl.arange(0, CHUNK)
        q = tl.load(q_means + row[:, None] * DIM + d[None, :], (row < rows)[:, None] & (d < DIM)[None, :], 0.0)
        k = tl.load(k_means + key[None, :] * DIM + d[:, None], (key < rows)[None, :] & (d < DIM)[:, None], 0.0)
        q_high, k_high = _high(q), _high(k)
        scores = tl.dot(q_high, k - k_high, scores, input_precision="tf32")
        scores = tl.dot(q - q_high, k_high, scores, input_precision="tf32")
        scores = tl.dot(q_high, k_high, scores, input_precision="tf32")
    scores *= scale
    live = key < keys
    if valid is not None:
        live = tl.load(valid + (plane // heads) * keys + key, live, 0) > 0
    scores = tl.where((live & (key < rows))[None, :], scores, -float("inf"))

    # From here keys come first: Triton lays the threads of a scattered store along the first axis, and so lists are
    # written in runs.
    listed = tl.trans(_best(scores, knobs, rows).to(tl.int8)) != 0
    inside = (key < rows)[:, None] & (row < rows)[None, :]
    if allowed_mask is not None:
        listed &= _of_head(allowed_mask, allowed_strides, head, key, row, inside)
    listed |= _of_head(static_mask, static_strides, head, key, row, inside)
    listed = (listed | (key >= rows)[:, None]) & live[:, None]
    count = tl.sum(listed.to(tl.int32), 0)
    listed |= (count == 0)[None, :] & (key[:, None] == row[None, :])
    count = tl.maximum(count, 1)

    # Listed blocks take the first slots of a row and the others, as -1, the rest: every slot is written once.
    before = tl.cumsum(listed.to(tl.int32), 0) - listed.to(tl.int32)
    slot = tl.where(listed, before, count[None, :] + key[:, None] - before)
    first = plane.to(tl.int64) * rows + tl.program_id(0) * ROWS
    place = tl.arange(0, ROWS)[None, :] * keys + slot
    inside = (key < keys)[:, None] & (row < rows)[None, :]
    tl.store(indices + first * keys + place, tl.where(listed, key[:, None], -1), inside)
    tl.store(counts + first + tl.arange(0, ROWS), count, row < rows)


@triton.jit
def _of_head(mask, strides, head, key, row, inside):
    """The columns `key` of the rows `row` of the mask of one head, bool [KEYS, ROWS]; strides as `_mask_strides`."""
    place = (head % strides[3]) * strides[0] + row[None, :] * strides[1] + key[:, None] * strides[2]
    return tl.load(mask + place, inside, False)


@triton.jit
def _high(x):
    """x rounded to the 11 bits that tf32 has."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _best(scores, knobs, rows):
    """The blocks that importance selects; scores fp32 [ROWS, KEYS], -inf where there is none -> bool [ROWS, KEYS]."""
    n_keep = tl.ceil(tl.load(knobs).to(tl.float64) * rows - 1e-3).to(tl.int32)
    n_keep = tl.minimum(n_keep, rows)
    best = tl.max(scores, 1)
    weights = tl.exp(scores - tl.where(best == -float("inf"), 0.0, best)[:, None])
    mass = tl.sum(weights, 1)
    cutoff = tl.load(knobs + 1) * mass

    lowest = tl.full(best.shape, -float("inf"), tl.float32)
    threshold = _threshold(scores, 1.0, tl.zeros_like(best) + scores.shape[1], 1.0, n_keep - 0.5, lowest, best)
    too_light = tl.sum(tl.where(scores >= threshold[:, None], weights, 0.0), 1) <= cutoff
    threshold = _threshold(scores, weights, mass, 0.0, cutoff, tl.where(too_light, lowest, threshold), threshold)

    taken = scores > threshold[:, None]
    tied = scores == threshold[:, None]
    weight = tl.max(tl.where(tied, weights, 0.0), 1)
    missing = cutoff - tl.sum(tl.where(taken, weights, 0.0), 1)
    for_mass = tl.floor(tl.maximum(missing, 0.0) / tl.where(weight > 0.0, weight, 1.0)).to(tl.int32) + 1
    needed = tl.maximum(for_mass, n_keep - tl.sum(taken.to(tl.int32), 1))
    if tl.max(tl.sum(tied.to(tl.int32), 1) - needed, 0) > 0:
        tied &= tl.cumsum(tied.to(tl.int32), 1) <= needed[:, None]
    return taken | tied


@triton.jit
def _threshold(scores, weights, total, one, target, low, high):
    """For each row a t of [low, high] that takes, as score >= t, the fewest blocks that weigh more than target.

    A row is done when the blocks in [low, high] weigh no more than `one`, a single block; total is the weight of all.
    """
    low, high = _flip(low.to(tl.int32, bitcast=True)), _flip(high.to(tl.int32, bitcast=True))
    above_low, above_high = total, tl.zeros_like(total)
    while tl.max(tl.where(low < high, above_low - above_high, 0.0), 0) > one:
        middle = (low | high) - ((low ^ high) >> 1)
        threshold = _flip(middle).to(tl.float32, bitcast=True)
        above = tl.sum(tl.where(scores >= threshold[:, None], weights, 0.0), 1)
        enough = above > target
        low, above_low = tl.where(enough, middle, low), tl.where(enough, above, above_low)
        high, above_high = tl.where(enough, high, middle - 1), tl.where(enough, above_high, above)
    return _flip(low).to(tl.float32, bitcast=True)


@triton.jit
def _flip(bits):
    """The bits of floats as integers of the same order; a second time, back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
