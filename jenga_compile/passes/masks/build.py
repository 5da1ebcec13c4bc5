"""Emits a proven factor of a mask: from atoms and a truth table to a boolean [B or 1, 1, Q or 1, K or 1]."""

from __future__ import annotations

import contextlib
import operator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from jenga_compile.passes.graph import tensor_of
from jenga_compile.passes.masks.proof import Factor
from jenga_compile.passes.masks.reads import AXES, Cut, Embed, Extent, Fixed
from jenga_compile.passes.masks.terms import Atom, Run

aten = torch.ops.aten
prims = torch.ops.prims


class Builder:
    """Inserts nodes before `anchor`, on the device of `mask`."""

    def __init__(self, graph: Graph, anchor: Node, mask: Node) -> None:
        self._graph, self._anchor, self._mask = graph, anchor, mask
        self._atoms: dict[Atom, Node] = {}

    def factor(self, factor: Factor) -> Node | None:
        """The factor as a mask; None if it is True everywhere. Splits on one atom after the other (Shannon)."""
        if factor.constant is not None:
            return None if factor.constant else self._full([1, 1, 1, 1], False)
        here, off, on = factor.atoms[0], factor.given(False), factor.given(True)
        if torch.equal(off.table, on.table):
            return self.factor(on)
        atom = self._atom(here)
        if on.constant is False:
            return self._both(self._not(atom), self.factor(off))
        if off.constant is False:
            return self._both(atom, self.factor(on))
        if on.constant is True or off.constant is True:
            first, second = (atom, off) if on.constant else (self._not(atom), on)
            other = self.factor(second)
            assert other is not None
            return self.call(aten.logical_or.default, first, other)
        return self.call(aten.where.self, atom, self.factor(on), self.factor(off))

    def open_if_empty(self, key: Node) -> Node:
        """`key`, but every key of a sample that has none."""
        some = self.call(aten.any.dim, key, -1, True)
        return self.call(aten.logical_or.default, key, self._not(some))

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node with its fake value."""
        with self._graph.inserting_before(self._anchor):
            node = self._graph.call_function(target, args, kwargs)
        example = tensor_of(self._mask)
        with example.fake_mode if isinstance(example, FakeTensor) else contextlib.nullcontext():
            node.meta["val"] = target(*_values(args), **_values(kwargs))
        return node

    def _both(self, first: Node, second: Node | None) -> Node:
        return first if second is None else self.call(aten.logical_and.default, first, second)

    def _not(self, mask: Node) -> Node:
        return self.call(aten.logical_not.default, mask)

    def _full(self, shape: list[Any], value: bool) -> Node:
        return self.call(aten.full.default, shape, value, dtype=torch.bool, device=tensor_of(self._mask).device)

    def _atom(self, atom: Atom) -> Node:
        if atom not in self._atoms:
            self._atoms[atom] = self._emit(atom)
        return self._atoms[atom]

    def _emit(self, atom: Atom) -> Node:
        """The atom as attention reads it; [B or 1, 1, Q or 1, K or 1]."""
        source = atom.source
        node = self._full([self._length((source.length,))], True) if isinstance(source, Run) else source
        read = list(atom.read)
        if not _is_in_place(atom):
            for dim in reversed(range(len(read))):
                entry = read[dim]
                if isinstance(entry, Fixed) or entry == ():
                    node = self.call(aten.select.int, node, dim, entry.index if isinstance(entry, Fixed) else 0)
                    del read[dim]
        axes = [entry[0].axis if isinstance(entry, tuple) and entry else None for entry in read]
        for dim, entry in enumerate(read):
            for step in entry[0].steps if isinstance(entry, tuple) and entry else ():
                node = self._step(node, dim, step)
        if not _is_in_place(atom):
            node = self._arrange(node, axes)
        if atom.integer:
            node = self.call(aten.gt.Scalar if atom.positive else aten.ne.Scalar, node, 0)
        if tensor_of(node).device != tensor_of(self._mask).device:
            node = self.call(prims.device_put.default, node, tensor_of(self._mask).device)
        return node

    def _arrange(self, node: Node, axes: list[Any]) -> Node:
        """Dimensions in the order of `AXES`, with size 1 for those that are missing."""
        order = sorted(range(len(axes)), key=lambda dim: AXES.index(axes[dim]))
        if order != list(range(len(axes))):
            node = self.call(aten.permute.default, node, order)
        for dim, axis in enumerate(AXES):
            if axis not in axes:
                node = self.call(aten.unsqueeze.default, node, dim)
        return node

    def _step(self, node: Node, dim: int, step: Cut | Embed) -> Node:
        if isinstance(step, Cut):
            return self.call(aten.slice.Tensor, node, dim, step.start, step.end, step.step)
        before, after = self._length(step.before), self._length(step.after)
        pad = [0, 0] * (tensor_of(node).dim() - 1 - dim) + [before, after]
        return self.call(aten.constant_pad_nd.default, node, pad, 0)

    def _length(self, parts: tuple[Extent, ...]) -> int | Node:
        """The sum of some lengths."""
        fixed, total = 0, None
        for part in parts:
            length = self._extent(part)
            if isinstance(length, int):
                fixed += length
            else:
                total = length if total is None else self.call(operator.add, total, length)
        if total is None:
            return fixed
        return total if fixed == 0 else self.call(operator.add, total, fixed)

    def _extent(self, part: Extent) -> int | Node:
        if not isinstance(part, tuple):
            return part
        node, dim = part
        size = tensor_of(node).shape[dim]
        return size if isinstance(size, int) else self.call(aten.sym_size.int, node, dim)


def _is_in_place(atom: Atom) -> bool:
    """Whether the atom lies as [B, H, Q, K] already."""
    return len(atom.read) == len(AXES) and all(
        isinstance(entry, tuple) and (entry == () or entry[0].axis == axis)
        for entry, axis in zip(atom.read, AXES, strict=True)
    )


def _values(args: Any) -> Any:
    return map_arg(args, lambda node: node.meta["val"])
