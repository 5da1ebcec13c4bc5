"""Which key blocks a query block may see: masks over blocks of consecutive curve positions, as values.

    Importance(keep, cutoff)     chosen at run time: at least so many, more than so much softmax mass
    Condition()                  text, and what else shares the token axis
    Adjacency(), Own()           blocks that touch; the block itself
    Window(radius, frames)       a round window (CLEAR)
    Tile(tile, window)           sliding tiles (STA)
    Spatial(), Temporal()        the two kinds of heads of Sparse VideoGen
    PerHead((a, b, ...))         heads in turn
    Fixed.of(matrix)             given
    Everything(), Nothing()

`a | b` and `a & b` compose them; `mask.dense(grid)` is the matrix of a static one, `split(mask)` takes the importance
out. `to_flex` and `from_flex` convert, `draw` and `draw_row` show.
"""

from jenga_compile.block_mask.algebra import (
    Everything,
    Intersection,
    Mask,
    Nothing,
    PerHead,
    Union,
    all_of,
    any_of,
)
from jenga_compile.block_mask.drawing import draw, draw_row
from jenga_compile.block_mask.flex import from_flex, to_flex
from jenga_compile.block_mask.given import Condition, Fixed, Importance
from jenga_compile.block_mask.neighbours import adjacency
from jenga_compile.block_mask.patterns import Adjacency, Own, Spatial, Temporal, Tile, Window
from jenga_compile.block_mask.splitting import Split, split

__all__ = [
    "Adjacency",
    "Condition",
    "Everything",
    "Fixed",
    "Importance",
    "Intersection",
    "Mask",
    "Nothing",
    "Own",
    "PerHead",
    "Spatial",
    "Split",
    "Temporal",
    "Tile",
    "Union",
    "Window",
    "adjacency",
    "all_of",
    "any_of",
    "draw",
    "draw_row",
    "from_flex",
    "split",
    "to_flex",
]
