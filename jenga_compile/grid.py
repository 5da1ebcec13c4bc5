"""The latent grid as a value: the one place where sizes, token counts and block counts are computed.

Legend: a token sits at frame `z`, row `y`, column `x` of a grid of `t` frames, `h` rows and `w` columns, all counted in
tokens, that is after patchifying. Its linear index is row-major: `z*h*w + y*w + x`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from jenga_compile.errors import InvalidGrid, OptionOutOfRange, UnreadableGrid
from jenga_compile.scalars import plain_int

BLOCK = 128
"""Tokens in a block, for queries and keys alike (paper, section 3.1)."""

CurveKind = Literal["gilbert", "sliced", "linear"]
"""Orders of the tokens inside a grid (`curve.py`)."""

TextSide = Literal["before", "after"]
"""Where the text stands on the token axis."""


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """A video's tokens: `t` frames of `h` rows and `w` columns. Hashable, so it can key a cache.

    Raises:
        InvalidGrid: one of the sizes is not a positive integer.
    """

    t: int
    """Latent frames."""

    h: int
    """Token rows in a frame."""

    w: int
    """Token columns in a row."""

    def __post_init__(self) -> None:
        for name in ("t", "h", "w"):
            size = plain_int(getattr(self, name))
            if size is None or size < 1:
                raise InvalidGrid(value=self.shape)
            object.__setattr__(self, name, size)

    @classmethod
    def parse(cls, text: str) -> TokenGrid:
        """The grid that `str()` wrote: `TokenGrid.parse("32x45x80") == TokenGrid(32, 45, 80)`.

        Raises:
            UnreadableGrid: the text is not three integers joined by `x`.
            InvalidGrid: one of them is zero.
        """
        sizes = re.fullmatch(r"([0-9]+)x([0-9]+)x([0-9]+)", text)
        if sizes is None:
            raise UnreadableGrid(text=text)
        t, h, w = (int(size) for size in sizes.groups())
        return cls(t, h, w)

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(t, h, w)`, the shape of a tensor with one entry a token in row-major order."""
        return self.t, self.h, self.w

    @property
    def tokens(self) -> int:
        """Tokens in the grid, `t*h*w`."""
        return self.t * self.h * self.w

    def blocks(self, block: int = BLOCK) -> int:
        """Blocks of `block` tokens that cover the grid; the last one may be partial.

        Raises:
            OptionOutOfRange: `block` is below 1.
        """
        if block < 1:
            raise OptionOutOfRange(name="block", value=block, expected="[1, inf)", way_out=f"The kernels use {BLOCK}.")
        return -(-self.tokens // block)

    def last_block_tokens(self, block: int = BLOCK) -> int:
        """Tokens in the last block, in [1, block]; equal to `block` when the grid is a multiple of it.

        Raises:
            OptionOutOfRange: `block` is below 1.
        """
        return self.tokens - (self.blocks(block) - 1) * block
