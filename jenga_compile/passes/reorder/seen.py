"""In what order the tokens of each tensor of a graph are, as far as the verifier has gone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from torch.fx import Node

from jenga_compile.passes.graph import shape_of
from jenga_compile.passes.reorder.runs import Fault, Runs, fixed, is_fixed, is_permuted, tokens_of, uniform


@dataclasses.dataclass(frozen=True)
class Moved:
    """The tokens along dimension `dim` are in the order of `runs`."""

    dim: int
    runs: Runs
    each: int = 1
    """Neighbours that are one token: more than one where a view has put, say, the batch behind its tokens."""


class Seen:
    """The orders found so far. What is not entered is in the model's order."""

    def __init__(self) -> None:
        self._states: dict[Node, tuple[Runs, int]] = {}
        self._uniform: set[Node] = set()

    def enter(self, node: Node, moved: Moved | None) -> None:
        if moved is not None and not is_fixed(moved.runs):
            self._states[node] = (moved.runs, moved.each * math.prod(shape_of(node)[moved.dim + 1 :]))

    def enter_uniform(self, node: Node) -> None:
        self._uniform.add(node)

    def enter_view(self, node: Node, source: Node) -> None:
        """A view keeps every element's row-major index, and with it how far its tokens are apart."""
        if source in self._states:
            self._states[node] = self._states[source]
        if source in self._uniform:
            self._uniform.add(node)

    def is_moved(self, node: Node) -> bool:
        """Whether something is known of the tensor's tokens: that they are permuted, or that some are all equal."""
        return node in self._states

    def leading(self, nodes: Iterable[Node]) -> list[Node]:
        """The inputs that say along which dimension tokens are told apart: the permuted ones, if there are any."""
        moved = [node for node in nodes if self.is_moved(node)]
        return [node for node in moved if self.is_permuted(node)] or moved

    def is_permuted(self, node: Node) -> bool:
        return node in self._states and is_permuted(self._states[node][0])

    def is_uniform(self, node: Node) -> bool:
        return node in self._uniform

    def dim(self, node: Node) -> int:
        """The dimension along which a moved tensor is permuted, whole sequences of tokens one after the other.

        Raises:
            Fault: as `place`, or neighbours along it are one token.
        """
        dim, each = self.place(node)
        if each != 1:
            raise Fault(f"{each} neighbours along dimension {dim} of {node.name} are one permuted token")
        return dim

    def place(self, node: Node) -> tuple[int, int]:
        """That dimension, and how many neighbours along it are one token.

        Raises:
            Fault: a view has spread the tokens over several dimensions.
        """
        if node not in self._states:
            raise Fault(f"{node.name} is not permuted, and another operand is")
        runs, stride = self._states[node]
        inner, sequence = 1, stride * tokens_of(runs)
        shape = shape_of(node)
        for dim in reversed(range(len(shape))):
            if stride % inner == 0 and inner * shape[dim] % sequence == 0:
                return dim, stride // inner
            inner *= shape[dim]
        raise Fault(f"the permuted tokens of {node.name} are spread over dimensions of {list(shape)}")

    def sequence(self, node: Node) -> Runs:
        """The order of one sequence of a moved tensor."""
        return self._states[node][0]

    def along(self, node: Node, dim: int, tokens: int, each: int = 1) -> Runs:
        """The order along one dimension, in sequences of so many tokens, of which each is so many neighbours.

        Raises:
            Fault: its sequences are longer or shorter, or its tokens are.
        """
        if node in self._uniform:
            return uniform(tokens)
        if node not in self._states or self.place(node)[0] != dim:
            return fixed(tokens)
        runs, found = self.sequence(node), self.place(node)[1]
        if (tokens_of(runs), found) == (tokens, each):
            return runs
        if is_permuted(runs):
            raise Fault(f"{node.name} has sequences of {tokens_of(runs)} x {found} tokens, not of {tokens} x {each}")
        return fixed(tokens)

    def whole(self, node: Node, dim: int) -> Runs:
        """The order along a dimension that is one sequence.

        Raises:
            Fault: it is several.
        """
        return self.along(node, dim, shape_of(node)[dim])

    def is_moved_elsewhere(self, node: Node, dim: int) -> bool:
        return node in self._states and self.dim(node) != dim
