"""The portable kernels of `jenga::block_sparse_attention`, in plain Triton; launched by `portable.py`.

`attend_plain` attends to the blocks that need nothing but products, `attend_special` to the others, and merges the two.
"""

import triton
import triton.language as tl


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
    # Loaded for text rows too: loads behind a branch are not pipelined.
    return tl.where(row < R, tl.load(row_list + place), place)


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
def _accumulate(s, scale, v, m, sums, acc, MASKED: tl.constexpr):
    """Online softmax: s [BM, BN], logits of base 2 once scaled, v [BN, WIDTH_V], m and sums [BM], acc [BM, WIDTH_V]."""
    top = tl.maximum(m, tl.max(s, 1) * scale)
    if MASKED:
        # -inf for a row that has seen no valid key yet.
        base = tl.where(top == float("-inf"), 0.0, top)
    else:
        base = top
    p = tl.exp2(s * scale - base[:, None])
    factor = tl.exp2(m - base)
    sums = sums * factor + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * factor[:, None], input_precision="ieee")
    return top, sums, acc


@triton.jit
def _tile(heads, R, T, PARTS: tl.constexpr):
    """Head (of all items), row and part of a row that a program computes."""
    part = tl.program_id(0) % PARTS
    number = tl.program_id(0) // PARTS
    # Text rows see every key and take longest: they start first.
    texts = heads * T
    is_text = number < texts
    head = tl.where(is_text, number // tl.maximum(T, 1), (number - texts) // R)
    row = tl.where(is_text, R + number % tl.maximum(T, 1), (number - texts) % R)
    return head, row, part


@triton.jit
def _lists(indices, counts, first_special, specials, head, row, item, R, N):
    """A row's list, how many blocks it has and how many of them are special: the last ones."""
    # No branch: with one, Triton does not give the loop of `attend_plain` warps of its own.
    video_row = head * R + tl.minimum(row, R - 1)
    n = tl.where(row < R, tl.load(counts + video_row), N)
    special = tl.where(row < R, tl.load(specials + video_row), N - tl.load(first_special + item))
    return indices + video_row.to(tl.int64) * N, n, special


@triton.jit
def _write(
    out, lse, m, sums, acc, start, left, stride, DV: tl.constexpr, WIDTH_V: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """acc / sums to a head's output, the log-sum-exp of base 2 to lse if there is one."""
    query = tl.arange(0, BM)
    column = tl.arange(0, WIDTH_V)
    o = acc * tl.where(sums > 0, 1.0 / sums, 0.0)[:, None]
    # The first row's address is a scalar: Triton 3.6, which gives each half of the queries a warpgroup, would add the
    # half's offset twice to a tensor made of `start`, from where q was copied.
    pointers = out + start.to(tl.int64) * stride + query.to(tl.int64)[:, None] * stride + column[None, :]
    if lse is not None:
        # Here: after the output, ptxas 12.8 orders the loop so that it takes 3 % longer.
        tl.store(lse + start + query, m + tl.log2(sums), mask=query < left)
    tl.store(pointers, o.to(out.dtype.element_ty), mask=(query < left)[:, None] & (column < DV)[None, :])


@triton.jit(do_not_specialize=["heads", "H", "R", "T", "N", "video", "length"])
def attend_plain(
    q, k, v, out, lse, indices, counts, first_special, specials, scale,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l,
    heads, H, R, T, N, video, length,
    D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DESCRIPTORS: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """out and lse [B, H, L] of what is not special: zeros and -inf where there is nothing."""
    STEPS: tl.constexpr = 128 // BN
    head, row, part = _tile(heads, R, T, 128 // BM)
    item = (head // H).to(tl.int64)
    q_start, q_left = _span(row, R, video, length)
    q_start += part * BM
    q_left -= part * BM
    q_head = q + item * q_b + (head % H).to(tl.int64) * q_h
    k_head = k + item * k_b + (head % H).to(tl.int64) * k_h
    v_head = v + item * v_b + (head % H).to(tl.int64) * v_h
    row_list, n, special = _lists(indices, counts, first_special, specials, head, row, item, R, N)
    if DESCRIPTORS:
        k_desc = tl.make_tensor_descriptor(k_head, [length, D], [k_l, 1], [BN, WIDTH])
        v_desc = tl.make_tensor_descriptor(v_head, [length, DV], [v_l, 1], [BN, WIDTH_V])
        # Through shared memory: in registers, a warpgroup would have no room for its accumulators.
        b_q = tl.make_tensor_descriptor(q_head, [length, D], [q_l, 1], [BM, WIDTH]).load([q_start, 0])
    else:
        b_q = _rows(q_head, q_l, q_start, q_left, D, WIDTH, BM, False)
    # shapes: b_q is BM x WIDTH, m and sums BM, acc BM x WIDTH_V
    m = tl.full([BM], float("-inf"), tl.float32)
    sums = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDTH_V], tl.float32)
    for i in tl.range(0, (n - special) * STEPS, warp_specialize=SPECIALIZE):
        start = _listed(row_list, row, i // STEPS, R) * 128 + i % STEPS * BN
        if DESCRIPTORS:
            b_k = k_desc.load([start, 0])
            b_v = v_desc.load([start, 0])
        else:
            b_k = _rows(k_head, k_l, start, BN, D, WIDTH, BN, True)
            b_v = _rows(v_head, v_l, start, BN, DV, WIDTH_V, BN, True)
        s = tl.dot(b_q, b_k.T, input_precision="ieee")
        m, sums, acc = _accumulate(s, scale, b_v, m, sums, acc, False)
    o_head = out + item * o_b + (head % H).to(tl.int64) * o_h
    _write(o_head, lse + head.to(tl.int64) * length, m, sums, acc, q_start, q_left, o_l, DV, WIDTH_V, BM)


@triton.jit(do_not_specialize=["heads", "H", "R", "T", "N", "video", "length"])
def attend_special(
    q, k, v, out, lse, indices, counts, key_caps, first_special, specials, knobs, scale,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l,
    heads, H, R, T, N, video, length,
    D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The special blocks of a row, merged into out as `attend_plain` left it."""
    STEPS: tl.constexpr = 128 // BN
    head, row, part = _tile(heads, R, T, 128 // BM)
    item = (head // H).to(tl.int64)
    q_start, q_left = _span(row, R, video, length)
    q_start += part * BM
    q_left -= part * BM
    row_list, n, special = _lists(indices, counts, first_special, specials, head, row, item, R, N)
    if (special == 0) | (q_left <= 0):
        return
    k_head = k + item * k_b + (head % H).to(tl.int64) * k_h
    v_head = v + item * v_b + (head % H).to(tl.int64) * v_h
    o_head = out + item * o_b + (head % H).to(tl.int64) * o_h
    caps = key_caps + item * (N + 1) * 128
    # The amplifier is in natural units, exponentials here are of base 2.
    bias = tl.where(row < R, tl.load(knobs + 2) * 1.4426950408889634, 0.0)
    query = tl.arange(0, BM)
    b_q = _rows(q + item * q_b + (head % H).to(tl.int64) * q_h, q_l, q_start, q_left, D, WIDTH, BM, False)
    m = tl.full([BM], float("-inf"), tl.float32)
    sums = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDTH_V], tl.float32)
    for i in tl.range(0, special * STEPS):
        block = _listed(row_list, row, n - 1 - i // STEPS, R)
        start, left = _span(block, R, video, length)
        start += i % STEPS * BN
        left -= i % STEPS * BN
        b_k = _rows(k_head, k_l, start, left, D, WIDTH, BN, False)
        b_v = _rows(v_head, v_l, start, left, DV, WIDTH_V, BN, False)
        cap = tl.load(caps + block * 128 + i % STEPS * BN + tl.arange(0, BN))
        s = tl.dot(b_q, b_k.T, input_precision="ieee") * scale
        s = tl.minimum(s + tl.where(block >= R, bias, 0.0), cap[None, :])
        m, sums, acc = _accumulate(s, 1.0, b_v, m, sums, acc, True)
    # The rest of the row counts as one key more, of logit lse and value out.
    rest = tl.load(lse + head.to(tl.int64) * length + q_start + query, mask=query < q_left, other=float("-inf"))
    top = tl.maximum(m, rest)
    base = tl.where(top == float("-inf"), 0.0, top)
    factor = tl.exp2(m - base)
    share = tl.exp2(rest - base)
    sums = sums * factor + share
    b_o = _rows(o_head, o_l, q_start, q_left, DV, WIDTH_V, BM, False)
    acc = acc * factor[:, None] + b_o.to(tl.float32) * share[:, None]
    _write(o_head, None, m, sums, acc, q_start, q_left, o_l, DV, WIDTH_V, BM)
