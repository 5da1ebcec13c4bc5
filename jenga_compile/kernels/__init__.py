"""The operators, one folder each; importing this package registers them as `torch.ops.jenga.*`.

    block_select             which key blocks each query block attends to
    block_sparse_attention   attention over those blocks
    curve_index              the order of the tokens on a space-filling curve
    carved_attention         the three together, on tokens in the model's own order

In each folder `op.py` holds the contract, `reference.py` the definition and every other file a provider of the same
numbers: `gathered.py` is torch only and serves the CPU, `fused.py` holds Triton kernels and is imported on a GPU.
"""

from jenga_compile.kernels import block_select, block_sparse_attention, carved_attention, curve_index
from jenga_compile.kernels.dispatch import use_reference

__all__ = ["block_select", "block_sparse_attention", "carved_attention", "curve_index", "use_reference"]
