"""A proven layout in the sizes of a graph that serves several."""

from __future__ import annotations

import dataclasses

import sympy

from jenga_compile.passes.layout.proof import Layout
from jenga_compile.passes.sizes import Valuation


@dataclasses.dataclass(frozen=True)
class SymbolicLayout:
    """A site's token axis in the graph's own sizes: video from token `start` in raster order of the grid."""

    grid: tuple[sympy.Expr, sympy.Expr, sympy.Expr]
    start: sympy.Expr
    tokens: sympy.Expr
    from_context: bool = False
    """Whether the grid is told by each call anew (`token_context.py`); the sizes are then those of this one."""

    @property
    def video(self) -> sympy.Expr:
        """Video tokens."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def at(self, valuation: Valuation) -> Layout:
        t, h, w, start, tokens = (valuation(size) for size in (*self.grid, self.start, self.tokens))
        return Layout((t, h, w), start, tokens, self.from_context)
