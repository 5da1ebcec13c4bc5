"""Attention as the model wrote it, opaque to the compiler between the two levels of passes.

`jenga::attention(q, k, v, mask, scale, site)` is scaled dot-product attention and nothing else. It keeps a site
visible after AOTAutograd, which would otherwise lower it to a device-specific kernel, and carries the site's number.

B batch, H heads, L queries, S keys, D head dim, E value dim.
    q     [B, H, L, D]
    k     [B, H, S, D]
    v     [B, H, S, E]
    mask  broadcastable to [B, H, L, S], bool (True attends) or additive, or None
    out   [B, H, L, E] with the storage of [B, L, H, E]
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from jenga_compile.grid import CurveKind
from jenga_compile.kernels.dispatch import without_autocast
from jenga_compile.passes.graph import integer, shape_of


@torch.library.custom_op("jenga::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, site: int) -> Tensor:
    """Attention of site number `site`; the contract is the module's docstring."""
    with without_autocast(q):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, site: int) -> Tensor:
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)


ATTENTION = torch.ops.jenga.attention.default
CARVED = torch.ops.jenga.carved_attention.default
CURVE_INDEX = torch.ops.jenga.curve_index.default

GATHER = torch.ops.aten._unsafe_index.Tensor
"""`aten.index` that checks no bounds: a curve index is a permutation of the tokens that the verifier counts."""

REORDERED = 13
"""Place of `reordered` among the arguments of `CARVED`."""

TOLD = 14
"""Place of `told` among them."""

CUTS = 9
"""Place of `cuts` among them."""


def number_of(site: Node) -> int:
    """The number under which the ledger has a call of `ATTENTION`."""
    number = site.args[5]
    assert isinstance(number, int)
    return number


@dataclasses.dataclass(frozen=True)
class CarvedCall:
    """The arguments of `CARVED` that say in what order its tokens come, in the numbers of the valuation in force."""

    tensors: tuple[Node, Node, Node]
    """q, k, v."""

    mask: Node | None
    grid: tuple[int, int, int]
    start: int
    curve: CurveKind
    cuts: tuple[int, ...]
    reordered: bool
    told: bool

    @classmethod
    def of(cls, node: Node) -> CarvedCall:
        query, key, value, mask, t, h, w, start, curve, cuts, _, _, _, reordered, told, _ = node.args
        grid = (integer(t), integer(h), integer(w))
        tensors: Any = (query, key, value)
        return cls(tensors, mask, grid, integer(start), curve, tuple(cuts), reordered, told)  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        return shape_of(self.tensors[0])[2]

    @property
    def after(self) -> int:
        """Tokens behind the video."""
        return self.tokens - self.start - math.prod(self.grid)
