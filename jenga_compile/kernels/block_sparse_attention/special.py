"""Which key blocks need more than a product: those with text, or with tokens that are masked or not there.

Lists ascend and text stands at the end, so these blocks are a list's last, and a kernel that takes them apart may leave
out all masking in the rest.
"""

import dataclasses

import torch
import triton
import triton.language as tl

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import on_device


@dataclasses.dataclass(frozen=True)
class Special:
    """What a kernel reads of special blocks."""

    caps: torch.Tensor
    """The most that a logit of each key may be, by blocks: inf, or -inf where there is no key to attend to. float32
    [B, N + 1, 128]; the last block, after all of them, has no keys."""
    first: torch.Tensor
    """From which key block on a block may be special, int32 [B]."""
    counts: torch.Tensor
    """How many blocks of a row's list are, int32 [B, H, R]."""


def special_blocks(
    indices: torch.Tensor, counts: torch.Tensor, blocks: BlockLayout, key_mask: torch.Tensor | None
) -> Special:
    """Find them, in two launches."""
    batch, heads, rows, keys = indices.shape
    caps = torch.empty(batch, keys + 1, BLOCK, dtype=torch.float32, device=indices.device)
    first = torch.full((batch,), blocks.full_rows, dtype=torch.int32, device=indices.device)
    found = torch.empty_like(counts)
    strides = (0, 0) if key_mask is None else key_mask.stride()
    sizes = (rows, keys, blocks.full_rows, blocks.video, blocks.length)
    with on_device(indices.device):
        _cap[(keys + 1, batch)](key_mask, caps, first, *strides, *sizes, BLOCK=BLOCK)
        list_block = min(1024, max(128, triton.next_power_of_2(keys)))
        _count[(rows, batch * heads)](indices, counts, first, found, heads, rows, keys, LIST=list_block)
    return Special(caps, first, found)


@triton.jit(do_not_specialize=["rows", "keys", "full_rows", "video", "length"])
def _cap(
    key_mask, caps, first, batch_stride, token_stride, rows, keys, full_rows, video, length, BLOCK: tl.constexpr
):  # fmt: skip
    """caps of one block of one item; first[b] = min(first[b], block) where a full video block has a masked token."""
    block = tl.program_id(0)
    item = tl.program_id(1)
    is_text = block >= rows
    token = tl.where(is_text, video + (block - rows) * BLOCK, block * BLOCK) + tl.arange(0, BLOCK)
    valid = token < tl.where(is_text, tl.where(block < keys, length, 0), video)
    if key_mask is not None:
        row = key_mask + item.to(tl.int64) * batch_stride
        valid = tl.load(row + token * token_stride, mask=valid, other=0).to(tl.int8) != 0
    cap = tl.where(valid, float("inf"), float("-inf"))
    tl.store(caps + (item.to(tl.int64) * (keys + 1) + block) * BLOCK + tl.arange(0, BLOCK), cap)
    if (block < full_rows) & (tl.min(cap, 0) < 0):
        tl.atomic_min(first + item, block)


@triton.jit(do_not_specialize=["heads", "rows", "keys"])
def _count(indices, counts, first, specials, heads, rows, keys, LIST: tl.constexpr):
    """specials[row] = blocks in the row's list from first[b] on."""
    row = tl.program_id(1) * rows + tl.program_id(0)
    from_here = tl.load(first + tl.program_id(1) // heads)
    listed = tl.load(counts + row)
    found = 0
    for start in range(0, listed, LIST):
        place = start + tl.arange(0, LIST)
        block = tl.load(indices + row.to(tl.int64) * keys + place, mask=place < listed, other=-1)
        found += tl.sum((block >= from_here).to(tl.int32), 0)
    tl.store(specials + row, found)
