"""The keys and values of one batch item as whole blocks in contiguous rows, so that a selection is one `index_select`.

    rows of the table   head 0: full video blocks | ... | head H-1 | head 0: remainder | ... | head H-1 | padding
    one gathered row    full video blocks, padding up to the longest row of the chunk, remainder cut to its tokens

The remainder holds the tokens of listed blocks that need care: the partial last video block and the text, packed
without gaps and without masked tokens. So only its very last block is partial, and slicing it off needs no mask.
Rows with different remainders are served one after the other: `set_remainder` rewrites that part.
"""

from __future__ import annotations

import torch

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout


class KeyTable:
    """Keys k [H, L, D], values v [H, L, Dv] and logit bias of one batch item, by blocks.

    Args:
        k, v: of one dtype, any strides.
        blocks: how L is cut.
        valid: bool [L], True = may be attended; None = all.
        text_bias: added to the logits of text keys.
    """

    def __init__(
        self, k: torch.Tensor, v: torch.Tensor, blocks: BlockLayout, valid: torch.Tensor | None, text_bias: float
    ) -> None:
        self._k, self._v, self._blocks, self._valid, self._text_bias = k, v, blocks, valid, text_bias
        heads, _, dim = k.shape
        self._full = heads * blocks.full_rows
        self._spare = -(-(blocks.tail + blocks.text) // BLOCK)
        self._padding = self._full + heads * self._spare
        # A token's key and value lie side by side, so that one copy fetches both. Padding: zeros, never attended to.
        self._tokens = k.new_empty(self._padding + 1, BLOCK, dim + v.shape[-1])
        self._tokens[self._padding] = 0
        mask_dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
        self._bias = torch.zeros(self._padding + 1, BLOCK, 1, device=k.device, dtype=mask_dtype)
        self._bias[self._padding] = -torch.inf
        self._video_biased = self._set_video()
        self._scratch = k.new_empty(0)
        self.full_rows = blocks.full_rows
        """Full video blocks of each head."""
        self.remainder = 0
        """Tokens in the remainder."""
        self.biased = self._video_biased
        """Whether a gathered row needs the bias even without padding."""
        self.block_bytes = self._tokens[0].numel() * k.element_size()
        """Size of the keys and values of one block."""

    def set_remainder(self, listed: torch.Tensor) -> None:
        """Pack the remainder from the blocks after the full video blocks; listed bool [N - full_rows]."""
        blocks = self._blocks
        sizes = [blocks.tail] if blocks.tail else []
        sizes += [min(BLOCK, blocks.text - start) for start in range(0, blocks.text, BLOCK)]
        first = blocks.full_rows * BLOCK
        wanted = listed.repeat_interleave(torch.tensor(sizes, dtype=torch.int64, device=listed.device))
        if self._valid is not None:
            wanted = wanted & self._valid[first:]
        tokens = wanted.nonzero()[:, 0] + first
        text = tokens >= blocks.video
        self.remainder = len(tokens)
        self.biased = self._video_biased or (self._text_bias != 0 and bool(text.any()))
        spares = slice(self._full, self._padding)
        packed = self._by_head(self._tokens[spares])[:, : self.remainder]
        torch.cat((self._k[:, tokens], self._v[:, tokens]), -1, out=packed)
        self._by_head(self._bias[spares])[:, : self.remainder, 0] = text * self._text_bias

    def ids(self, heads: torch.Tensor, listed: torch.Tensor) -> torch.Tensor:
        """Table rows that each query row gathers: its full blocks, padding up to the longest, the remainder.

        Args:
            heads: int64 [n].
            listed: bool [n, full_rows].
        """
        lengths = listed.sum(1)
        blocks = heads[:, None] * self.full_rows + torch.arange(self.full_rows, device=heads.device)
        slots = torch.arange(int(lengths.max()), device=heads.device).expand(len(heads), -1)
        full = torch.full_like(slots, self._padding).masked_scatter_(slots < lengths[:, None], blocks[listed])
        remainder = torch.arange(-(-self.remainder // BLOCK), device=heads.device)
        return torch.cat((full, self._full + heads[:, None] * self._spare + remainder), 1)

    def gather(self, ids: torch.Tensor, masked: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys [c, 1, T, D], values [c, 1, T, Dv] and, if masked, bias [c, 1, 1, T] of table rows ids [c, S].

        The next call overwrites what this one returned.
        """
        rows, flat = len(ids), ids.reshape(-1)
        tokens = ids.shape[1] * BLOCK - (-self.remainder % BLOCK)
        dims = (self._k.shape[-1], self._v.shape[-1])
        if len(self._scratch) < len(flat):
            self._scratch = self._tokens.new_empty(len(flat), BLOCK, sum(dims))
        gathered = torch.index_select(self._tokens, 0, flat, out=self._scratch[: len(flat)])
        k, v = gathered.view(rows, 1, -1, sum(dims))[:, :, :tokens].split_with_sizes(dims, -1)
        return k, v, self._bias[flat].view(rows, 1, 1, -1)[..., :tokens] if masked else None

    def _set_video(self) -> bool:
        """Copy the full video blocks, masked tokens as zeros without weight; whether there are any of those."""
        whole = self._blocks.full_rows * BLOCK
        tokens = self._by_head(self._tokens[: self._full])
        torch.cat((self._k[:, :whole], self._v[:, :whole]), -1, out=tokens)
        if self._valid is None or bool(self._valid[:whole].all()):
            return False
        masked = ~self._valid[:whole, None]
        tokens.masked_fill_(masked, 0)
        self._by_head(self._bias[: self._full]).masked_fill_(masked, -torch.inf)
        return True

    def _by_head(self, part: torch.Tensor) -> torch.Tensor:
        """A part of a table, [H * blocks, 128, n], as [H, tokens, n]."""
        heads = self._k.shape[0]
        return part.view(heads, len(part) // heads * BLOCK, part.shape[-1])
