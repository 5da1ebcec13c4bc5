"""`jenga::block_sparse_attention` by gathering the listed blocks, for any device; the contract is in `op.py`.

A chunk of query rows becomes one batch of dense attention calls, [rows, 1, 128, D] on [rows, 1, keys, D], which the
flash kernel computes without storing logits. Rows are sorted by the number of their blocks, so that a chunk rarely
needs padding, and a mask is passed only where it does, or where the video is masked or text is biased.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.nn import functional as F

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.block_sparse_attention.key_table import KeyTable
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.knobs import TEXT_BIAS

_CHUNK_BYTES = 4 << 20
"""Gathered keys and values per thread: enough rows for every thread to have some, small enough to stay in cache."""

_MAX_CHUNK_BYTES = 64 << 20


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    knobs: torch.Tensor,
    video: int,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    batch, heads, length, _ = q.shape
    blocks = BlockLayout(length, video)
    text_bias = float(knobs[TEXT_BIAS])
    out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
    for item in range(batch):
        valid = None if key_mask is None or bool(key_mask[item].all()) else key_mask[item]
        table = KeyTable(k[item], v[item], blocks, valid, text_bias)
        listed = _listed(indices[item], counts[item])
        live = listed if valid is None else listed & _live_blocks(valid, blocks)
        # Query rows of 128 tokens first, then the partial one.
        for first, last, size in ((0, blocks.full_rows, BLOCK), (blocks.full_rows, blocks.rows, blocks.tail)):
            if first == last:
                continue
            tokens, shape = slice(first * BLOCK, first * BLOCK + (last - first) * size), (last - first, size)
            q_rows, out_rows = (torch.unflatten(x[item, :, tokens], 1, shape) for x in (q, out))
            _video_rows(q_rows, out_rows, listed[:, first:last], live[:, first:last].any(-1), table, scale)
        _text_rows(q[item, :, video:], k[item], v[item], valid, out[item, :, video:], scale)
    return out


def _listed(indices: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The lists as a mask; int32 [H, R, N], [H, R] -> bool [H, R, N]."""
    keys = indices.shape[-1]
    used = torch.arange(keys, device=indices.device) < counts[..., None]
    # Column N takes what is past the count.
    columns = torch.where(used, indices, keys).long()
    return torch.zeros(*columns.shape[:-1], keys + 1, dtype=torch.bool, device=indices.device).scatter_(
        -1, columns, True
    )[..., :keys]


def _live_blocks(valid: torch.Tensor, blocks: BlockLayout) -> torch.Tensor:
    """Key blocks with a valid token; bool [L] -> [N]."""
    parts = valid[: blocks.video], valid[blocks.video :]
    padded = [F.pad(part, (0, -part.shape[0] % BLOCK)) for part in parts]
    return torch.cat([torch.unflatten(part, 0, (-1, BLOCK)).any(-1) for part in padded])


def _video_rows(
    q: torch.Tensor, out: torch.Tensor, listed: torch.Tensor, live: torch.Tensor, table: KeyTable, scale: float
) -> None:
    """Fill out [H, R, n, Dv] for q [H, R, n, D] and lists [H, R, full_rows + rest]; live [H, R]: has a valid key."""
    out[~live] = 0
    heads, rows = live.nonzero().unbind(1)
    listed = listed[heads, rows]
    groups: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for row, remainder in enumerate(listed[:, table.full_rows :].tolist()):
        groups[tuple(remainder)].append(row)
    for remainder, members in groups.items():
        table.set_remainder(torch.tensor(remainder, dtype=torch.bool, device=q.device))
        group = torch.tensor(members, device=q.device)
        full = listed[group, : table.full_rows]
        lengths, order = full.sum(1).sort(descending=True, stable=True)
        where = heads[group[order]], rows[group[order]]
        ids = table.ids(where[0], full[order])
        out[where] = _attend(q[where], ids, lengths.tolist(), table, scale)


def _attend(q: torch.Tensor, ids: torch.Tensor, lengths: list[int], table: KeyTable, scale: float) -> torch.Tensor:
    """Dense attention of q [G, n, D] to table rows ids [G, S], the first lengths[i] of them full; lengths descend."""
    budget = min(_CHUNK_BYTES * torch.get_num_threads(), _MAX_CHUNK_BYTES)
    chunk = max(1, budget // (ids.shape[1] * table.block_bytes))
    done = []
    for start in range(0, len(ids), chunk):
        part = slice(start, start + chunk)
        longest, shortest = lengths[part][0], lengths[part][-1]
        # Padding lies between the full blocks and the remainder; what no row of the chunk needs is left out.
        used = torch.cat((ids[part, :longest], ids[part, lengths[0] :]), 1)
        k, v, bias = table.gather(used, masked=table.biased or shortest < longest)
        done.append(F.scaled_dot_product_attention(q[part, None], k, v, attn_mask=bias, scale=scale)[:, 0])
    return torch.cat(done)


def _text_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, valid: torch.Tensor | None, out: torch.Tensor, scale: float
) -> None:
    """Fill out [H, n, Dv] for text queries q [H, n, D], which attend to every valid key of k [H, L, D]."""
    if q.shape[1] == 0:
        return
    if valid is not None:
        tokens = valid.nonzero()[:, 0]
        k, v = k[:, tokens], v[:, tokens]
    if k.shape[1] == 0:
        out.zero_()
    else:
        out.copy_(F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0])
