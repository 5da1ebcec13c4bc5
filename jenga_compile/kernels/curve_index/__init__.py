"""`jenga::curve_index`: the order of a grid's tokens on a curve. The contract is in `op.py`."""

from jenga_compile.kernels.curve_index.op import curve_index

__all__ = ["curve_index"]
