"""Questions that passes ask of FX nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from jenga_compile.passes.sizes import current, hint_of


def graphs_of(gm: GraphModule) -> Iterator[GraphModule]:
    """`gm`, and the bodies of its higher-order operators (checkpoint, cond, invoke_subgraph), each once."""
    return (module for module in gm.modules() if isinstance(module, GraphModule))


def tensor_of(node: Node) -> torch.Tensor:
    """The fake tensor that a node stands for: `val` on ATen graphs, `example_value` on Dynamo's."""
    value = node.meta["val"] if "val" in node.meta else node.meta["example_value"]
    assert isinstance(value, torch.Tensor), f"{node} is not a tensor"
    return value


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape in plain integers, under the valuation in force; without one, a symbolic size is specialised."""
    valuation = current()
    if valuation is None:
        return tuple(int(size) for size in tensor_of(node).shape)
    shape = valuation.shapes.get(node)
    if shape is None:
        shape = valuation.shapes[node] = tuple(valuation(size) for size in tensor_of(node).shape)
    return shape


def sizes_of(node: Node) -> tuple[int, ...]:
    """Shape for a report: the example's; sizes that depend on data are 0."""
    return tuple(hint_of(size) for size in tensor_of(node).shape)


def is_data_dependent(value: object) -> bool:
    """Whether a size of the tensor is known only when the graph runs."""
    return is_tensor(value) and any(is_unbacked(size) for size in tensor_of(value).shape)


def is_unbacked(size: int | torch.SymInt) -> bool:
    """Whether a size is known only when the graph runs."""
    return isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))


def is_tensor(value: object) -> TypeGuard[Node]:
    return isinstance(value, Node) and isinstance(value.meta.get("val", value.meta.get("example_value")), torch.Tensor)


def uses_of(node: Node) -> list[Node]:
    """Every use of a tensor by an op: a tensor that is used twice stands there twice."""
    found: list[Node] = []
    pending = [*node.kwargs.values(), *node.args]
    while pending:
        use = pending.pop()
        if isinstance(use, (list, tuple)):
            pending += use
        elif is_tensor(use):
            found.append(use)
    return found


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an ATen node by position or keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def integer(value: Any) -> int:
    """An integer argument, whether literal or a node that holds a symbolic size; valued as in `shape_of`."""
    valuation = current()
    size = value.meta["val"] if isinstance(value, Node) else value
    return int(size) if valuation is None else valuation(size)


def module_classes(node: Node) -> list[str]:
    """Class names of the modules around a call, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [kind if isinstance(kind, str) else kind.__name__ for _, kind in stack.values()]


def module_path(node: Node) -> str:
    """Path of the module that made the call, as the user would write it: `transformer_blocks.0.attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "<root>"
    sources = [_names(str(source)) for source, _ in stack.values()]
    outermost, path = sources[0], sources[-1]
    # The module whose forward is compiled made no call of its own: where the stack starts below it, its name is only
    # what its forward calls it. `fn` is Dynamo's name for a module of PyTorch's own that is compiled.
    if len(outermost) > 1 or path[:1] in (["self"], ["fn"]):
        path = path[1:]
    return ".".join(path) or "<root>"


def _names(source: str) -> list[str]:
    """A variable and the attributes that lead from it to a module: `L['self']._modules['a'].b` is self, a, b."""
    hidden = {"__self__", "__dict__", "_modules", "_orig_mod"}
    return [name for name in re.findall(r"\w+", re.sub(r"^[LG]\b", "", source)) if name not in hidden]
