"""One step back along the data flow: from the token axis of an op's output to where it lies in the op's inputs.

An op without a rule ends the walk there: less is learned, nothing is guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import Node

from jenga_compile.passes import rules
from jenga_compile.passes.axis import Axis
from jenga_compile.passes.graph import is_data_dependent, is_tensor
from jenga_compile.passes.rules import Step
from jenga_compile.passes.site import ATTENTION, CARVED

aten = torch.ops.aten


def follow(node: Node, axis: Axis) -> Step:
    """The axis of `node`'s output, one op further up; nowhere if a size depends on data."""
    if node.op != "call_function" or any(is_data_dependent(place) for place in (node, *node.all_input_nodes)):
        return Step()
    if node.target is operator.getitem:
        return _follow_item(node, axis)
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node, axis)
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return rules.pointwise_rule(node, axis)
    return Step()


def _follow_item(node: Node, axis: Axis) -> Step:
    source, place = node.args
    assert isinstance(source, Node)
    assert isinstance(place, int)
    rule = _ITEM_RULES.get(source.target)
    return rule(node, source, place, axis) if rule is not None and is_tensor(node) else Step()


Rule = Callable[[Node, Axis], Step]
ItemRule = Callable[[Node, Node, int, Axis], Step]


def _table(*entries: tuple[Any, Iterable[Any]]) -> dict[Any, Any]:
    return {target: rule for rule, targets in entries for target in targets}


_RULES: dict[Any, Rule] = _table(
    (
        rules.view_rule,
        (
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.unsqueeze.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.flatten.using_ints,
        ),
    ),
    (
        rules.same_rule,
        (
            aten._to_copy.default,
            aten.alias.default,
            aten.detach.default,
            aten.lift_fresh_copy.default,
            aten.contiguous.default,
            aten.view_as_complex.default,
        ),
    ),
    (rules.expand_rule, (aten.expand.default,)),
    (rules.permute_rule, (aten.permute.default,)),
    (rules.transpose_rule, (aten.transpose.int, aten.t.default)),
    (rules.select_rule, (aten.select.int,)),
    (rules.reduce_rule, (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)),
    (rules.softmax_rule, (aten._softmax.default,)),
    (rules.slice_rule, (aten.slice.Tensor,)),
    (rules.cat_rule, (aten.cat.default,)),
    (rules.stack_rule, (aten.stack.default,)),
    (rules.scatter_slice_rule, (aten.slice_scatter.default,)),
    (rules.scatter_select_rule, (aten.select_scatter.default,)),
    (rules.matmul_rule, (aten.mm.default, aten.bmm.default, *rules.BIASED)),
    (rules.last_dim_rule, (aten.linear.default, aten.view_as_real.default)),
    (rules.embedding_rule, (aten.embedding.default,)),
    (rules.attention_rule, (ATTENTION, CARVED)),
    (rules.copy_rule, (aten.copy.default,)),
)

_ITEM_RULES: dict[Any, ItemRule] = _table(
    (rules.split_item, (aten.split.Tensor, aten.split_with_sizes.default)),
    (rules.unbind_item, (aten.unbind.int,)),
    (rules.norm_item, (aten.native_layer_norm.default, aten._fused_rms_norm.default)),
    (rules.moments_item, (aten.var_mean.correction,)),
    (
        rules.sdpa_item,
        (
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
        ),
    ),
)
