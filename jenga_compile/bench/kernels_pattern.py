"""Which keys each row of queries attends to, as a value: what is counted as work, and what a kernel is compared with.

    listed   our layout: blocks of 128 video tokens, the last one may be partial; text starts a block of its own
    flat     the same sequence cut at multiples of 128 wherever the video ends, as kernels have it that know one length
    dense    every key

Where the video is a multiple of 128 tokens, `flat` is `listed`. Otherwise the end of the video shares a flat block with
the start of the text, and a flat block is seen where any of its tokens is to be seen: a few pairs more, none fewer.
"""

from __future__ import annotations

import dataclasses

import torch

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """Rows of queries and blocks of keys share their bounds; rows past those listed see every key."""

    starts: torch.Tensor
    """First token of each block, and the length at the end; int64 [N + 1] on the CPU."""

    indices: torch.Tensor
    """int32 [H, rows, S], ascending; rows may be fewer than the blocks."""

    counts: torch.Tensor
    """int32 [H, rows]: how much of each list is used."""

    @classmethod
    def listed(cls, blocks: BlockLayout, indices: torch.Tensor, counts: torch.Tensor) -> Pattern:
        """Lists [H, R, N] and [H, R] as `jenga::block_select` gives them for one item of the batch."""
        video = torch.arange(0, blocks.video, BLOCK)
        text = torch.arange(blocks.video, blocks.length, BLOCK)
        return cls(torch.cat((video, text, torch.tensor([blocks.length]))), indices, counts)

    @classmethod
    def dense(cls, blocks: BlockLayout, heads: int, device: torch.device) -> Pattern:
        """No row is listed, so all see every key."""
        counts = torch.zeros(heads, 0, dtype=torch.int32, device=device)
        return cls.listed(blocks, counts[..., None], counts)

    @staticmethod
    def ordered(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lists of a matrix, bool [..., N]: int32 [..., N] ascending with -1 past the count, and counts [...]."""
        counts = seen.sum(-1, dtype=torch.int32)
        order = seen.byte().argsort(dim=-1, descending=True, stable=True).int()
        used = torch.arange(seen.shape[-1], device=seen.device) < counts[..., None]
        return torch.where(used, order, -1), counts

    @property
    def heads(self) -> int:
        return self.counts.shape[0]

    @property
    def rows(self) -> int:
        """Rows of queries, listed or not."""
        return self.starts.shape[0] - 1

    @property
    def listed_rows(self) -> int:
        return self.counts.shape[1]

    @property
    def sizes(self) -> torch.Tensor:
        """Tokens of each block, int64 [N] on the CPU."""
        return self.starts.diff()

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, of all heads."""
        sizes = self.sizes.to(self.counts.device)
        length = int(self.starts[-1])
        keys = (sizes[self.indices.clamp(min=0)] * self._used()).sum(-1)
        carved = int((keys * sizes[: self.listed_rows]).sum())
        return carved + self.heads * int(self.sizes[self.listed_rows :].sum()) * length

    def queries(self, row: int) -> slice:
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def keys(self, head: int, row: int) -> torch.Tensor:
        """Positions of the keys that a row sees, int64 on the device of the lists."""
        device = self.counts.device
        if row >= self.listed_rows:
            return torch.arange(int(self.starts[-1]), device=device)
        blocks = self.indices[head, row, : int(self.counts[head, row])].tolist()
        return torch.cat([torch.arange(*self._span(block), device=device) for block in blocks])

    def flat(self) -> Pattern:
        """The same with blocks cut at multiples of 128 from the start, all rows listed."""
        length = int(self.starts[-1])
        flat = torch.arange(-(-length // BLOCK) + 1) * BLOCK
        flat[-1] = length
        touches = (flat[:-1, None] < self.starts[None, 1:]) & (self.starts[None, :-1] < flat[1:, None])
        share = touches.float().to(self.counts.device)
        seen = torch.ones(self.heads, self.rows, self.rows, device=share.device)
        columns = torch.where(self._used(), self.indices, self.rows).long()
        listed = torch.zeros(self.heads, self.listed_rows, self.rows + 1, device=share.device)
        seen[:, : self.listed_rows] = listed.scatter_(-1, columns, 1.0)[..., : self.rows]
        return Pattern(flat, *self.ordered(share @ seen @ share.T > 0))

    def _span(self, block: int) -> tuple[int, int]:
        return int(self.starts[block]), int(self.starts[block + 1])

    def _used(self) -> torch.Tensor:
        """Which entries of the lists count, bool [H, rows, S]."""
        return torch.arange(self.indices.shape[-1], device=self.counts.device) < self.counts[..., None]
