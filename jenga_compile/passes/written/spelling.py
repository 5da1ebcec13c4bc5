"""What an operation on Dynamo's graph is called and called on, whichever of its forms was written.

`a @ b`, `torch.matmul(a, b)`, `a.matmul(other=b)` and `torch.ops.aten.matmul` are one operation with one name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from jenga_compile.passes.graph import argument

_ALIASES = {
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "imul": "mul_",
    "multiply_": "mul_",
    "itruediv": "div_",
    "divide_": "div_",
    "iadd": "add_",
    "isub": "sub_",
    "subtract_": "sub_",
    "bmm": "matmul",
    "mm": "matmul",
    "linalg_matmul": "matmul",
    "_softmax": "softmax",
    "special_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp",
    "swapaxes": "transpose",
    "swapdims": "transpose",
}


def name_of(node: Node) -> str:
    """The operation's one name; "" where it is none of PyTorch's. One that works in place ends in `_`."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.target is getattr:
        name = str(node.args[1])
    elif isinstance(node.target, OpOverload | OpOverloadPacket):
        space, _, name = _schema_name(node.target).partition("::")
        name = name if space == "aten" else ""
    elif node.op == "call_function" and _is_torchs(node.target):
        name = str(getattr(node.target, "__name__", ""))
    else:
        name = ""
    return _ALIASES.get(name, name)


def first(node: Node) -> Any:
    """The tensor that an operation is called on."""
    return argument(node, 0, "input", node.kwargs.get("self"))


def second(node: Node) -> Any:
    """The other operand of a binary operation."""
    return argument(node, 1, "other", node.kwargs.get("mat2"))


def number(value: Any) -> float | None:
    """A number known when the graph is compiled: a literal, a symbolic size (then specialised) or a constant tensor."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, Node):
        return None
    known = value.meta.get("example_value")
    if isinstance(known, torch.SymInt | torch.SymFloat):
        return None if free_unbacked_symbols(known) else float(known)
    if isinstance(known, FakeTensor) and known.constant is not None and known.constant.numel() == 1:
        return float(known.constant)
    return None


def _schema_name(target: OpOverload | OpOverloadPacket) -> str:
    return target._schema.name if isinstance(target, OpOverload) else target._qualified_op_name


def _is_torchs(target: Any) -> bool:
    module = getattr(target, "__module__", None)
    return module in (None, "_operator", "builtins") or module.split(".")[0] == "torch"
