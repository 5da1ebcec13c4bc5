"""Symbolic sizes without specialising them: analyses run on plain integers, under several valuations of the symbols.

A valuation gives every symbol a number. What an analysis finds under the sizes of the example, and finds again when
every symbol is multiplied by a prime of its own, holds by structure and not by coincidence; what it finds is carried
back to symbols by matching its numbers with the sizes that the graph computes. No guard is added on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import sympy
import torch
from torch.fx import Graph, Node
from torch.fx.proxy import GraphAppendingTracer, Proxy
from torch.utils._sympy.functions import Mod, PythonMod
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

Size: TypeAlias = "int | torch.SymInt"
Numbers: TypeAlias = tuple[int, ...]
"""One value of a size under each valuation."""

_PRIMES = ((5, 7, 11, 13, 17, 19, 23), (13, 11, 29, 5, 31, 7, 37))
_UNKNOWN = 24
"""Stands for a size that depends on data, under the example's valuation."""


class Valuation:
    """A number for every symbol of a graph; shapes are remembered, since every analysis asks for them often."""

    def __init__(self, values: dict[sympy.Symbol, int]) -> None:
        self._values = {symbol: sympy.Integer(value) for symbol, value in values.items()}
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def __call__(self, size: Size | sympy.Expr) -> int:
        if isinstance(size, int):
            return size
        expression = expression_of(size)
        return int(expression.xreplace(self._values))

    def denies(self, equation: sympy.Eq) -> bool:
        """Whether an equation is false in these numbers."""
        return bool(equation.xreplace(self._values) == sympy.false)


_current: ContextVar[Valuation | None] = ContextVar("valuation", default=None)


def current() -> Valuation | None:
    """The valuation in force; None where a symbolic size is to be specialised."""
    return _current.get()


@contextmanager
def under(valuation: Valuation) -> Iterator[None]:
    """Inside, `shape_of` and `integer` answer in the numbers of `valuation`."""
    token = _current.set(valuation)
    try:
        yield
    finally:
        _current.reset(token)


def expression_of(size: Size | sympy.Expr) -> sympy.Expr:
    if isinstance(size, torch.SymInt):
        return size.node.expr
    return sympy.sympify(size)


def hint_of(size: Size, unknown: int = 0) -> int:
    """The example's value of a size, for a report; `unknown` where it depends on data."""
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    return unknown if hint is None else int(hint)


def valuations(graph: Graph) -> list[Valuation]:
    """The example's sizes first; two more where there are symbols."""
    hints: dict[sympy.Symbol, int] = {}
    for size in _sizes_in(graph):
        for symbol in expression_of(size).free_symbols:
            if symbol not in hints:
                hints[symbol] = _hint_of_symbol(symbol, size)
    if not hints:
        return [Valuation({})]
    symbols, same = sorted(hints, key=str), _equal_symbols(graph)
    scaled = [{s: hints[s] * primes[k % len(primes)] for k, s in enumerate(symbols)} for primes in _PRIMES]
    for values in scaled:
        values |= {symbol: values[other] for symbol, other in same.items() if {symbol, other} <= values.keys()}
    return [Valuation(hints), *map(Valuation, scaled)]


def _equal_symbols(graph: Graph) -> dict[sympy.Symbol, sympy.Symbol]:
    """Symbols that a guard makes equal to others, which stand for themselves."""
    found: dict[sympy.Symbol, sympy.Symbol] = {}
    for equation in _equations(graph):
        difference = sympy.expand(equation.lhs - equation.rhs).xreplace(found)
        if len(difference.free_symbols) == 2:
            first, second = sorted(difference.free_symbols, key=str)
            if difference in (first - second, second - first):
                found = {symbol: other.xreplace({second: first}) for symbol, other in found.items()} | {second: first}
    return found


def _equations(graph: Graph) -> list[sympy.Eq]:
    """What guards hold equal."""
    environment = next((size.node.shape_env for size in _sizes_in(graph)), None)
    guards = [] if environment is None else [guard.expr for guard in environment.guards]
    return [guard for guard in guards if isinstance(guard, sympy.Eq)]


def _hint_of_symbol(symbol: sympy.Symbol, size: Size) -> int:
    environment = size.node.shape_env  # type: ignore[union-attr]  # an int has no symbols
    known = environment.backed_var_to_val if hasattr(environment, "backed_var_to_val") else environment.var_to_val
    return int(known.get(symbol, _UNKNOWN))


def _sizes_in(graph: Graph) -> Iterator[torch.SymInt]:
    """Every symbolic size in the graph: numbers, and dimensions of tensors."""
    for node in graph.nodes:
        value = node.meta.get("val", node.meta.get("example_value"))
        candidates = value.shape if isinstance(value, torch.Tensor) else (value,)
        yield from (size for size in candidates if isinstance(size, torch.SymInt))


def serves_several_sizes(graph: Graph) -> bool:
    """Whether other inputs than the example's may run the graph, but for sizes that depend on data."""
    return any(size.node.has_hint() for size in _sizes_in(graph))


def is_for_one_size(graph: Graph, under_all: Sequence[Valuation]) -> bool:
    """Whether the graph serves the example's sizes alone, since it is guarded by what no other valuation fulfils.

    A learned table of positions, for one, fixes the product of rows and columns.
    """
    equations = [equation for equation in _equations(graph) if not equation.has(Mod, PythonMod)]
    return any(valuation.denies(equation) for valuation in under_all[1:] for equation in equations)


def specialise(graph: Graph) -> None:
    """Make every size that the example knows a constant of the graph: one graph a resolution."""
    for size in _sizes_in(graph):
        if size.node.has_hint():
            int(size)


def at_most(size: Size, limit: int) -> bool:
    """Whether a size is at most `limit`: guarded, so that another answer is another graph."""
    return bool(size <= limit)


class Expressions:
    """The sizes of a graph by their numbers under all valuations, to find the symbol behind a number."""

    def __init__(self, graph: Graph, under_all: Sequence[Valuation]) -> None:
        self._known: dict[Numbers, sympy.Expr] = {}
        for size in _sizes_in(graph):
            expression = expression_of(size)
            numbers = tuple(valuation(expression) for valuation in under_all)
            known = self._known.get(numbers)
            if known is None or expression.count_ops() < known.count_ops():
                self._known[numbers] = expression

    def find(self, numbers: Numbers) -> sympy.Expr | None:
        """The size that has these values; None if the graph computes none."""
        if len(set(numbers)) == 1:
            return sympy.Integer(numbers[0])
        return self._known.get(numbers)


class SizeNodes:
    """Builds nodes that compute sizes, right behind a graph's inputs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._env: dict[sympy.Symbol, Proxy] = {}
        self._built: dict[sympy.Expr, Node | int] = {}
        tracer = GraphAppendingTracer(graph)
        placeholders = list(graph.find_nodes(op="placeholder"))
        self.behind_inputs = placeholders[-1].next if placeholders else next(iter(graph.nodes))
        found = next(_sizes_in(graph), None)
        self._environment = None if found is None else found.node.shape_env
        for node in placeholders:
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol:
                self._env.setdefault(value.node.expr, Proxy(node, tracer))
        for node in placeholders:
            value = node.meta.get("val")
            for dim, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in self._env:
                    with graph.inserting_before(self.behind_inputs):
                        sized = graph.call_function(torch.ops.aten.sym_size.int, (node, dim))
                    sized.meta["val"] = size
                    self._env[size.node.expr] = Proxy(sized, tracer)

    def at_most(self, expression: sympy.Expr, limit: int) -> bool:
        """Whether a size is at most `limit`: guarded, so that another answer is another graph."""
        if expression.is_Integer:
            return int(expression) <= limit
        assert self._environment is not None, "a symbol comes with the environment that knows it"
        return bool(self._environment.evaluate_expr(sympy.Le(expression, limit)))

    def node(self, expression: sympy.Expr) -> Node | int | None:
        """What an argument of that size is; None if it hangs on a symbol that is no input's."""
        if expression.is_Integer:
            return int(expression)
        if not expression.free_symbols <= self._env.keys():
            return None
        if expression not in self._built:
            before = set(self._graph.nodes)
            with self._graph.inserting_before(self.behind_inputs):
                proxy = sympy_interp(PythonReferenceAnalysis, self._env, expression)
            for node in self._graph.nodes:
                if node not in before:
                    node.meta["val"] = node.target(*(_value(arg) for arg in node.args))
            self._built[expression] = proxy.node
        return self._built[expression]


def _value(argument: Node | int) -> Size:
    if isinstance(argument, Node):
        value: Size = argument.meta["val"]
        return value
    return argument
