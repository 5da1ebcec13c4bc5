"""`jenga::block_sparse_attention`: attention over listed key blocks. The contract is in `op.py`."""

from jenga_compile.kernels.block_sparse_attention.op import block_sparse_attention

__all__ = ["block_sparse_attention"]
