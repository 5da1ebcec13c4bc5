"""One rule an op: which dimension of its output is which dimension of its inputs (`links.py` says what that means)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from jenga_compile.passes.graph import argument, integer, is_tensor, shape_of, tensor_of, uses_of

aten = torch.ops.aten

Links: TypeAlias = dict[int, list[tuple[Node, int]]]
"""Output dimension -> the inputs' dimensions that it comes from."""


def source_of(node: Node, place: int = 0, name: str = "self") -> Node:
    source = argument(node, place, name)
    assert isinstance(source, Node)
    return source


def dims_of(value: Any, rank: int) -> set[int]:
    """Dimensions as an op takes them: one, several, or all for None and for an empty list."""
    if value is None or value == [] or rank == 0:
        return set(range(rank))
    return {integer(dim) % rank for dim in (value if isinstance(value, (list, tuple)) else [value])}


def stretched(node: Node, sources: Iterable[Node]) -> Links:
    """Links to operands that broadcasting stretches to the output."""
    shape = shape_of(node)
    links: Links = {dim: [] for dim in range(len(shape))}
    for source in sources:
        own = shape_of(source)
        lost = len(shape) - len(own)
        for dim, size in enumerate(own):
            if size == shape[dim + lost] and size != 1:
                links[dim + lost].append((source, dim))
    return links


def same_but(node: Node, mixed: set[int]) -> Links:
    """Every dimension is the first input's own, but for those that the op mixes or moves along."""
    source = source_of(node)
    return {dim: [(source, dim)] for dim in range(len(shape_of(node))) if dim not in mixed}


def without(source: Node, dropped: set[int]) -> Links:
    """Links of an output that lacks dimensions `dropped` of its input."""
    left = [dim for dim in range(len(shape_of(source))) if dim not in dropped]
    return {dim: [(source, old)] for dim, old in enumerate(left)}


def reduced(node: Node, source: Node, dims: Any) -> Links:
    rank = len(shape_of(source))
    gone = dims_of(dims, rank)
    if len(shape_of(node)) == rank:
        return {dim: [(source, dim)] for dim in range(rank) if dim not in gone}
    return without(source, gone)


def pointwise_rule(node: Node) -> Links:
    return stretched(node, uses_of(node))


def expand_rule(node: Node) -> Links:
    return stretched(node, [source_of(node)])


def copy_rule(node: Node) -> Links:
    return stretched(node, [source_of(node, 1, "src")])


def constant_rule(node: Node) -> Links:
    """The same value everywhere."""
    return {dim: [] for dim in range(len(shape_of(node)))}


def same_rule(node: Node) -> Links:
    return same_but(node, set())


def last_rule(node: Node) -> Links:
    """The last dimension is made anew, by a linear layer or as the pair of a complex number."""
    return same_but(node, {len(shape_of(node)) - 1})


def along_rule(place: int) -> Callable[[Node], Links]:
    """Ops that mix or move indices along the dimensions that argument `place` names, and no others."""
    return lambda node: same_but(node, dims_of(argument(node, place, "dim"), len(shape_of(node))))


def reduce_rule(place: int) -> Callable[[Node], Links]:
    """Ops that reduce the dimensions that argument `place` names."""
    return lambda node: reduced(node, source_of(node), argument(node, place, "dim"))


def permute_rule(node: Node) -> Links:
    rank = len(shape_of(node))
    order = [integer(dim) % rank for dim in argument(node, 1, "dims")]
    return {dim: [(source_of(node), old)] for dim, old in enumerate(order)}


def transpose_rule(node: Node) -> Links:
    rank = len(shape_of(node))
    pair = (0, 1) if node.target is aten.t.default else (argument(node, 1, "dim0"), argument(node, 2, "dim1"))
    first, second = (integer(dim) % rank for dim in pair) if rank > 1 else (0, 0)
    swap = {first: second, second: first}
    return {dim: [(source_of(node), swap.get(dim, dim))] for dim in range(rank)}


def select_rule(node: Node) -> Links:
    source = source_of(node)
    return without(source, dims_of(argument(node, 1, "dim", 0), len(shape_of(source))))


def cat_rule(node: Node) -> Links:
    rank = len(shape_of(node))
    (joined,) = dims_of(argument(node, 1, "dim", 0), rank)
    # An empty one-dimensional tensor joins anything.
    pieces = [piece for piece in argument(node, 0, "tensors") if len(shape_of(piece)) == rank]
    return {dim: [(piece, dim) for piece in pieces] for dim in range(rank) if dim != joined}


def stack_rule(node: Node) -> Links:
    rank = len(shape_of(node))
    (new,) = dims_of(argument(node, 1, "dim", 0), rank)
    pieces = argument(node, 0, "tensors")
    return {dim: [(piece, dim - (dim > new)) for piece in pieces] for dim in range(rank) if dim != new}


def slice_rule(node: Node) -> Links:
    source = source_of(node)
    whole = shape_of(source) == shape_of(node) and integer(argument(node, 4, "step", 1)) == 1
    return same_but(node, set() if whole else dims_of(argument(node, 1, "dim", 0), len(shape_of(source))))


def pad_rule(node: Node) -> Links:
    shape, own = shape_of(node), shape_of(source_of(node))
    return same_but(node, {dim for dim in range(len(shape)) if shape[dim] != own[dim]})


def scatter_slice_rule(node: Node) -> Links:
    cut = dims_of(argument(node, 2, "dim", 0), len(shape_of(node)))
    patch = source_of(node, 1, "src")
    return {dim: [*sources, (patch, dim)] for dim, sources in same_but(node, cut).items()}


def scatter_select_rule(node: Node) -> Links:
    (gone,) = dims_of(argument(node, 2, "dim"), len(shape_of(node)))
    patch = source_of(node, 1, "src")
    return {dim: [*sources, (patch, dim - (dim > gone))] for dim, sources in same_but(node, {gone}).items()}


def product_rule(node: Node) -> Links:
    """Rows of the product come from the left factor, columns from the right one, batches from both."""
    return _product(node, *(source_of(node, place) for place in (0, 1)))


def biased_product_rule(node: Node) -> Links:
    bias, left, right = (source_of(node, place) for place in range(3))
    links = stretched(node, [bias])
    return {dim: links[dim] + sources for dim, sources in _product(node, left, right).items()}


def _product(node: Node, left: Node, right: Node) -> Links:
    rank = len(shape_of(node))
    links: Links = {dim: [(left, dim), (right, dim)] for dim in range(rank - 2)}
    return links | {rank - 2: [(left, rank - 2)], rank - 1: [(right, rank - 1)]}


def embedding_rule(node: Node) -> Links:
    indices = source_of(node, 1, "indices")
    return {dim: [(indices, dim)] for dim in range(len(shape_of(indices)))}


def index_select_rule(node: Node) -> Links:
    (taken,) = dims_of(argument(node, 1, "dim"), len(shape_of(node)))
    return same_but(node, {taken}) | {taken: [(source_of(node, 2, "index"), 0)]}


def index_rule(node: Node) -> Links:
    """x[:, :, index] with one index tensor: its dimensions stand where the indexed one stood."""
    source, indices = source_of(node), argument(node, 1, "indices")
    given = [place for place, index in enumerate(indices) if index is not None]
    if len(given) != 1 or tensor_of(indices[given[0]]).dtype in (torch.bool, torch.uint8):
        return {}
    place, index = given[0], indices[given[0]]
    width = len(shape_of(index))
    links: Links = {}
    for dim in range(len(shape_of(node))):
        within = place <= dim < place + width
        links[dim] = [(index, dim - place) if within else (source, dim if dim < place else dim - width + 1)]
    return links


def gather_rule(node: Node) -> Links:
    source, index = source_of(node), source_of(node, 2, "index")
    (taken,) = dims_of(argument(node, 1, "dim"), len(shape_of(node)))
    links: Links = {taken: [(index, taken)]}
    for dim, (size, own) in enumerate(zip(shape_of(node), shape_of(source), strict=True)):
        if dim != taken and size == own:
            links[dim] = [(source, dim), (index, dim)]
    return links


def repeat_rule(node: Node) -> Links:
    source, times = source_of(node), [integer(count) for count in argument(node, 1, "repeats")]
    new = len(times) - len(shape_of(source))
    links: Links = {dim: [] for dim in range(new)}
    for dim, size in enumerate(shape_of(source), start=new):
        if size == 1:
            links[dim] = []
        elif times[dim] == 1:
            links[dim] = [(source, dim - new)]
    return links


def convolution_rule(node: Node) -> Links:
    """Samples stay samples; positions stay positions where the kernel sees one alone."""
    source, weight = source_of(node, 0, "input"), source_of(node, 1, "weight")
    stride, padding = (argument(node, place, name) for place, name in ((3, "stride"), (4, "padding")))
    links: Links = {0: [(source, 0)]}
    for place, reach in enumerate(shape_of(weight)[2:]):
        step, pad = (integer(value[place % len(value)]) for value in (stride, padding))
        if (reach, step, pad) == (1, 1, 0):
            links[place + 2] = [(source, place + 2)]
    return links


def attention_rule(node: Node) -> Links:
    return attention_links(node, mask=argument(node, 3, "mask"))


def attention_links(call: Node, mask: Any) -> Links:
    """A row of attention's output is a row of its queries; keys and values are no rows of it, only their heads are."""
    query, key, value = (source_of(call, place) for place in range(3))
    links: Links = {dim: [(source, dim) for source in (query, key, value)] for dim in (0, 1)}
    links |= {2: [(query, 2)], 3: [(value, 3)]}
    own = shape_of(mask) if is_tensor(mask) else ()
    for dim, size in enumerate(own, start=4 - len(own)):
        if dim < 3 and size != 1:
            links[dim].append((mask, dim - 4 + len(own)))
    return links


def sdpa_item(mask_place: int | None, causal_place: int) -> Callable[[Node, Node, int], Links]:
    """The first output of a device's own kernel, which takes a mask and whether to be causal in these places."""

    def rule(node: Node, call: Node, place: int) -> Links:
        if place != 0 or len(shape_of(node)) != 4 or argument(call, causal_place, "is_causal", False):
            return {}
        mask = call.kwargs.get("attn_mask") if mask_place is None else argument(call, mask_place, "attn_bias")
        return attention_links(call, mask)

    return rule


def norm_item(node: Node, norm: Node, place: int) -> Links:
    """Normalisation over trailing dimensions: rows stay rows, in the output and in the statistics alike."""
    source = source_of(norm, 0, "input")
    leading = len(shape_of(source)) - len(argument(norm, 1, "normalized_shape"))
    return {dim: [(source, dim)] for dim in range(leading)}


def moments_item(node: Node, moments: Node, place: int) -> Links:
    return reduced(node, source_of(moments), argument(moments, 1, "dim"))
