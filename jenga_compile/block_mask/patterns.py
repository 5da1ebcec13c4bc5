"""Patterns on the grid: what is near in the video, whatever the tokens hold.

A pattern is stated for tokens and holds for blocks: a query block sees a key block where any of its tokens would see
any token of the other. So a block mask is never less than the pattern it stands for.
Positions are (t, h, w): frame, row, column, in tokens.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from functools import lru_cache

import numpy as np

from jenga_compile.block_mask.algebra import Mask, as_floats, is_number, require
from jenga_compile.block_mask.neighbours import adjacency_array
from jenga_compile.block_mask.reach import Bools, Boxes, boxes_of_blocks, reach
from jenga_compile.curve import AnyCurve
from jenga_compile.grid import TokenGrid


class _Pattern(Mask):
    """A mask over video that the grid and the curve decide; it sees nothing of the condition."""

    @abc.abstractmethod
    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        """bool [R, R]."""

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        return np.pad(_video(self, grid, kind, block), ((0, 0), (0, condition)))


@lru_cache(maxsize=64)
def _video(mask: _Pattern, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
    seen = mask.video(grid, kind, block)
    seen.setflags(write=False)
    return seen


@dataclasses.dataclass(frozen=True)
class Own(_Pattern):
    """A block's own keys: the diagonal."""

    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        return np.eye(grid.blocks(block), dtype=np.bool_)


@dataclasses.dataclass(frozen=True)
class Adjacency(_Pattern):
    """Blocks that touch in space and time, and a block's own keys; see `adjacency`."""

    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        return adjacency_array(grid, kind, block)


@dataclasses.dataclass(frozen=True)
class Window(_Pattern):
    """A round window: tokens at a Euclidean distance of at most `radius`.

    Source: CLEAR, "Conv-Like Linearization", whose window is a disc in an image. Symmetric.

    Raises:
        OutOfRange: `radius` is not a positive number, or `frames` not a count of frames.
    """

    radius: float
    """Largest distance, in tokens."""

    frames: int | None = None
    """`None`: a ball, over (t, h, w). A number: a cylinder, a disc over (h, w) in the frames at most so many away."""

    def __post_init__(self) -> None:
        radius = is_number(self.radius) and self.radius > 0
        require(radius, "Window.radius", self.radius, "(0, inf)", "Use Own() for a block's own keys alone.")
        frames = self.frames is None or _is_count(self.frames)
        require(frames, "Window.frames", self.frames, "[0, inf) and None", "Use 0 to stay in the frame.")
        as_floats(self, "radius")

    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        boxes, limit = boxes_of_blocks(grid, kind, block), _square(self.radius, grid)
        if self.frames is None:
            return reach(boxes, boxes, limit)
        # No frame beyond may count: one more is already past the limit.
        return reach(boxes.widen((min(self.frames, grid.t), 0, 0)), boxes, limit, (limit + 1, 1, 1))


@dataclasses.dataclass(frozen=True)
class Tile(_Pattern):
    """Sliding tile attention: the grid in tiles, and for each tile a window of whole tiles around it.

    At a border the window is moved inside, not cut, so every tile sees equally many; hence not symmetric. A window
    longer than the grid sees all of that axis. Where the tile does not divide the grid, the last one is smaller.

    Source: "Fast Video Generation with Sliding Tile Attention" (STA).

    Raises:
        OutOfRange: a size is not a positive integer, or a window is even and has no middle.
    """

    tile: tuple[int, int, int]
    """Tokens of a tile (t, h, w)."""

    window: tuple[int, int, int]
    """Tiles of the window (t, h, w), odd."""

    def __post_init__(self) -> None:
        tile, window = _is_shape(self.tile), _is_shape(self.window)
        require(tile, "Tile.tile", self.tile, "three positive integers", "Pass (t, h, w) in tokens, e.g. (6, 8, 8).")
        odd = window and all(n % 2 for n in self.window)
        require(odd, "Tile.window", self.window, "three odd positive integers", "Pass tiles, e.g. (3, 3, 3).")

    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        boxes, tile, window = boxes_of_blocks(grid, kind, block), np.array(self.tile), np.array(self.window)
        tiles = -(-np.array(grid.shape) // tile)
        last = np.maximum(tiles - window, 0)
        # A box that spans tiles has the union of their windows, which is a box: windows slide by one tile at most.
        low, high = (np.clip(corner // tile - window // 2, 0, last) for corner in (boxes.low, boxes.high))
        return reach(Boxes(low, high + window - 1), Boxes(boxes.low // tile, boxes.high // tile), limit=0)


@dataclasses.dataclass(frozen=True)
class Spatial(_Pattern):
    """The spatial heads of Sparse VideoGen: all tokens of the same frame and of near ones, and the first frame.

    Source: "Sparse VideoGen" (SVG), which counts its band in tokens of the raster; here it is whole frames.

    Raises:
        OutOfRange: `frames` is not a count of frames.
    """

    frames: int = 1
    """Frames on either side; 0 is the same frame alone."""

    first_frame: bool = True
    """Whether every query sees the first frame, which makes the mask asymmetric."""

    def __post_init__(self) -> None:
        holds = _is_count(self.frames)
        require(holds, "Spatial.frames", self.frames, "[0, inf)", "Use 0 to stay in the frame.")
        _require_bool("Spatial.first_frame", self.first_frame)

    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        boxes = boxes_of_blocks(grid, kind, block)
        seen = reach(boxes.widen((min(self.frames, grid.t), 0, 0)), boxes, 0, (1, 0, 0))
        return seen | (_holds_first_frame(boxes) & self.first_frame)


@dataclasses.dataclass(frozen=True)
class Temporal(_Pattern):
    """The temporal heads of Sparse VideoGen: the same place in every frame, and the first frame.

    Source: "Sparse VideoGen" (SVG), whose places are a band of the raster; here they are a disc.

    Raises:
        OutOfRange: `radius` is not a number from 0 on.
    """

    radius: float = 0.0
    """Largest distance over (h, w) that is still the same place, in tokens."""

    first_frame: bool = True
    """Whether every query sees the first frame, which makes the mask asymmetric."""

    def __post_init__(self) -> None:
        holds = is_number(self.radius) and self.radius >= 0
        require(holds, "Temporal.radius", self.radius, "[0, inf)", "Use 0 for the very same place.")
        _require_bool("Temporal.first_frame", self.first_frame)
        as_floats(self, "radius")

    def video(self, grid: TokenGrid, kind: AnyCurve, block: int) -> Bools:
        boxes = boxes_of_blocks(grid, kind, block)
        seen = reach(boxes, boxes, _square(self.radius, grid), (0, 1, 1))
        return seen | (_holds_first_frame(boxes) & self.first_frame)


def _require_bool(name: str, value: object) -> None:
    require(type(value) is bool, name, value, "True and False", "Pass one of them.")


def _holds_first_frame(boxes: Boxes) -> Bools:
    """bool [1, R]."""
    first: Bools = np.any(boxes.low[..., 0] == 0, axis=1)
    return first[None]


def _square(radius: float, grid: TokenGrid) -> int:
    """The largest square of a distance on the grid that a radius allows."""
    farthest = sum(size**2 for size in grid.shape)
    return min(math.floor(min(radius, farthest) ** 2), farthest)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)
