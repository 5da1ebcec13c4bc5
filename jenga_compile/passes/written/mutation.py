"""What operations on Dynamo's graph write to, and what a tensor holds when it is read.

The graph is not functional: an operation may write to its argument, and the argument may be read before and after.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Iterator

from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from jenga_compile.passes.graph import argument, is_tensor, tensor_of
from jenga_compile.passes.written.spelling import first

_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
_OPERATORS = {getattr(operator, name) for name in (*_IN_PLACE, "ilshift", "irshift", "setitem")}


class Timeline:
    """The nodes of one graph in the order in which they run."""

    def __init__(self, graph: Graph) -> None:
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._inputs = {
            storage_of(node) for node in graph.nodes if node.op in ("placeholder", "get_attr") and is_tensor(node)
        }

    def place(self, node: Node) -> int:
        return self._place[node]

    def current(self, tensor: Node, at: Node) -> Node:
        """The last operation before `at` that wrote to `tensor` by this name, or `tensor` itself."""
        writes = [user for user in tensor.users if self._place[user] < self._place[at] and tensor in written_by(user)]
        return max(writes, key=self.place, default=tensor)

    def writer_between(self, tensors: Iterable[Node], start: Node, stop: Node, known: set[Node]) -> Node | None:
        """An operation after `start` and before `stop`, other than `known`, that may write to the tensors' memory.

        The graph's inputs may share memory with one another, whatever their fake tensors say.
        """
        watched = {storage_of(tensor) for tensor in tensors}
        if watched & self._inputs:
            watched |= self._inputs
        node = start.next
        while node is not stop:
            if node not in known and any(storage_of(tensor) in watched for tensor in written_by(node)):
                return node
            node = node.next
        return None


def storage_of(tensor: Node) -> int:
    """Which memory a tensor lies in: equal for views of one another, and for all whose memory is not to be seen."""
    value = tensor_of(tensor)
    return int(value.untyped_storage()._cdata) if isinstance(value, FakeTensor) else 0


def written_by(node: Node) -> Iterator[Node]:
    """Tensors that an operation writes to, as far as it may."""
    if node.op == "call_module" or isinstance(node.target, HigherOrderOperator):
        yield from (value for value in node.all_input_nodes if is_tensor(value))
    elif isinstance(node.target, OpOverload | OpOverloadPacket):
        yield from _written_by_schema(node)
    elif _works_in_place(node) and is_tensor(first(node)):
        yield first(node)
    out = node.kwargs.get("out")
    yield from (value for value in (out if isinstance(out, tuple | list) else (out,)) if is_tensor(value))


def _works_in_place(node: Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function" or not callable(node.target):
        return False
    name = str(getattr(node.target, "__name__", ""))
    if node.target in _OPERATORS or (name.endswith("_") and not name.endswith("__")):
        return True
    if not inspect.isfunction(node.target):
        return False
    parameters = list(inspect.signature(node.target).parameters)
    return "inplace" in parameters and bool(argument(node, parameters.index("inplace"), "inplace", False))


def _written_by_schema(node: Node) -> Iterator[Node]:
    target = node.target
    assert isinstance(target, OpOverload | OpOverloadPacket)
    names = [] if isinstance(target, OpOverload) else target.overloads()  # type: ignore[no-untyped-call]
    overloads = [getattr(target, name) for name in names] or [target]
    for overload in overloads:
        for position, parameter in enumerate(overload._schema.arguments):
            value = argument(node, position, parameter.name)
            if parameter.is_write and is_tensor(value):
                yield value
