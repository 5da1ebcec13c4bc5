"""PyTorch's own attention layers, read from their calls: what they are given, and on what sizes they work."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from jenga_compile.passes.graph import integer, sizes_of, tensor_of
from jenga_compile.passes.written.spelling import name_of

FUNCTION = "multi_head_attention_forward"
NATIVE = "_native_multi_head_attention"
ENCODER = "_transformer_encoder_layer_fwd"

_DEFAULTS: dict[str, dict[str, Any]] = {
    FUNCTION: {
        name: given.default for name, given in inspect.signature(F.multi_head_attention_forward).parameters.items()
    },
    **{
        name: {given.name: given.default_value for given in getattr(torch.ops.aten, name).default._schema.arguments}
        for name in (NATIVE, ENCODER)
    },
}
"""Parameters of each layer in order, with their defaults."""

_NAMED_AS = {
    "num_head": "num_heads",
    "qkv_weight": "in_proj_weight",
    "qkv_bias": "in_proj_bias",
    "proj_weight": "out_proj_weight",
    "proj_bias": "out_proj_bias",
}
"""What the native layers call the parameters of `multi_head_attention_forward`."""

KEYS = 1
"""`mask_type` of a native layer's mask [B, L]; one of two dimensions and another type is [L, L]."""


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """A call of one of PyTorch's layers, which take tokens and project them themselves."""

    node: Node
    name: str
    given: dict[str, Any]
    """Arguments by the names of `multi_head_attention_forward`."""

    @property
    def tensors(self) -> tuple[Node, Node, Node]:
        """Tokens that queries, keys and values are made of, [B, L, E], tokens first or without a batch."""
        if self.name == ENCODER:
            return (self.given["src"],) * 3
        return self.given["query"], self.given["key"], self.given["value"]

    @property
    def heads(self) -> int:
        return integer(self.given["num_heads"])

    @property
    def is_batched(self) -> bool:
        return tensor_of(self.tensors[0]).dim() == 3

    @property
    def tokens(self) -> int:
        """The dimension of the tokens."""
        return 0 if self.name == FUNCTION or not self.is_batched else 1

    @property
    def out(self) -> torch.Tensor:
        """The fake tensor of what the layer returns first."""
        example = self.node.meta["example_value"]
        out = example if isinstance(example, torch.Tensor) else example[0]
        assert isinstance(out, torch.Tensor)
        return out

    def sizes(self) -> dict[str, int]:
        """As in `Site`."""
        query, key = (sizes_of(tensor) for tensor in self.tensors[:2])
        return dict(
            batch=query[1 - self.tokens] if self.is_batched else 1,
            heads=self.heads,
            queries=query[self.tokens],
            keys=key[self.tokens],
            head_dim=query[-1] // self.heads,
        )


def read_layer(node: Node) -> AttentionLayer | None:
    """The layer that a node calls; None if it calls none."""
    name = name_of(node)
    if node.op != "call_function" or name not in _DEFAULTS:
        return None
    defaults = _DEFAULTS[name]
    given = {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}
    return AttentionLayer(node, name, {_NAMED_AS.get(name, name): value for name, value in given.items()})
