"""Masks that no grid decides: what importance chooses at run time, the condition, and given matrices."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch

from jenga_compile.block_mask.algebra import Mask, as_floats, is_number, require
from jenga_compile.block_mask.reach import Bools
from jenga_compile.curve import AnyCurve
from jenga_compile.errors import MaskNotStatic, MaskUnfit
from jenga_compile.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class Importance(Mask):
    """The key blocks of video that matter most to a query block, chosen at run time by `jenga::block_select`.

    Raises:
        OutOfRange: a field is outside its range.
    """

    keep: float = 0.3
    """Fraction of the video blocks that are chosen at least, in (0, 1]."""

    cutoff: float = 0.3
    """Softmax mass that the chosen blocks must exceed, in [0, 1)."""

    def __post_init__(self) -> None:
        keep, cutoff = is_number(self.keep) and 0 < self.keep <= 1, is_number(self.cutoff) and 0 <= self.cutoff < 1
        require(keep, "Importance.keep", self.keep, "(0, 1]", "Use 1.0 to keep every block.")
        require(cutoff, "Importance.cutoff", self.cutoff, "[0, 1)", "Use 0.0 to switch the rule off.")
        as_floats(self, "keep", "cutoff")

    @property
    def importances(self) -> frozenset[Mask]:
        return frozenset({self})

    def replace_importance(self, by: Mask) -> Mask:
        return by

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        raise MaskNotStatic(mask=self)


@dataclasses.dataclass(frozen=True)
class Condition(Mask):
    """All of the condition for every row, and no video."""

    @property
    def sees_condition(self) -> bool:
        return True

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        blocks = grid.blocks(block)
        return np.repeat([[False] * blocks + [True] * condition], blocks, axis=0)


@dataclasses.dataclass(frozen=True, repr=False)
class Fixed(Mask):
    """A given matrix, of [R, R] blocks, or of [R, N] blocks with the condition. Made by `Fixed.of`.

    It fits grids of R blocks only, and with the condition in it, that number of condition blocks or none.

    Raises:
        MaskUnfit: it is not a matrix with at least a column a row.
    """

    shape: tuple[int, int]
    """Rows R and columns."""

    packed: bytes
    """The matrix row by row, eight entries a byte."""

    def __post_init__(self) -> None:
        rows, columns = self.shape
        if not 0 < rows <= columns or len(self.packed) != -(-rows * columns // 8):
            raise MaskUnfit(found=self.shape, expected="[R, R], or [R, N] with N > R")

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Fixed:
        """The mask that a boolean matrix is.

        Args:
            matrix: bool [R, R] or [R, N], rows are query blocks.
        """
        if matrix.dim() != 2 or matrix.dtype != torch.bool:
            found = f"{tuple(matrix.shape)} of {matrix.dtype}"
            raise MaskUnfit(found=found, expected="[R, R], or [R, N] with N > R, of torch.bool")
        return cls((matrix.shape[0], matrix.shape[1]), np.packbits(matrix.cpu().numpy()).tobytes())

    def __repr__(self) -> str:
        return f"Fixed({self.shape[0]}x{self.shape[1]}, {hashlib.sha256(self.packed).hexdigest()[:8]})"

    @property
    def sees_condition(self) -> bool:
        rows, columns = self.shape
        return rows < columns and bool(self._matrix()[:, rows:].all())

    def array(self, grid: TokenGrid, kind: AnyCurve, condition: int, block: int) -> Bools:
        blocks, (rows, columns) = grid.blocks(block), self.shape
        if rows != blocks or (condition and columns not in (blocks, blocks + condition)):
            raise MaskUnfit(found=self.shape, expected=f"[{blocks}, {blocks + condition}] for the grid {grid}")
        matrix = self._matrix()[:, : blocks + condition]
        return np.pad(matrix, ((0, 0), (0, blocks + condition - matrix.shape[1])))

    def _matrix(self) -> Bools:
        rows, columns = self.shape
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=rows * columns)
        matrix: Bools = bits.reshape(rows, columns).astype(np.bool_)
        return matrix
