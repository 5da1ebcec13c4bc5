"""`jenga::block_select`: the key blocks that each video query block attends to. The contract is in `op.py`."""

from jenga_compile.kernels.block_select.op import block_select

__all__ = ["block_select"]
