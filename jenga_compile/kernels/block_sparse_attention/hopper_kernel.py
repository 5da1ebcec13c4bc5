"""The Hopper kernel of `jenga::block_sparse_attention`, bf16 and fp16, head dim up to 128; launched by `hopper.py`.

One program (CTA) computes one tile, a block of 128 queries of one head. Two consumer warpgroups of 64 queries each
multiply, a producer warp reads the list and copies key and value blocks into two stages of shared memory (TMA). A list
is walked from its end, since blocks that need a bias or a mask stand there (`special.py`): they come first, and the
long rest needs no look at the list by the consumers.

    step j     S = Q K_j^T  and  O += P_{j-1} V_{j-1}  run together; then P_j = exp2(S * scale - m)

The reference m that keeps exponentials in range need not be the row's maximum: bf16 has the exponents of fp32, so P
may be as large as 2^119. m is the maximum over the first block visited, and no later maximum is looked for. That
removes a seventh of the instructions of a step, on a chip that is limited by power. A tile for which this did not hold
(a sum outside [2^-60, 2^119], or an overflow of O) is noted in a list, and a second launch computes the noted tiles
anew with a running maximum. fp16 has no such exponents: it always runs with the maximum, rescaled only when it grows
by more than 2^8 (`hopper_parts.lazy_scale`).

Idle programs cost nothing here, so the grid has one program a tile; the tiles of text queries, which see every key,
start first. Consecutive tiles are neighbours on the curve and share key blocks in L2.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from jenga_compile.kernels.block_sparse_attention import hopper_parts as parts


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_s, k_s, v_s, bars, indices, counts, tiles, total, heads, H, R, T, N, video, length,
    ST: gl.constexpr, BYTES: gl.constexpr, REDO: gl.constexpr,
):  # fmt: skip
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    step = 0
    turn = 0
    for number in range(gl.program_id(0), total, gl.num_programs(0)):
        _, head, row, n = parts.tile(number, tiles, counts, heads, R, T, N, REDO)
        # An empty list visits one block all the same, masked: consumers wait for a first block.
        visits = gl.maximum(n, 1)
        block = gl.where(n == 0, 0, parts.listed(indices, head, row, visits - 1, R, N))
        q_start, _ = parts.span(row, R, video, length)
        mbarrier.wait(q_empty.index(0), (turn & 1) ^ 1)
        for half in gl.static_range(2):
            mbarrier.expect(q_full.index(half), BYTES // 2)
            parts.load(q_desc, [head // H, head % H, q_start + half * 64, 0], q_full.index(half), q_s.index(half))
        for j in range(0, visits):
            stage = step % ST
            phase = ((step // ST) & 1) ^ 1
            start, _ = parts.span(block, R, video, length)
            block = parts.listed(indices, head, row, gl.maximum(visits - 2 - j, 0), R, N)
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_full.index(stage), BYTES)
            parts.load(k_desc, [head // H, head % H, start, 0], k_full.index(stage), k_s.index(stage))
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_full.index(stage), BYTES)
            parts.load(v_desc, [head // H, head % H, start, 0], v_full.index(stage), v_s.index(stage))
            step += 1
        turn += 1


@gluon.jit
def _step(
    step, last, q, k_s, v_s, bars, acc, p, m, sums, scale, block, caps, row, bias, R,
    D: gl.constexpr, ST: gl.constexpr, LAZY: gl.constexpr, SPECIAL: gl.constexpr,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """O += P V of the block before, and the P, m and sums of this one, whose keys have been waited for."""
    _, _, k_full, k_empty, v_full, v_empty = bars
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O_LAYOUT, k_width=2)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    now = step % ST
    before = (step - 1) % ST
    k_t = k_s.index(now).reshape([128, D]).permute((1, 0))
    s_token = warpgroup_mma(q, k_t, gl.zeros([64, 128], gl.float32, S_LAYOUT), use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before), ((step - 1) // ST) & 1)
    acc_token = warpgroup_mma(p, v_s.index(before).reshape([128, D]), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=(s_token,))
    mbarrier.arrive(k_empty.index(now), count=1)
    if SPECIAL:
        s = parts.capped(s * scale, block, caps, row, bias, R, COLUMNS)
    if LAZY:
        if SPECIAL:
            top = gl.max(s, 1)
        else:
            top = gl.max(s, 1) * scale
        grown = gl.where(top > m + 8.0, top, m)
        factor = gl.exp2(m - grown)
        sums = sums * factor
        m = grown
    if SPECIAL:
        e = gl.exp2(s - m[:, None])
    else:
        e = gl.exp2(s * scale - m[:, None])
    sums = sums + gl.sum(e, 1)
    p_next = gl.convert_layout(e.to(v_s.dtype), OPERAND)
    # The wait for the next keys is needed anyway. Here it ends a basic block, across which ptxas does not move the
    # wait for the product above the exponentials.
    after = gl.minimum(step + 1, last)
    mbarrier.wait(k_full.index(after % ST), (after // ST) & 1)
    acc, p, p_next = warpgroup_mma_wait(0, deps=(acc_token, p, p_next))
    mbarrier.arrive(v_empty.index(before), count=1)
    if LAZY:
        acc = parts.lazy_scale(acc, gl.convert_layout(factor, gl.SliceLayout(1, O_LAYOUT))[:, None], D)
    return acc, p_next, m, sums


@gluon.jit
def _consume(
    video_desc, text_desc, q_s, k_s, v_s, o_s, bars, indices, counts, key_caps, first_special, special_counts, knobs,
    tiles, total, heads, H, R, T, N, video, length, scale,
    HALF: gl.constexpr, D: gl.constexpr, ST: gl.constexpr, LAZY: gl.constexpr,
    REDO: gl.constexpr, Q_IN_REGISTERS: gl.constexpr,
):  # fmt: skip
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O_LAYOUT, k_width=2)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    # The amplifier is in natural units, exponentials here are of base 2.
    bias = gl.load(knobs + 2) * 1.4426950408889634
    first = 0
    turn = 0
    for number in range(gl.program_id(0), total, gl.num_programs(0)):
        tile, head, row, listed = parts.tile(number, tiles, counts, heads, R, T, N, REDO)
        n = gl.maximum(listed, 1)
        specials = gl.load(special_counts + head * R + gl.minimum(row, R - 1))
        specials = gl.where(row < R, specials, N - gl.load(first_special + head // H))
        caps = key_caps + (head // H).to(gl.int64) * (N + 1) * 128
        # Block N has no keys: what an empty list sees.
        block = gl.where(listed == 0, N, parts.listed(indices, head, row, n - 1, R, N))
        last = first + n - 1
        stage = first % ST

        acc = gl.zeros([64, D], gl.float32, O_LAYOUT)
        mbarrier.wait(q_full.index(HALF), turn & 1)
        q = q_s.index(HALF).reshape([64, D])
        if Q_IN_REGISTERS:
            q = q.load(gl.DotOperandLayout(operand_index=0, parent=S_LAYOUT, k_width=2))
        mbarrier.wait(k_full.index(stage), (first // ST) & 1)
        k_t = k_s.index(stage).reshape([128, D]).permute((1, 0))
        token = warpgroup_mma(q, k_t, gl.zeros([64, 128], gl.float32, S_LAYOUT), use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=(token,))
        mbarrier.arrive(k_empty.index(stage), count=1)
        s = parts.capped(s * scale, block, caps, row, bias, R, COLUMNS)
        m = gl.max(s, 1)
        # Nothing seen so far. Every later maximum is larger than -1e30; without a running one, 0 is in range of most.
        if LAZY:
            m = gl.where(m == float("-inf"), -1e30, m)
        else:
            m = gl.where(m == float("-inf"), 0.0, m)
        e = gl.exp2(s - m[:, None])
        sums = gl.sum(e, 1)
        p = gl.convert_layout(e.to(v_s.dtype), OPERAND)
        after = gl.minimum(first + 1, last)
        mbarrier.wait(k_full.index(after % ST), (after // ST) & 1)
        for j in range(1, specials):
            block = parts.listed(indices, head, row, n - 1 - j, R, N)
            acc, p, m, sums = _step(
                first + j, last, q, k_s, v_s, bars, acc, p, m, sums, scale, block, caps, row, bias, R,
                D, ST, LAZY, True, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
        for j in range(gl.maximum(specials, 1), n):
            acc, p, m, sums = _step(
                first + j, last, q, k_s, v_s, bars, acc, p, m, sums, scale, block, caps, row, bias, R,
                D, ST, LAZY, False, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
        mbarrier.arrive(q_empty.index(0), count=1)
        stage = last % ST
        mbarrier.wait(v_full.index(stage), (last // ST) & 1)
        token = warpgroup_mma(p, v_s.index(stage).reshape([128, D]), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(token,))
        mbarrier.arrive(v_empty.index(stage), count=1)

        sums = gl.convert_layout(sums, O_ROWS)
        start, left = parts.span(row, R, video, length)
        if not LAZY:
            largest = gl.max(gl.abs(acc), 1)
            in_range = (sums > 8.67e-19) & (sums < 6.6e35) & (largest < 3.0e38)
            outside = ~in_range & (HALF * 64 + gl.arange(0, 64, layout=O_ROWS) < left)
            if gl.max(outside.to(gl.int32), 0) > 0:
                gl.store(tiles + 1 + gl.atomic_add(tiles, 1), tile)
        o = acc * gl.where(sums > 0, 1.0 / sums, 0.0)[:, None]
        tma.store_wait(0)
        o_half = o_s.index(HALF)
        o_half.reshape([64, D]).store(o.to(o_s.dtype))
        fence_async_shared()
        # Each descriptor ends with its part, so rows past it are not written.
        if row >= R:
            parts.store(text_desc, [head // H, head % H, start - video + HALF * 64, 0], o_half)
        else:
            parts.store(video_desc, [head // H, head % H, start + HALF * 64, 0], o_half)
        first += n
        turn += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["total", "heads", "H", "R", "T", "N", "video", "length"])
def attend(
    q_desc, k_desc, v_desc, video_desc, text_desc, indices, counts, key_caps, first_special, special_counts, knobs,
    tiles, total, heads, H, R, T, N, video, length, scale,
    D: gl.constexpr, ST: gl.constexpr, LAZY: gl.constexpr, REDO: gl.constexpr,
    Q_IN_REGISTERS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    DTYPE: gl.constexpr = q_desc.dtype
    BYTES: gl.constexpr = 128 * D * 2
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_s = gl.allocate_shared_memory(DTYPE, [2, 1, 1, 64, D], q_desc.layout)
    o_s = gl.allocate_shared_memory(DTYPE, [2, 1, 1, 64, D], q_desc.layout)
    k_s = gl.allocate_shared_memory(DTYPE, [ST, 1, 1, 128, D], k_desc.layout)
    v_s = gl.allocate_shared_memory(DTYPE, [ST, 1, 1, 128, D], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [1, 1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [ST, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [ST, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [ST, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [ST, 1], BARRIER)
    mbarrier.init(q_empty.index(0), count=2)
    for half in gl.static_range(2):
        mbarrier.init(q_full.index(half), count=1)
    for stage in gl.static_range(ST):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_empty.index(stage), count=2)
    fence_async_shared()
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    if REDO:
        total = gl.load(tiles)
    gl.warp_specialize(
        [
            (_consume, (
                video_desc, text_desc, q_s, k_s, v_s, o_s, bars, indices, counts, key_caps, first_special,
                special_counts, knobs, tiles, total, heads, H, R, T, N, video, length, scale, 0, D, ST, LAZY, REDO,
                Q_IN_REGISTERS,
            )),
            (_consume, (
                video_desc, text_desc, q_s, k_s, v_s, o_s, bars, indices, counts, key_caps, first_special,
                special_counts, knobs, tiles, total, heads, H, R, T, N, video, length, scale, 1, D, ST, LAZY, REDO,
                Q_IN_REGISTERS,
            )),
            (_produce, (
                q_desc, k_desc, v_desc, q_s, k_s, v_s, bars, indices, counts, tiles, total, heads, H, R, T, N, video,
                length, ST, BYTES, REDO,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
