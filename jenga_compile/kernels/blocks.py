"""Block geometry of a sequence [video in curve order, text], in one place for contracts and fast paths."""

from __future__ import annotations

import dataclasses

from jenga_compile.grid import BLOCK


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Cuts `length` tokens, the first `video` of them video, into blocks of 128; text starts a block of its own.

    Sizes may be symbolic. Block b < R covers [128 b, min(128 (b + 1), video)); text block j covers
    [video + 128 j, min(video + 128 (j + 1), length)) and has index R + j.
    """

    length: int
    """L, tokens in all."""

    video: int
    """Video tokens, at least 1."""

    @property
    def text(self) -> int:
        """Text tokens, L - video."""
        return self.length - self.video

    @property
    def rows(self) -> int:
        """R, video blocks; also the query rows that are carved."""
        return -(-self.video // BLOCK)

    @property
    def full_rows(self) -> int:
        """Video blocks of 128 tokens: R, or R - 1 when the last one is partial."""
        return self.video // BLOCK

    @property
    def tail(self) -> int:
        """Tokens of the partial last video block; 0 when there is none."""
        return self.video % BLOCK

    @property
    def keys(self) -> int:
        """N, key blocks: R video blocks and then the text blocks."""
        return self.rows + -(-self.text // BLOCK)
