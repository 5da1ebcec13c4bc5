"""The fp8 Hopper kernel of `jenga::block_sparse_attention`, head dim up to 128; launched by `hopper_fp8.py`.

As `hopper_kernel.py`: a program for a tile, two consumer warpgroups of 64 queries, a producer warp, lists walked from
their end. Its operands are the bytes and scales of `quantise.py`, in four stages. What differs, and why:

    step j     S = Q K_j^T,  P_{j-1} V_{j-1}  and  P_{j-1} 1  run together; then P_j from S, and O = O * factor + P V

Logits are f16: 22 * 22 * 128, the most that two quantised vectors give, stays below 65,504. They take half the
registers, and maxima and exponentials take pairs. P is made of bytes that are linear in the logit
(`hopper_fp8_parts.softmax`): with exponentials and conversions, a step took a quarter longer. The reference is the
running maximum in whole octaves. Row sums are a product with ones: they add what was rounded, so a row of equal values
gives that value.

Hopper's fp8 products keep about 14 bits of a sum, however long. So each step's product starts from zero, and fp32
arithmetic adds it to O: without that, long rows of flat weights are 8 to 80 % off.

Ideas from SageAttention 2 (smoothing, scales of blocks, sums in two levels), FlashAttention 3 (P in registers, and V in
its order) and FlashAttention 4 (exponentials without their unit).
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

from jenga_compile.kernels.block_sparse_attention import hopper_fp8_parts as fp8
from jenga_compile.kernels.block_sparse_attention import hopper_parts as parts


@gluon.jit
def _ahead(indices, head, row, place, n, empty, R, N):
    """Key block at a place from the end of a row's list; any block where there is none."""
    return gl.where(empty, 0, parts.listed(indices, head, row, gl.maximum(n - 1 - place, 0), R, N))


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_s, k_s, v_s, bars, indices, counts, total, heads, R, T, N,
    D: gl.constexpr, ST: gl.constexpr,
):  # fmt: skip
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    step = 0
    turn = 0
    for number in range(gl.program_id(0), total, gl.num_programs(0)):
        _, head, row, n = parts.tile(number, counts, counts, heads, R, T, N, False)
        # An empty list visits one block all the same, masked: consumers wait for a first block.
        visits = gl.maximum(n, 1)
        block = _ahead(indices, head, row, 0, visits, n == 0, R, N)
        mbarrier.wait(q_empty.index(0), (turn & 1) ^ 1)
        for half in gl.static_range(2):
            mbarrier.expect(q_full.index(half), 64 * D)
            parts.load(q_desc, [(head * N + row) * 128 + half * 64, 0], q_full.index(half), q_s.index(half))
        for j in range(0, visits):
            stage = step % ST
            phase = ((step // ST) & 1) ^ 1
            at = head * N + block
            block = _ahead(indices, head, row, j + 1, visits, n == 0, R, N)
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_full.index(stage), 128 * D)
            parts.load(k_desc, [at * 128, 0], k_full.index(stage), k_s.index(stage))
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_full.index(stage), 128 * D)
            parts.load(v_desc, [at * D, 0], v_full.index(stage), v_s.index(stage))
            step += 1
        turn += 1


@gluon.jit
def _weighted(p, v_t, ones_s, O_LAYOUT: gl.constexpr, D: gl.constexpr):
    """Starts P V and P 1, each from zero."""
    SUMS_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 8, 32])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O_LAYOUT, k_width=4)
    p = fp8.operand(p, OPERAND)
    zeros = gl.zeros([64, D], gl.float32, O_LAYOUT)
    product = warpgroup_mma(p, v_t.permute((1, 0)), zeros, use_acc=False, is_async=True)
    zeros = gl.zeros([64, 8], gl.float32, SUMS_LAYOUT)
    return product, warpgroup_mma(p, ones_s.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _step(
    step, last, q, k_s, v_s, ones_s, bars, acc, p, offset, factor, sums, scale, block, caps, row, bias, R,
    D: gl.constexpr, ST: gl.constexpr, SPECIAL: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """O and the sums with the block before, and the P and offset of this one, whose keys have been waited for.

    `factor` goes with P: what was summed before P is to be multiplied by it.
    """
    _, _, k_full, k_empty, v_full, v_empty = bars
    COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    now = step % ST
    before = (step - 1) % ST
    k_t = k_s.index(now).permute((1, 0))
    s_token = warpgroup_mma(q, k_t, gl.zeros([64, 128], gl.float16, S_LAYOUT), use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before), ((step - 1) // ST) & 1)
    o_token, sums_token = _weighted(p, v_s.index(before), ones_s, O_LAYOUT, D)
    s = warpgroup_mma_wait(2, deps=(s_token,))
    mbarrier.arrive(k_empty.index(now), count=1)
    if SPECIAL:
        s = parts.capped(s * scale.to(s.dtype), block, caps, row, bias, R, COLUMNS)
        p_next, offset, factor_next = fp8.softmax(s, 1.0, offset)
    else:
        p_next, offset, factor_next = fp8.softmax(s, scale, offset)
    # The wait for the next keys is needed anyway. Here it ends a basic block, across which ptxas does not move the
    # wait for the product above the softmax.
    after = gl.minimum(step + 1, last)
    mbarrier.wait(k_full.index(after % ST), (after // ST) & 1)
    o, p, p_next, row_sums = warpgroup_mma_wait(0, deps=(o_token, p, p_next, sums_token))
    mbarrier.arrive(v_empty.index(before), count=1)
    sums = sums * factor + fp8.first_column(row_sums)
    acc = acc * fp8.spread(factor, D) + fp8.frag(o, D)
    return acc, p_next, offset, factor_next, sums


@gluon.jit
def _consume(
    video_desc, text_desc, q_s, k_s, v_s, o_s, ones_s, bars, q_scale, k_scale, v_scale, indices, counts, key_caps,
    first_special, special_counts, knobs, total, heads, H, R, T, N, video, length,
    HALF: gl.constexpr, D: gl.constexpr, ST: gl.constexpr,
):  # fmt: skip
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 32])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 32])
    COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    q = q_s.index(HALF)
    # The amplifier is in natural units, logits here are in eighths of an octave, and f16.
    bias = gl.load(knobs + 2) * (8 * 1.4426950408889634)
    bias = gl.minimum(gl.maximum(bias, -30000.0), 30000.0)
    first = 0
    turn = 0
    for number in range(gl.program_id(0), total, gl.num_programs(0)):
        _, head, row, listed = parts.tile(number, counts, counts, heads, R, T, N, False)
        empty = listed == 0
        n = gl.maximum(listed, 1)
        specials = gl.load(special_counts + head * R + gl.minimum(row, R - 1))
        specials = gl.where(row < R, specials, N - gl.load(first_special + head // H))
        caps = key_caps + (head // H).to(gl.int64) * (N + 1) * 128
        unit = gl.load(q_scale + head * N + row)
        units = k_scale + head * N
        block = _ahead(indices, head, row, 0, n, empty, R, N)
        following = _ahead(indices, head, row, 1, n, empty, R, N)
        scale = gl.load(units + block) * unit
        scale_next = gl.load(units + following) * unit
        # Block N has no keys: what an empty list sees.
        block = gl.where(empty, N, block)
        last = first + n - 1
        stage = first % ST

        mbarrier.wait(q_full.index(HALF), turn & 1)
        mbarrier.wait(k_full.index(stage), (first // ST) & 1)
        k_t = k_s.index(stage).permute((1, 0))
        token = warpgroup_mma(q, k_t, gl.zeros([64, 128], gl.float16, S_LAYOUT), use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=(token,))
        mbarrier.arrive(k_empty.index(stage), count=1)
        s = parts.capped(s * scale.to(s.dtype), block, caps, row, bias, R, COLUMNS)
        # Above all offsets; f16 holds every whole octave up to here. The first factor meets zeros only.
        offset = gl.full([64, 4], 16384.0, gl.float32, fp8.row_layout())
        p, offset, factor = fp8.softmax(s, 1.0, offset)
        acc = gl.zeros([64, D // 8, 4, 2], gl.float32, fp8.frag_layout(D))
        sums = gl.zeros([64, 4], gl.float32, fp8.row_layout())
        after = gl.minimum(first + 1, last)
        mbarrier.wait(k_full.index(after % ST), (after // ST) & 1)
        block = following
        scale = scale_next
        following = _ahead(indices, head, row, 2, n, empty, R, N)
        for j in range(1, specials):
            unit_next = gl.load(units + following)
            following_next = _ahead(indices, head, row, j + 2, n, empty, R, N)
            acc, p, offset, factor, sums = _step(
                first + j, last, q, k_s, v_s, ones_s, bars, acc, p, offset, factor, sums, scale, block, caps, row,
                bias, R, D, ST, True, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
            block = following
            following = following_next
            scale = unit_next * unit
        for j in range(gl.maximum(specials, 1), n):
            unit_next = gl.load(units + following)
            following = _ahead(indices, head, row, j + 2, n, empty, R, N)
            acc, p, offset, factor, sums = _step(
                first + j, last, q, k_s, v_s, ones_s, bars, acc, p, offset, factor, sums, scale, block, caps, row,
                bias, R, D, ST, False, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
            scale = unit_next * unit
        mbarrier.arrive(q_empty.index(0), count=1)
        stage = last % ST
        mbarrier.wait(v_full.index(stage), (last // ST) & 1)
        o_token, sums_token = _weighted(p, v_s.index(stage), ones_s, O_LAYOUT, D)
        o, row_sums = warpgroup_mma_wait(0, deps=(o_token, sums_token))
        mbarrier.arrive(v_empty.index(stage), count=1)

        sums = sums * factor + fp8.first_column(row_sums)
        acc = acc * fp8.spread(factor, D) + fp8.frag(o, D)
        o = fp8.unfrag(acc * fp8.spread(gl.where(sums > 0, 1.0 / sums, 0.0), D), D, O_LAYOUT)
        o = o * gl.load(v_scale + head * D + gl.arange(0, D, layout=gl.SliceLayout(0, O_LAYOUT)))[None, :]
        start, _ = parts.span(row, R, video, length)
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
    q_desc, k_desc, v_desc, video_desc, text_desc, q_scale, k_scale, v_scale, indices, counts, key_caps,
    first_special, special_counts, knobs, total, heads, H, R, T, N, video, length,
    D: gl.constexpr, ST: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    DTYPE: gl.constexpr = q_desc.dtype
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_s = gl.allocate_shared_memory(DTYPE, [2, 64, D], q_desc.layout)
    o_s = gl.allocate_shared_memory(video_desc.dtype, [2, 1, 1, 64, D], video_desc.layout)
    k_s = gl.allocate_shared_memory(DTYPE, [ST, 128, D], k_desc.layout)
    v_s = gl.allocate_shared_memory(DTYPE, [ST, D, 128], v_desc.layout)
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
    ones_s = gl.allocate_shared_memory(DTYPE, [8, 128], gl.NVMMASharedLayout(128, 8, rank=2))
    # 1.0 as its byte: of a constant that is converted, ptxas 12.8 leaves two of every four bytes undefined.
    ones = gl.full([8, 128], 0x38, gl.int8, gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
    ones_s.store(ones.to(DTYPE, bitcast=True))
    fence_async_shared()
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    gl.warp_specialize(
        [
            (_consume, (
                video_desc, text_desc, q_s, k_s, v_s, o_s, ones_s, bars, q_scale, k_scale, v_scale, indices, counts,
                key_caps, first_special, special_counts, knobs, total, heads, H, R, T, N, video, length, 0, D, ST,
            )),
            (_consume, (
                video_desc, text_desc, q_s, k_s, v_s, o_s, ones_s, bars, q_scale, k_scale, v_scale, indices, counts,
                key_caps, first_special, special_counts, knobs, total, heads, H, R, T, N, video, length, 1, D, ST,
            )),
            (_produce, (
                q_desc, k_desc, v_desc, q_s, k_s, v_s, bars, indices, counts, total, heads, R, T, N, D, ST,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
