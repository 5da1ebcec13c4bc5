"""Which key blocks need more than a product: those with text, or with tokens that are masked or not there.

Lists ascend and text stands at the end, so a kernel that walks a list from its end meets these blocks first and may
leave out all masking in the rest.
"""

import torch
import triton
import triton.language as tl

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.launch import on_device


def special_blocks(
    indices: torch.Tensor, counts: torch.Tensor, blocks: BlockLayout, key_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """From which key block on a block may be special, and how many of a row's list are.

    Returns:
        first: int32 [B].
        specials: int32 [B, H, R].
    """
    batch, heads, rows, keys = indices.shape
    first = torch.full((batch,), blocks.full_rows, dtype=torch.int32, device=indices.device)
    specials = torch.empty_like(counts)
    with on_device(indices.device):
        if key_mask is not None and blocks.full_rows:
            _lower_to_masked[(blocks.full_rows, batch)](key_mask, first, *key_mask.stride(), BLOCK=BLOCK)
        list_block = min(1024, max(128, triton.next_power_of_2(keys)))
        _count[(rows, batch * heads)](indices, counts, first, specials, heads, rows, keys, LIST=list_block)
    return first, specials


@triton.jit
def _lower_to_masked(key_mask, first, batch_stride, token_stride, BLOCK: tl.constexpr):
    """first[b] = min(first[b], block) where a full video block holds a masked token."""
    block = tl.program_id(0)
    item = tl.program_id(1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    valid = tl.load(key_mask + item.to(tl.int64) * batch_stride + tokens * token_stride)
    if tl.min(valid.to(tl.int32), 0) == 0:
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
