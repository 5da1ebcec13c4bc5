"""The order of an op's output from the orders of its inputs: what `verify_reorder` believes.

Written down a second time on purpose: `links.py` says the same of most ops from the other side, and a mistake in one of
the two shows in the other. An op that is not here may not get permuted tokens.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from jenga_compile.passes.graph import is_tensor
from jenga_compile.passes.reorder import forward_cuts as cuts
from jenga_compile.passes.reorder import forward_rules as rules
from jenga_compile.passes.reorder.forward_rules import Rule
from jenga_compile.passes.reorder.runs import Fault
from jenga_compile.passes.reorder.seen import Moved, Seen
from jenga_compile.passes.site import ATTENTION

aten = torch.ops.aten
prims = torch.ops.prims

_VIEWS = {
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

_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten._to_copy.default,
    aten.lift_fresh_copy.default,
    prims.convert_element_type.default,
}

_KEEPS_UNIFORM = {
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.repeat.default,
}

_JOINS = {aten.cat.default, aten.slice_scatter.default}
"""Ops that put a uniform tensor beside another one."""

UNIFORM = {
    aten.full.default,
    aten.full_like.default,
    aten.ones.default,
    aten.ones_like.default,
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.scalar_tensor.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
}
"""Tensors whose elements are all the same, or not written yet."""

SHAPE_ONLY = {aten.sym_size.int, aten.sym_numel.default}
"""Ops that ask their input for its shape."""

_RULES: dict[Any, Rule] = {
    aten.expand.default: rules.expand_order,
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), rules.rearranged_order),
    aten.copy.default: rules.copy_order,
    aten.select.int: rules.select_order,
    aten.slice.Tensor: cuts.slice_order,
    aten.cat.default: cuts.cat_order,
    aten.stack.default: cuts.stack_order,
    aten.constant_pad_nd.default: cuts.pad_order,
    aten.slice_scatter.default: cuts.scatter_slice_order,
    aten.select_scatter.default: cuts.scatter_select_order,
    **dict.fromkeys(
        (aten._softmax.default, aten._log_softmax.default, aten.cumsum.default, aten.flip.default),
        rules.across_order(1),
    ),
    aten.roll.default: rules.across_order(2),
    **dict.fromkeys(
        (
            aten.amax.default,
            aten.amin.default,
            aten.any.dim,
            aten.logsumexp.default,
            aten.mean.dim,
            aten.sum.dim_IntList,
            aten.var.correction,
            aten.var_mean.correction,
        ),
        rules.reduce_order(1),
    ),
    aten.linalg_vector_norm.default: rules.reduce_order(2),
    **dict.fromkeys((aten.linear.default, aten.view_as_real.default, aten.view_as_complex.default), rules.last_order),
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default), rules.product_order),
    **dict.fromkeys(
        (
            ATTENTION,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
        ),
        rules.attention_order,
    ),
    aten.embedding.default: rules.rows_order(1),
    aten.index.Tensor: rules.index_order,
    aten.repeat.default: rules.repeat_order,
    **dict.fromkeys((aten.native_layer_norm.default, aten._fused_rms_norm.default), rules.norm_order),
}
"""What may get permuted tokens, besides what works element by element."""


def step(node: Node, seen: Seen) -> None:
    """Enter the order of `node`'s output.

    Raises:
        Fault: the inputs are in orders that do not fit each other, or the op.
    """
    call = node.args[0] if node.target is operator.getitem else node
    assert isinstance(call, Node)
    sources = [source for source in call.all_input_nodes if is_tensor(source)]
    if node.target in _VIEWS:
        seen.enter_view(node, sources[0])
    elif sources and all(map(seen.is_uniform, sources)) and (_is_elementwise(node) or node.target in _KEEPS_UNIFORM):
        seen.enter_uniform(node)
    elif node.target is aten.expand.default and not seen.is_moved(sources[0]):
        seen.enter(node, cuts.stretched_order(node))
    elif node.target is aten.constant_pad_nd.default and not seen.is_moved(sources[0]):
        seen.enter(node, cuts.margin_order(node, seen))
    elif any(map(seen.is_moved, sources)) or (any(map(seen.is_uniform, sources)) and node.target in _JOINS):
        seen.enter(node, _order(node, call, sources, seen))


def _order(node: Node, call: Node, sources: list[Node], seen: Seen) -> Moved | None:
    rule = _RULES.get(call.target) or (rules.elementwise_order if _is_elementwise(node) else None)
    try:
        if rule is None:
            raise Fault("gets permuted tokens and is not known to treat tokens alike")
        return rule(node, seen)
    except Fault:
        if any(map(seen.is_permuted, sources)):
            raise
        return None  # that some tokens are all equal need not be known of what is made of them


def _is_elementwise(node: Node) -> bool:
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
        return op in _COPIES
    random = torch.Tag.nondeterministic_seeded in op.tags
    return op in _COPIES or (torch.Tag.pointwise in op.tags and not random)
