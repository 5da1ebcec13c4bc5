"""Attention to video keys and attention to text keys, of the same queries, made one; a part of `flash4.py`."""

import torch
import triton
import triton.language as tl

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout

_ROWS = 64


def merge(
    out: torch.Tensor,
    text_out: torch.Tensor,
    lse: torch.Tensor,
    counts: torch.Tensor,
    text_counts: torch.Tensor,
    knobs: torch.Tensor,
    blocks: BlockLayout,
) -> None:
    """Finish the video queries of `out`, which holds what they get from video keys; in float32.

    Of a row without blocks of a kind, neither the output nor the log-sum-exp of that kind is read.

    Args:
        out: [B, L, H, D], contiguous; written where text is listed, or nothing is.
        text_out: what the queries get from text keys, [B, video, H, D], contiguous; not read without text.
        lse: float32 [2, B, H, video], or [1, ...] without text: of video keys, of text keys before the bias.
        counts: video blocks of each row, int32 [B, H, R].
        text_counts: text blocks of each row.
    """
    batch, length, heads, dim = out.shape
    grid = (blocks.rows * (BLOCK // _ROWS), heads, batch)
    sizes = (heads, blocks.rows, blocks.video, length)
    width = max(16, triton.next_power_of_2(dim))
    _merge[grid](out, text_out, lse, counts, text_counts, knobs, *sizes, D=dim, WIDTH=width, ROWS=_ROWS)


@triton.jit(do_not_specialize=["H", "R", "video", "length"])
def _merge(
    out, text_out, lse, counts, text_counts, knobs, H, R, video, length,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    item = tl.program_id(2).to(tl.int64)
    row = (item * H + head) * R + tl.program_id(0) // (128 // ROWS)
    listed = tl.load(counts + row)
    text_listed = tl.load(text_counts + row)
    if (text_listed > 0) | (listed == 0):
        token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, WIDTH)
        exists = token < video
        attends = token < tl.where(listed > 0, video, 0)
        text_attends = token < tl.where(text_listed > 0, video, 0)
        sums = lse + (item * H + head) * video + token
        a = tl.load(sums, mask=attends, other=float("-inf"))
        b = tl.load(sums + tl.num_programs(2) * H * video, mask=text_attends, other=float("-inf"))
        b += tl.load(knobs + 2)
        top = tl.maximum(a, b)
        # Queries without keys.
        top = tl.where(top == float("-inf"), 0.0, top)
        a = tl.exp(a - top)
        b = tl.exp(b - top)
        inside = (column < D)[None, :]
        place = out + ((item * length + token) * H + head)[:, None] * D + column[None, :]
        text_place = text_out + ((item * video + token) * H + head)[:, None] * D + column[None, :]
        x = tl.load(place, mask=attends[:, None] & inside, other=0.0).to(tl.float32)
        y = tl.load(text_place, mask=text_attends[:, None] & inside, other=0.0).to(tl.float32)
        # The larger of a and b is 1, if there is any key.
        o = (a[:, None] * x + b[:, None] * y) / tl.maximum(a + b, 1.0)[:, None]
        tl.store(place, o.to(out.dtype.element_ty), mask=exists[:, None] & inside)
