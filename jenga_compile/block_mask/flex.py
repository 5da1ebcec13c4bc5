"""Block masks to and from `torch.nn.attention.flex_attention.BlockMask`.

The sequence is [video in curve order, condition], and the condition starts a block of its own. FlexAttention cuts the
same sequence at multiples of its block size, wherever the video ends. So a block of ours may lie in two of its blocks;
where these are visible in part, its `mask_mod` tells, which knows a token's block of ours from its position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from jenga_compile.block_mask.algebra import Mask, PerHead, require
from jenga_compile.block_mask.given import Fixed
from jenga_compile.block_mask.reach import Bools
from jenga_compile.curve import AnyCurve
from jenga_compile.errors import FlexMaskUnfit
from jenga_compile.grid import BLOCK, TokenGrid

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Ints = npt.NDArray[np.int64]
MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_TOKEN_PAIRS = 1 << 22
"""Pairs of tokens that a `mask_mod` is asked for together."""


def to_flex(
    mask: Mask,
    grid: TokenGrid,
    kind: AnyCurve = "gilbert",
    text: int = 0,
    *,
    heads: int | None = None,
    device: torch.device | str = "cpu",
) -> BlockMask:
    """The mask for FlexAttention, over L = grid.tokens + text queries and keys; condition queries see all keys.

    Args:
        mask: a static mask.
        grid: the latent grid.
        kind: the curve that the blocks are cut from.
        text: condition tokens, after the video.
        heads: heads of the model; needed where heads differ (`PerHead`) and are more than it lists.
        device: where q, k and v will be.

    Returns:
        blocks of 128, one batch entry, and one head or as many as differ.

    Raises:
        OutOfRange: `text` is negative, or `heads` below 1.
        MaskNotStatic, MaskUnfit: as `Mask.dense`.
    """
    from torch.nn.attention.flex_attention import BlockMask

    require(heads is None or heads >= 1, "heads", heads, "[1, inf)", "Pass the number of heads of the model.")
    video, length = grid.tokens, grid.tokens + text
    table = _square_table(mask, grid, kind, text, heads)
    share = _share(length, video, BLOCK) > 0
    seen, hidden = _touched(share, table), _touched(share, ~table)
    # The last block of FlexAttention may be longer than the sequence: then it is never visible whole.
    whole = np.arange(1, len(share) + 1) * BLOCK <= length
    full = seen & ~hidden & whole & whole[:, None]
    partial = [_ordered(blocks, device) for blocks in (seen & ~full, full)]
    return BlockMask.from_kv_blocks(
        *partial[0],
        *partial[1],
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(torch.from_numpy(table).to(device), video, grid.blocks()),
        seq_lengths=(length, length),
    )


def from_flex(block_mask: BlockMask, text: int = 0) -> Mask:
    """The mask that FlexAttention applies, where it is one of blocks of 128: `Fixed`, or `PerHead` of them.

    The inverse of `to_flex`: the matrix is `dense_with_text` of the mask that `block_mask` was made of.

    Args:
        block_mask: over a sequence [video in curve order, condition], of any block size.
        text: condition tokens at the end of the sequence.

    Raises:
        OutOfRange: `text` is not in [0, L).
        FlexMaskUnfit: queries and keys are of different lengths, a block of 128 is visible in part, samples differ,
            or condition queries do not see everything.
    """
    length, keys = block_mask.seq_lengths
    if length != keys:
        raise FlexMaskUnfit(why=f"{length} queries on {keys} keys, expected self-attention")
    require(0 <= text < length, "text", text, f"[0, {length})", "Pass the condition tokens at the end of the sequence.")
    blocks = -(-(length - text) // BLOCK)
    batch, heads = block_mask.kv_num_blocks.shape[:2]
    found = []
    for h in range(heads):
        samples = [_matrix(block_mask, b, h, length - text) for b in range(batch)]
        if any((sample != samples[0]).any() for sample in samples):
            raise FlexMaskUnfit(why="samples of the batch have different masks, expected one for all")
        if not samples[0][blocks:].all():
            raise FlexMaskUnfit(why=f"not all of the last {text} queries see every key, expected of condition tokens")
        found.append(Fixed.of(torch.from_numpy(samples[0][:blocks])))
    return found[0] if heads == 1 else PerHead(tuple(found))


def _square_table(mask: Mask, grid: TokenGrid, kind: AnyCurve, text: int, heads: int | None) -> Bools:
    """bool [H, N, N]: rows of the condition, which see everything, below those of the video."""
    dense = mask.dense_with_text(grid, kind, text).numpy()
    rows, columns = dense.shape[-2:]
    each = dense.reshape(-1, rows, columns)
    if mask.heads > 1:
        each = each[np.arange(heads or mask.heads) % mask.heads]
    return np.pad(each, ((0, 0), (0, columns - rows), (0, 0)), constant_values=True)


def _mask_mod(table: torch.Tensor, video: int, rows: int) -> MaskMod:
    """Whether a query token sees a key token, by their blocks; table is bool [H, N, N]."""
    one_head = table.shape[0] == 1

    def block_of(position: torch.Tensor) -> torch.Tensor:
        return torch.where(position < video, position // BLOCK, rows + (position - video) // BLOCK)

    def sees(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return table[h * 0 if one_head else h, block_of(query), block_of(key)]

    return sees


def _block_ids(length: int, video: int) -> Ints:
    """Which of our blocks each position is in, [L]."""
    position = np.arange(length)
    return np.where(position < video, position // BLOCK, -(-video // BLOCK) + (position - video) // BLOCK)


def _share(length: int, video: int, size: int) -> Ints:
    """Tokens that each block of FlexAttention, of `size` tokens, shares with each of ours: [F, N]."""
    ids = _block_ids(length, video)
    share = np.zeros((-(-length // size), ids[-1] + 1), np.int64)
    np.add.at(share, (np.arange(length) // size, ids), 1)
    return share


def _touched(share: Bools, table: Bools) -> Bools:
    """Which pairs of FlexAttention's blocks hold a pair of ours that is in `table`; [H, N, N] -> [H, F, F]."""
    rows = share.astype(np.float32)
    return np.asarray(rows @ table.astype(np.float32) @ rows.T > 0)


def _ordered(blocks: Bools, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [1, H, F] and indices [1, H, F, F], the visible ones first."""
    matrix = torch.from_numpy(blocks)[None].to(torch.int32)
    order = matrix.argsort(dim=-1, descending=True, stable=True)
    return matrix.sum(-1).to(device, torch.int32), order.to(device, torch.int32)


def _matrix(block_mask: BlockMask, batch: int, head: int, video: int) -> Bools:
    """One sample's and head's mask over our blocks, [N, N]."""
    length, (query_size, key_size) = block_mask.seq_lengths[0], block_mask.BLOCK_SIZE
    queries, keys = _share(length, video, query_size) > 0, _share(length, video, key_size) > 0
    partial = _listed(block_mask.kv_num_blocks, block_mask.kv_indices, batch, head, len(keys))
    full = np.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        assert block_mask.full_kv_indices is not None
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, batch, head, len(keys))
    seen = _outer(queries, full, keys)
    hidden = _outer(queries, ~(full | partial), keys)
    _ask(block_mask, batch, head, np.argwhere(partial & ~full), _block_ids(length, video), seen, hidden)
    if (seen & hidden).any():
        row, column = np.argwhere(seen & hidden)[0]
        raise FlexMaskUnfit(why=f"block ({row}, {column}) of {BLOCK}x{BLOCK} tokens is visible in part")
    return seen


def _outer(queries: Bools, blocks: Bools, keys: Bools) -> Bools:
    product = queries.T.astype(np.float32) @ blocks.astype(np.float32) @ keys.astype(np.float32)
    return np.asarray(product > 0)


def _listed(counts: torch.Tensor, indices: torch.Tensor, batch: int, head: int, columns: int) -> Bools:
    """The pairs of FlexAttention's blocks that a list names, [F, F]."""
    count, index = counts[batch, head].cpu().numpy(), indices[batch, head].cpu().numpy()
    named = np.zeros((len(count), columns), np.bool_)
    rows, places = np.nonzero(np.arange(index.shape[1]) < count[:, None])
    named[rows, index[rows, places]] = True
    return named


def _ask(block_mask: BlockMask, batch: int, head: int, pairs: Ints, ids: Ints, seen: Bools, hidden: Bools) -> None:
    """Ask `mask_mod` about every token of pairs of FlexAttention's blocks, and enter what it says of ours."""
    query_size, key_size = block_mask.BLOCK_SIZE
    step = max(1, _TOKEN_PAIRS // (query_size * key_size))
    for some in (pairs[start : start + step] for start in range(0, len(pairs), step)):
        query = some[:, :1] * query_size + np.arange(query_size)
        key = some[:, 1:] * key_size + np.arange(key_size)
        answer = _answers(block_mask, batch, head, np.minimum(query, len(ids) - 1), np.minimum(key, len(ids) - 1))
        real = (query < len(ids))[:, :, None] & (key < len(ids))[:, None]
        row = np.broadcast_to(ids[np.minimum(query, len(ids) - 1)][:, :, None], answer.shape)
        column = np.broadcast_to(ids[np.minimum(key, len(ids) - 1)][:, None], answer.shape)
        seen[row[answer & real], column[answer & real]] = True
        hidden[row[~answer & real], column[~answer & real]] = True


def _answers(block_mask: BlockMask, batch: int, head: int, query: Ints, key: Ints) -> Bools:
    """`mask_mod` at positions query [P, Q] and key [P, K]: bool [P, Q, K]."""
    from torch.nn.attention.flex_attention import create_mask

    device = block_mask.kv_indices.device
    queries, keys = torch.from_numpy(query).to(device), torch.from_numpy(key).to(device)

    def shifted(pair: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return block_mask.mask_mod(h * 0 + batch, h + head, queries[pair, q], keys[pair, k])

    (pairs, wide), high = query.shape, key.shape[1]
    return np.asarray(create_mask(shifted, pairs, 1, wide, high, device=device)[:, 0].cpu().numpy())
