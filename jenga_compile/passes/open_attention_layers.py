"""multi_head_attention_forward(x, x, x, ...)  ->  linear(scaled_dot_product_attention(q, k, v, m)).   [ROUNDING]

Before   out: [L, B, E] = multi_head_attention_forward(x, x, x, E, H, in_weight, in_bias, ..., out_weight, out_bias)
After    q, k, v: [B, H, L, D] = linear(x.transpose(0, 1), in_weight, in_bias), in thirds and heads
         attended: [B, H, L, D] = scaled_dot_product_attention(q, k, v, attn_mask=m)
         out: [L, B, E] = linear(attended, out_weight, out_bias).transpose(0, 1), contiguous

So too `_native_multi_head_attention` [B, L, E] and `_transformer_encoder_layer_fwd`, which is opened into norms,
attention and feed-forward.

Legal because that is what the layers compute; sums round in other places. Boolean masks say here what is attended to,
in PyTorch's layers what is not. The native ones read a mask of numbers as boolean.
Fires on   large self-attention, batched or not, one packed projection or three, masked by key or by pair of tokens.
Leaves     weights that are asked for, causal hints, added keys, dropout, gradients, cross-attention and short
           sequences; `enter_other_attention` says which.
Loses      a sample whose every key is dropped: 0 here, not NaN.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.autocast_mode import _enter_autocast
from torch.fx import Graph, GraphModule, Node

from jenga_compile.config import Carving
from jenga_compile.kernels.dispatch import without_autocast
from jenga_compile.passes.eligibility import not_meant, not_rewritable
from jenga_compile.passes.graph import graphs_of, tensor_of
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.written.layer import ENCODER, FUNCTION, KEYS, NATIVE, AttentionLayer, read_layer


def open_attention_layers(gm: GraphModule, ledger: Ledger) -> None:
    for graph_module in graphs_of(gm):
        for node in list(graph_module.graph.nodes):
            layer = read_layer(node)
            if layer is not None and check(layer, ledger.options.carving) is None:
                _Opener(graph_module.graph, layer).run()
        graph_module.recompile()


def check(layer: AttentionLayer, carving: Carving) -> str | None:
    """Why a layer is not opened; None if it is."""
    queries, keys, _ = layer.tensors
    sizes = layer.tokens, tensor_of(keys).shape[layer.tokens]
    rejection = not_rewritable(layer.tensors, layer.out) or not_meant(queries, *sizes, carving)
    if rejection is not None:
        return rejection
    if layer.name != ENCODER and not _is_only_result(layer.node):
        return "need_weights: the weights are asked for"
    return _check_function(layer.given) if layer.name == FUNCTION else _check_native(layer)


def _is_only_result(node: Node) -> bool:
    """Whether nothing but the first item of a result is used."""
    return all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)


def _check_function(given: dict[str, Any]) -> str | None:
    if given["is_causal"]:
        return "causal attention"
    if given["bias_k"] is not None:
        return "add_bias_kv: a learned key joins the tokens"
    if given["add_zero_attn"]:
        return "add_zero_attn: a key of zeros joins the tokens"
    if given["static_k"] is not None or given["static_v"] is not None:
        return "static_k, static_v: keys or values are no projection of tokens"
    if given["training"] and given["dropout_p"]:
        return f"dropout {given['dropout_p']}"
    return None


def _check_native(layer: AttentionLayer) -> str | None:
    entered = layer.node.graph.find_nodes(op="call_function", target=_enter_autocast)
    if entered or torch.is_autocast_enabled(layer.out.device.type):
        return f"{layer.name} under autocast: its type is not the one that the graph knows"
    return None


class _Opener:
    """Puts the operations of one layer in its place."""

    def __init__(self, graph: Graph, layer: AttentionLayer) -> None:
        self.graph = graph
        self.layer = layer
        self.given = layer.given

    def run(self) -> None:
        node, out = self.layer.node, self.layer.out
        assert isinstance(out, FakeTensor)
        opened = {FUNCTION: self._function, NATIVE: self._native, ENCODER: self._encoder}[self.layer.name]
        with self.graph.inserting_before(node), out.fake_mode, torch.no_grad(), self._autocast():
            result = opened()
            if not tensor_of(result).is_contiguous():
                result = self._call(torch.clone, result, memory_format=torch.contiguous_format)
        for item in [node] if self.layer.name == ENCODER else list(node.users):
            item.replace_all_uses_with(result)
            self.graph.erase_node(item)
        if self.layer.name != ENCODER:
            self.graph.erase_node(node)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What autocast does to the layer, as its result shows."""
        given, out = self.given, self.layer.out
        tensors = [*self.layer.tensors, given["out_proj_weight"]]
        if all(tensor_of(tensor).dtype == out.dtype for tensor in tensors):
            return without_autocast(out)
        return torch.autocast(out.device.type, out.dtype, cache_enabled=False)

    def _function(self) -> Node:
        """[L, B, E] or [L, E]"""
        turns = (torch.transpose, torch.transpose) if self.layer.is_batched else (torch.unsqueeze, torch.squeeze)
        dims = (0, 1) if self.layer.is_batched else (0,)
        batched = {tensor: self._call(turns[0], tensor, *dims) for tensor in dict.fromkeys(self.layer.tensors)}
        out = self._attention([batched[tensor] for tensor in self.layer.tensors], self._function_mask())
        return self._call(turns[1], out, *dims)

    def _native(self) -> Node:
        """[B, L, E]"""
        return self._attention(list(self.layer.tensors), self._native_mask())

    def _encoder(self) -> Node:
        """[B, L, E]"""
        given, source = self.given, self.given["src"]
        before, after = (self._norm, _same) if given["norm_first"] else (_same, self._norm)
        attended = self._attention([before(source, 1)] * 3, self._native_mask())
        tokens = after(self._call(torch.add, attended, source), 1)
        hidden = self._call(F.linear, before(tokens, 2), given["ffn_weight_1"], given["ffn_bias_1"])
        fed = self._call(F.linear, self._activated(hidden), given["ffn_weight_2"], given["ffn_bias_2"])
        return after(self._call(torch.add, fed, tokens), 2)

    def _norm(self, tokens: Node, which: int) -> Node:
        weight, bias = self.given[f"norm_weight_{which}"], self.given[f"norm_bias_{which}"]
        return self._call(F.layer_norm, tokens, (self.given["embed_dim"],), weight, bias, self.given["eps"])

    def _activated(self, hidden: Node) -> Node:
        if not self.given["use_gelu"]:
            return self._call(F.relu, hidden)
        # The kernel that CUDA fuses into the product approximates.
        return self._call(F.gelu, hidden, approximate="tanh" if self.layer.out.is_cuda else "none")

    def _attention(self, tokens: list[Node], mask: Node | None) -> Node:
        """Projections, attention and the projection of its result, [B, L, E]."""
        query, key, value = self._projected(tokens)
        attended = self._call(F.scaled_dot_product_attention, query, key, value, attn_mask=mask)
        merged = self._call(torch.flatten, self._call(torch.transpose, attended, 1, 2), 2)
        return self._call(F.linear, merged, self.given["out_proj_weight"], self.given["out_proj_bias"])

    def _projected(self, tokens: list[Node]) -> list[Node]:
        """q, k and v, [B, H, L, D]."""
        weight, bias, heads = self.given["in_proj_weight"], self.given["in_proj_bias"], self.layer.heads
        apart = self.given.get("use_separate_proj_weight")
        if len(set(tokens)) == 1 and not apart:
            packed = self._call(torch.unflatten, self._call(F.linear, tokens[0], weight, bias), -1, (3, heads, -1))
            turned = self._call(torch.permute, packed, (2, 0, 3, 1, 4))
            return [self._call(torch.select, turned, 0, place) for place in range(3)]
        weights = [self.given[f"{name}_proj_weight"] for name in "qkv"] if apart else self._thirds(weight)
        projected = map(functools.partial(self._call, F.linear), tokens, weights, self._thirds(bias))
        stacked = [self._call(torch.unflatten, tensor, -1, (heads, -1)) for tensor in projected]
        return [self._call(torch.transpose, tensor, 1, 2) for tensor in stacked]

    def _thirds(self, packed: Node | None) -> list[Node | None]:
        """The parts of a packed parameter for q, k and v."""
        if packed is None:
            return [None] * 3
        stacked = self._call(torch.unflatten, packed, 0, (3, -1))
        return [self._call(torch.select, stacked, 0, place) for place in range(3)]

    def _function_mask(self) -> Node | None:
        """What SDPA takes for `attn_mask` [L, L] or [B*H, L, L] and `key_padding_mask` [B, L] or [L]."""
        pairs, keys, masks = self.given["attn_mask"], self.given["key_padding_mask"], []
        if pairs is not None:
            stacked = tensor_of(pairs).dim() == 3
            masks.append(self._call(torch.unflatten, pairs, 0, (-1, self.layer.heads)) if stacked else pairs)
        if keys is not None:
            masks.append(self._over_pairs(keys if self.layer.is_batched else self._call(torch.unsqueeze, keys, 0)))
        dropped = [mask for mask in masks if tensor_of(mask).dtype is torch.bool]
        added = [mask for mask in masks if mask not in dropped]
        drop = functools.reduce(functools.partial(self._call, torch.logical_or), dropped) if dropped else None
        bias = functools.reduce(functools.partial(self._call, torch.add), added) if added else None
        if drop is None or bias is None:
            return bias if drop is None else self._call(torch.logical_not, drop)
        return self._call(torch.where, drop, -math.inf, bias)

    def _native_mask(self) -> Node | None:
        """What SDPA takes for `mask` [B, L], [L, L] or [B, H, L, L]."""
        mask = self.given["mask"]
        if mask is None:
            return None
        keep = self._call(torch.eq, mask, 0)
        return self._over_pairs(keep) if tensor_of(mask).dim() == 2 and self.given["mask_type"] == KEYS else keep

    def _over_pairs(self, keys: Node) -> Node:
        """[B, L] -> [B, 1, 1, L]"""
        return self._call(torch.unsqueeze, self._call(torch.unsqueeze, keys, 1), 1)

    def _call(self, function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Node:
        made = self.graph.call_function(function, args, kwargs)
        named = {name: _example(value) for name, value in kwargs.items()}
        made.meta = {**self.layer.node.meta, "example_value": function(*map(_example, args), **named)}
        return made


def _same(tokens: Node, _: int) -> Node:
    return tokens


def _example(value: Any) -> Any:
    return tensor_of(value) if isinstance(value, Node) else value
