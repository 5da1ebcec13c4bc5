"""Which dimension of an op's output is which dimension of its inputs: one table, for all passes.

A link from dimension d of the output to dimension e of an input says: index i along d is computed from index i along e
of that input. An input without a link at d enters every index alike (a weight, a number that is broadcast). An op that
mixes or moves indices along d (a softmax, a convolution, a cut) has no entry for d at all; an op that is not in the
table has no entry for any.

So a permutation of the linked dimensions of the inputs is the same permutation of d: that is what reordering rests on.
And index i along d *is* index i along e: that is what layouts are read from.

Views have no links: they keep every element's row-major index, and their dimensions have no counterparts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from jenga_compile.passes import rules
from jenga_compile.passes.graph import is_tensor
from jenga_compile.passes.rules import Links
from jenga_compile.passes.site import ATTENTION, CARVED

aten = torch.ops.aten
prims = torch.ops.prims

VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.flatten.using_ints,
        aten.unflatten.int,
    }
)
"""Ops that keep the row-major index of every element, whatever shape they give."""


def is_view(node: Node) -> bool:
    return node.op == "call_function" and node.target in VIEWS


def links_of(node: Node) -> Links:
    """Links of a tensor-valued node; those of an item of a tuple lead to the inputs of the op that made the tuple."""
    if node.op != "call_function" or not is_tensor(node):
        return {}
    if node.target is operator.getitem:
        call, place = node.args
        assert isinstance(call, Node)
        assert isinstance(place, int)
        item = _ITEMS.get(call.target)
        return item(node, call, place) if item is not None else {}
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node)
    return rules.pointwise_rule(node) if is_pointwise(node) else {}


def is_pointwise(node: Node) -> bool:
    """Whether every element of the output is computed from the elements in its place, and from nothing else."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
        return False
    return torch.Tag.pointwise in op.tags and torch.Tag.nondeterministic_seeded not in op.tags


_RULES: dict[Any, Callable[[Node], Links]] = {
    **dict.fromkeys(
        (
            aten._to_copy.default,
            aten.alias.default,
            aten.clone.default,
            aten.contiguous.default,
            aten.detach.default,
            aten.lift_fresh_copy.default,
            aten.view_as_complex.default,
            prims.convert_element_type.default,
        ),
        rules.same_rule,
    ),
    **dict.fromkeys(
        (
            aten.full.default,
            aten.full_like.default,
            aten.ones.default,
            aten.ones_like.default,
            aten.zeros.default,
            aten.zeros_like.default,
            aten.new_zeros.default,
            aten.new_ones.default,
            aten.new_full.default,
            aten.empty.memory_format,
            aten.empty_like.default,
            aten.new_empty.default,
            aten.scalar_tensor.default,
        ),
        rules.constant_rule,
    ),
    **dict.fromkeys((aten.linear.default, aten.view_as_real.default), rules.last_rule),
    **dict.fromkeys(
        (
            aten._softmax.default,
            aten._log_softmax.default,
            aten.cumsum.default,
            aten.cumprod.default,
            aten.flip.default,
        ),
        rules.along_rule(1),
    ),
    aten.roll.default: rules.along_rule(2),
    **dict.fromkeys(
        (
            aten.amax.default,
            aten.amin.default,
            aten.any.dim,
            aten.logsumexp.default,
            aten.mean.dim,
            aten.sum.dim_IntList,
            aten.var.correction,
        ),
        rules.reduce_rule(1),
    ),
    aten.linalg_vector_norm.default: rules.reduce_rule(2),
    aten.expand.default: rules.expand_rule,
    aten.copy.default: rules.copy_rule,
    aten.permute.default: rules.permute_rule,
    aten.transpose.int: rules.transpose_rule,
    aten.t.default: rules.transpose_rule,
    aten.select.int: rules.select_rule,
    aten.slice.Tensor: rules.slice_rule,
    aten.constant_pad_nd.default: rules.pad_rule,
    aten.cat.default: rules.cat_rule,
    aten.stack.default: rules.stack_rule,
    aten.slice_scatter.default: rules.scatter_slice_rule,
    aten.select_scatter.default: rules.scatter_select_rule,
    aten.mm.default: rules.product_rule,
    aten.bmm.default: rules.product_rule,
    aten.addmm.default: rules.biased_product_rule,
    aten.baddbmm.default: rules.biased_product_rule,
    aten.embedding.default: rules.embedding_rule,
    aten.index_select.default: rules.index_select_rule,
    aten.index.Tensor: rules.index_rule,
    aten.gather.default: rules.gather_rule,
    aten.repeat.default: rules.repeat_rule,
    aten.convolution.default: rules.convolution_rule,
    ATTENTION: rules.attention_rule,
    CARVED: rules.attention_rule,
}

_ITEMS: dict[Any, Callable[[Node, Node, int], Links]] = {
    aten.native_layer_norm.default: rules.norm_item,
    aten._fused_rms_norm.default: rules.norm_item,
    aten.var_mean.correction: rules.moments_item,
    aten._scaled_dot_product_flash_attention_for_cpu.default: rules.sdpa_item(None, 4),
    aten._scaled_dot_product_flash_attention.default: rules.sdpa_item(None, 4),
    aten._scaled_dot_product_efficient_attention.default: rules.sdpa_item(3, 6),
    aten._scaled_dot_product_cudnn_attention.default: rules.sdpa_item(3, 6),
}
