"""What a permuted output asks of an op's inputs, and what a permuted input makes of its output.

Everything follows from one question, `needs`: if the output of an op is to be permuted as a label says, which inputs
must be permuted, and how? The answer is None where the op does not commute with the permutation. The op itself never
changes: a permutation keeps shapes, so all its arguments stay right.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from jenga_compile.passes.graph import argument, integer, is_tensor, shape_of, uses_of
from jenga_compile.passes.links import is_view, links_of
from jenga_compile.passes.reorder.order import Label, Place, place_of
from jenga_compile.passes.rules import dims_of, source_of
from jenga_compile.passes.site import ATTENTION, CARVED

aten = torch.ops.aten
Needs: TypeAlias = dict[Node, Label]
"""The inputs that must be permuted; every other one must not be."""

Known: TypeAlias = dict[Node, Label]
"""Labels that were given so far."""


def needs(node: Node, label: Label, known: Known) -> Needs | None:
    """What `node` needs for its output to be permuted as `label` says; None if it cannot be.

    Raises:
        Cut: it could be, if the order started anew at some frame.
    """
    if node.op != "call_function" or node.target is CARVED:
        return None
    if is_view(node):
        return {source_of(node): label}
    place = place_of(label, shape_of(node))
    if place is None:
        return None
    links = links_of(node)
    if place.dim in links:
        return _linked(node, label, place, links[place.dim])
    along = _ALONG_TOKENS.get(node.target)
    return along(node, label, place, known) if along is not None and place.alone else None


def _linked(node: Node, label: Label, place: Place, sources: list[tuple[Node, int]]) -> Needs | None:
    found: Needs = {}
    for source, dim in sources:
        asked = label.at(shape_of(source), dim, place.inner)
        if found.setdefault(source, asked) != asked:
            return None
    uses = [use for use in uses_of(consumer_of(node)) if use in found]
    # An input that comes in at another place too, as the keys of its own queries, would be permuted there as well.
    return found if len(uses) == len(sources) else None


def consumer_of(node: Node) -> Node:
    """The op that takes a node's inputs: for an item of a tuple, the op that made the tuple."""
    if node.target is operator.getitem:
        call = node.args[0]
        assert isinstance(call, Node)
        return call
    return node


def _slice(node: Node, label: Label, place: Place, known: Known) -> Needs | None:
    source = source_of(node)
    if integer(argument(node, 4, "step", 1)) != 1:
        return None
    size, length = shape_of(source)[place.dim], shape_of(node)[place.dim]
    begin = _begin(node, 2, size)
    candidates = label.whole(begin, size, math.prod(shape_of(source)[place.dim + 1 :]))
    if source in known:
        candidates.insert(0, known[source])
    for candidate in candidates:
        if _is_plain(candidate, source, place.dim) and candidate.window(begin, begin + length, label.inner) == label:
            return {source: candidate}
    return None


def _begin(node: Node, place: int, size: int) -> int:
    """Where a slice of a dimension of `size` begins; Python counts negative starts from the end."""
    start = argument(node, place, "start")
    first = 0 if start is None else integer(start)
    return min(first, size) if first >= 0 else max(0, first + size)


def _is_plain(label: Label, node: Node, dim: int) -> bool:
    """Whether dimension `dim` of the tensor is the label's tokens and nothing else."""
    place = place_of(label, shape_of(node))
    return place is not None and place.alone and place.dim == dim


def _cat(node: Node, label: Label, place: Place, known: Known) -> Needs | None:
    parts: dict[Node, Label | None] = {}
    for piece, begin, end in _pieces(node, place.dim):
        part = label.window(begin, end, math.prod(shape_of(piece)[place.dim + 1 :]))
        if parts.setdefault(piece, part) != part:
            return None  # one tensor stands there twice, and would be wanted in two orders
    return {piece: part for piece, part in parts.items() if part is not None}


def _pieces(node: Node, dim: int) -> Iterator[tuple[Node, int, int]]:
    """What a cat joins, with where each begins and ends."""
    begin, rank = 0, len(shape_of(node))
    for piece in argument(node, 0, "tensors"):
        if len(shape_of(piece)) == rank:
            end = begin + shape_of(piece)[dim]
            yield piece, begin, end
            begin = end


def _scatter_slice(node: Node, label: Label, place: Place, known: Known) -> Needs | None:
    whole, patch = source_of(node), source_of(node, 1, "src")
    if integer(argument(node, 5, "step", 1)) != 1 or whole is patch:
        return None
    begin = _begin(node, 3, shape_of(node)[place.dim])
    covered = shape_of(patch)[place.dim]
    part = label.window(begin, begin + covered, math.prod(shape_of(patch)[place.dim + 1 :]))
    everything = begin == 0 and covered == label.tokens
    found: Needs = {} if everything else {whole: label}
    return found if part is None else found | {patch: part}


def _scatter_select(node: Node, label: Label, place: Place, known: Known) -> Needs | None:
    index = integer(argument(node, 3, "index")) % shape_of(node)[place.dim]
    return {source_of(node): label} if _is_text(label, index) else None


def _is_text(label: Label, token: int) -> bool:
    return not label.before <= token < label.before + label.video


def _pad(node: Node, label: Label, place: Place, known: Known) -> Needs | None:
    source = source_of(node)
    size = shape_of(source)[place.dim]
    begin = integer(argument(node, 1, "pad")[2 * (len(shape_of(node)) - 1 - place.dim)])
    part = label.window(begin, begin + size, math.prod(shape_of(source)[place.dim + 1 :]))
    return None if part is None or part.video != label.video else {source: part}


_ALONG_TOKENS: dict[Any, Callable[[Node, Label, Place, Known], Needs | None]] = {
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten.slice_scatter.default: _scatter_slice,
    aten.select_scatter.default: _scatter_select,
    aten.constant_pad_nd.default: _pad,
}


def candidates(node: Node, source: Node, label: Label) -> Iterator[Label]:
    """What `node`'s output may be if its input `source` is permuted as `label` says; `needs` has the last word.

    Raises:
        Cut: as `needs`.
    """
    if not is_tensor(node):
        return
    if is_view(node):
        yield label
        return
    place = place_of(label, shape_of(source))
    if place is None:
        return
    shape = shape_of(node)
    for dim, sources in links_of(node).items():
        if (source, place.dim) in sources:
            yield label.at(shape, dim, place.inner)
    if place.alone and place.dim < len(shape):
        yield from _cut_or_joined(node, source, label, place.dim)


def _cut_or_joined(node: Node, source: Node, label: Label, dim: int) -> Iterator[Label]:
    """The output of an op that cuts or joins along the tokens."""
    inner = math.prod(shape_of(node)[dim + 1 :])
    if node.target is aten.slice.Tensor:
        begin = _begin(node, 2, shape_of(source)[dim])
        part = label.window(begin, begin + shape_of(node)[dim], inner)
        if part is not None:
            yield part
    elif node.target is aten.cat.default:
        size = shape_of(node)[dim]
        for piece, begin, _ in _pieces(node, dim):
            if piece is source:
                yield from label.whole(begin, size, inner)
    elif node.target is aten.constant_pad_nd.default:
        begin = integer(argument(node, 1, "pad")[2 * (len(shape_of(node)) - 1 - dim)])
        yield from label.whole(begin, shape_of(node)[dim], inner)
    elif node.target in (aten.slice_scatter.default, aten.select_scatter.default):
        yield label


def indifferent(node: Node, source: Node, known: Known) -> bool:
    """Whether `node` gives the same output for `source` permuted as it is known to be and for `source` as it was."""
    if node.target in _SHAPE_ONLY or (node.target is aten.copy.default and node.args[1] is not source):
        return True
    label = known[source]
    place = place_of(label, shape_of(source))
    if place is None or not place.alone:
        return False
    if node.target is aten.slice.Tensor:
        return _keeps_text_only(node, source, label, place)
    if node.target is aten.select.int:
        (dim,) = dims_of(argument(node, 1, "dim", 0), len(shape_of(source)))
        size = shape_of(source)[dim]
        return dim == place.dim and _is_text(label, integer(argument(node, 2, "index")) % size)
    if node.target in (ATTENTION, *_DEVICE_ATTENTION):
        return _as_keys_and_values(node, source, known)
    return False


def _keeps_text_only(node: Node, source: Node, label: Label, place: Place) -> bool:
    (dim,) = dims_of(argument(node, 1, "dim", 0), len(shape_of(source)))
    if dim != place.dim:
        return False
    step, begin = integer(argument(node, 4, "step", 1)), _begin(node, 2, shape_of(source)[dim])
    end = begin + (shape_of(node)[dim] - 1) * step + 1
    return end <= label.before or begin >= label.before + label.video


def _as_keys_and_values(node: Node, source: Node, known: Known) -> bool:
    """Attention does not ask in which order keys come, if values come in the same and nothing tells keys apart."""
    query, key, value = (source_of(node, place) for place in range(3))
    rest = (*node.args[3:], *node.kwargs.values())
    if source is query or key not in known or value not in known or any(is_tensor(arg) or arg is True for arg in rest):
        return False
    alike = [dataclasses.replace(known[tensor], inner=0) for tensor in (key, value)]
    return alike[0] == alike[1] and all(_is_plain(known[tensor], tensor, 2) for tensor in (key, value))


_SHAPE_ONLY = frozenset(
    {
        aten.sym_size.int,
        aten.sym_numel.default,
        aten.full_like.default,
        aten.ones_like.default,
        aten.zeros_like.default,
        aten.empty_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
    }
)
"""Ops that ask an input for its shape and nothing else."""

_DEVICE_ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)
