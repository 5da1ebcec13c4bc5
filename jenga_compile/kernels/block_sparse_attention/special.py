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


def first_special(blocks: BlockLayout, batch: int, key_mask: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The lowest key block from which on a block may need a bias or a mask, int32 [B]."""
    first = torch.full((batch,), blocks.full_rows, dtype=torch.int32, device=device)
    if key_mask is not None and blocks.full_rows:
        with on_device(device):
            _lower_to_masked[(blocks.full_rows, batch)](key_mask, first, *key_mask.stride(), BLOCK=BLOCK)
    return first


@triton.jit
def _lower_to_masked(key_mask, first, batch_stride, token_stride, BLOCK: tl.constexpr):
    """first[b] = min(first[b], block) where a full video block holds a masked token."""
    block = tl.program_id(0)
    item = tl.program_id(1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    valid = tl.load(key_mask + item.to(tl.int64) * batch_stride + tokens * token_stride)
    if tl.min(valid.to(tl.int32), 0) == 0:
        tl.atomic_min(first + item, block)
