"""`jenga::block_select` as whole-tensor torch operations, for any device; the contract is in `op.py`."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.knobs import CUTOFF, KEEP


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
    blocks = BlockLayout(q.shape[2], video)
    valid = _valid_tokens(key_mask, blocks, q.device)
    scores = _pool(q, blocks, key_mask, valid) @ _pool(k, blocks, key_mask, valid).mT * q.shape[-1] ** -0.5
    scores = scores.masked_fill(valid[:, None, None, : blocks.rows] == 0, -torch.inf)
    listed = _best(scores, knobs, parity)
    if allowed_mask is not None:
        listed &= _for_heads(allowed_mask, q.shape[1])
    listed = listed | _for_heads(static_mask, q.shape[1])
    listed = F.pad(listed, (0, blocks.keys - blocks.rows), value=True) & (valid[:, None, None] > 0)
    own = torch.eye(blocks.rows, blocks.keys, dtype=torch.bool, device=q.device)
    return _lists(listed | (own & ~listed.any(-1, keepdim=True)))


def _for_heads(mask: torch.Tensor, heads: int) -> torch.Tensor:
    """[R, R] as it is; [n, R, R] for n heads in turn -> [H, R, R]."""
    return mask if mask.dim() == 2 else mask[torch.arange(heads, device=mask.device) % len(mask)]


def _valid_tokens(key_mask: torch.Tensor | None, blocks: BlockLayout, device: torch.device) -> torch.Tensor:
    """Valid tokens in each key block, int64 [B, N], or [1, N] without a mask."""
    if key_mask is None:
        key_mask = torch.ones(1, blocks.length, dtype=torch.bool, device=device)
    parts = key_mask[:, : blocks.video], key_mask[:, blocks.video :]
    padded = [F.pad(part, (0, -part.shape[1] % BLOCK)) for part in parts]
    return torch.cat([torch.unflatten(part, 1, (-1, BLOCK)).sum(-1) for part in padded], 1)


def _pool(x: torch.Tensor, blocks: BlockLayout, key_mask: torch.Tensor | None, valid: torch.Tensor) -> torch.Tensor:
    """Mean of the valid tokens of each video block; x [B, H, L, D] -> [B, H, R, D] in fp32 or fp64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x[:, :, : blocks.video]
    if key_mask is not None:
        x = x.masked_fill(~key_mask[:, None, : blocks.video, None], 0)
    whole = blocks.full_rows * BLOCK
    sums = torch.unflatten(x[:, :, :whole], 2, (blocks.full_rows, BLOCK)).sum(3, dtype=dtype)
    if blocks.tail:
        sums = torch.cat((sums, x[:, :, whole:].sum(2, keepdim=True, dtype=dtype)), 2)
    tokens = valid[:, None, : blocks.rows, None].clamp(min=1)
    return torch.div(sums, tokens)


def _best(scores: torch.Tensor, knobs: torch.Tensor, parity: bool) -> torch.Tensor:
    """The blocks that importance selects; scores [B, H, R, R] -> bool of the same shape."""
    rows = scores.shape[-1]
    ranked = scores.sort(dim=-1, descending=True, stable=True)
    n_cut = (ranked.values.softmax(-1).cumsum(-1) <= knobs[CUTOFF]).sum(-1, keepdim=True) + 1
    taken = torch.arange(rows, device=scores.device) < n_cut.clamp(min=_n_keep(knobs[KEEP], rows, parity))
    return torch.zeros_like(taken).scatter_(-1, ranked.indices, taken)


def _n_keep(keep: torch.Tensor, rows: int, parity: bool) -> torch.Tensor:
    """The number of blocks that `keep` asks for, int64 []."""
    if parity:
        return torch.tensor(int((1 - (1 - round(float(keep), 6))) * rows), device=keep.device)
    return torch.ceil(keep.double() * rows - 1e-3).long()


def _lists(listed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices padded with -1, and their number; bool [B, H, R, N] -> int32 [B, H, R, N], [B, H, R]."""
    counts = listed.sum(-1, dtype=torch.int32)
    block = torch.arange(listed.shape[-1], dtype=torch.int32, device=listed.device)
    indices = torch.full_like(listed, -1, dtype=torch.int32)
    return indices.masked_scatter_(block < counts[..., None], block.expand_as(listed)[listed]), counts
