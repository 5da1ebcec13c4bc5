"""The grid of the call that is running, for graphs that cannot show it.

A graph of one block, as `compile_repeated_blocks` makes it, sees tokens and no grid. It is then taken from here, each
time anew when the block runs: two sizes with equally many tokens share the graph and not the grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_args

from jenga_compile.errors import GridNotSet, OptionOutOfRange, OtherGridTold
from jenga_compile.grid import TextSide, TokenGrid


@dataclasses.dataclass(frozen=True)
class TokenContext:
    """What the caller knows of the tokens."""

    grid: TokenGrid
    text: TextSide | None
    """Side on which condition tokens stand on the same axis; `None` if there are none."""

    def __post_init__(self) -> None:
        if self.text not in (None, *get_args(TextSide)):
            expected = str(get_args(TextSide))
            raise OptionOutOfRange(name="text", value=self.text, expected=expected, way_out="Pick one of them.")


_current: ContextVar[TokenContext | None] = ContextVar("jenga_token_context", default=None)


def current_context() -> TokenContext | None:
    """The innermost `token_grid` of this thread or task."""
    return _current.get()


def told_grid(length: int, video: int) -> TokenGrid:
    """The grid of the running call, for a graph of `length` tokens that was made for `video` video tokens.

    Raises:
        GridNotSet: the call tells none.
        OtherGridTold: it has another number of tokens.
    """
    context = current_context()
    if context is None:
        raise GridNotSet(length=length)
    if context.grid.tokens != video:
        raise OtherGridTold(grid=str(context.grid), found=context.grid.tokens, expected=video)
    return context.grid


@contextmanager
def token_grid(t: int, h: int, w: int, *, text: TextSide | None = None) -> Iterator[None]:
    """Inside, blocks that are compiled one by one carve their attention on this grid.

    Args:
        t, h, w: latent frames, token rows and token columns, after patchifying.
        text: the side on which condition tokens stand on the same axis, if there are any.

    Raises:
        InvalidGrid: a size is not a positive integer.
        OptionOutOfRange: `text` is no side.
    """
    token = _current.set(TokenContext(TokenGrid(t, h, w), text))
    try:
        yield
    finally:
        _current.reset(token)
