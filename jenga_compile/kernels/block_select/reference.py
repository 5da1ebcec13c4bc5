"""Definition of `jenga::block_select`, one row at a time; the contract is in `op.py`."""

from __future__ import annotations

import torch

_BLOCK = 128


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
    batch, heads, length, dim = q.shape
    spans = [(start, min(start + _BLOCK, video)) for start in range(0, video, _BLOCK)]
    rows = len(spans)
    spans += [(start, min(start + _BLOCK, length)) for start in range(video, length, _BLOCK)]
    keep, cutoff, _ = knobs.tolist()

    indices = torch.full((batch, heads, rows, len(spans)), -1, dtype=torch.int32)
    counts = torch.zeros((batch, heads, rows), dtype=torch.int32)
    for b in range(batch):
        valid = torch.ones(length, dtype=torch.bool) if key_mask is None else key_mask[b].cpu()
        live = [bool(valid[start:stop].any()) for start, stop in spans]
        for h in range(heads):
            pooled_q = _means(q[b, h].cpu(), spans[:rows], valid)
            pooled_k = _means(k[b, h].cpu(), spans[:rows], valid)
            for r in range(rows):
                scores = [float(pooled_q[r] @ pooled_k[j]) * dim**-0.5 if live[j] else -torch.inf for j in range(rows)]
                chosen = set(_best(scores, keep, cutoff, parity, pooled_q.dtype))
                if allowed_mask is not None:
                    chosen &= {j for j in range(rows) if _of_head(allowed_mask, h)[r, j]}
                chosen |= {j for j in range(rows) if _of_head(static_mask, h)[r, j]}
                chosen |= set(range(rows, len(spans)))
                row = sorted(j for j in chosen if live[j]) or [r]
                indices[b, h, r, : len(row)] = torch.tensor(row, dtype=torch.int32)
                counts[b, h, r] = len(row)
    return indices.to(q.device), counts.to(q.device)


def _of_head(mask: torch.Tensor, head: int) -> torch.Tensor:
    return mask[head % mask.shape[0]] if mask.dim() == 3 else mask


def _means(x: torch.Tensor, spans: list[tuple[int, int]], valid: torch.Tensor) -> torch.Tensor:
    """Mean of the valid tokens in each span; x [L, D] -> [spans, D]."""
    x = x if x.dtype == torch.float64 else x.float()
    return torch.stack(
        [x[start:stop][valid[start:stop]].sum(0) / max(1, int(valid[start:stop].sum())) for start, stop in spans]
    )


def _best(scores: list[float], keep: float, cutoff: float, parity: bool, dtype: torch.dtype) -> list[int]:
    """The blocks of one row that importance selects."""
    ranked = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    mass = torch.tensor(scores, dtype=dtype).softmax(0)
    total, n_cut = 0.0, 1
    for j in ranked:
        total += float(mass[j])
        n_cut += total <= cutoff
    if parity:
        n_keep = int((1 - (1 - round(keep, 6))) * len(scores))
    else:
        n_keep = next(n for n in range(len(scores) + 1) if n >= keep * len(scores) - 1e-3)
    return ranked[: max(n_keep, n_cut)]
