"""`jenga::carved_attention`: selection and attention on tokens in the model's order. The contract is in `op.py`."""

from jenga_compile.kernels.carved_attention.op import carved_attention

__all__ = ["carved_attention"]
