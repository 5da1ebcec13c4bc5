"""Attention under a mask, through AOTAutograd and `normalise_mask` alone: its numbers, and what became of the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule, Node

from jenga_compile.config import parse_options
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.normalise_mask import normalise_mask
from jenga_compile.passes.site import ATTENTION
from jenga_compile.sites import Site

HEAD_DIM = 8
MakeMask = Callable[..., Tensor]


@dataclasses.dataclass
class Outcome:
    """The last graph, the reasons of its sites, and how many graphs there were."""

    graph: GraphModule | None = None
    reasons: tuple[str, ...] = ()
    graphs: int = 0

    def masks(self) -> list[Node | None]:
        """Of the attention calls, in order."""
        assert self.graph is not None
        return [site.args[3] for site in self.graph.graph.find_nodes(op="call_function", target=ATTENTION)]

    def matrices(self, queries: int, keys: int) -> list[str]:
        """Tensors with a row a query and a column a key, or the reverse."""
        assert self.graph is not None
        values = [(node.name, node.meta.get("val")) for node in self.graph.graph.nodes]
        shapes = {(queries, keys), (keys, queries)}
        return [name for name, value in values if isinstance(value, Tensor) and tuple(value.shape[-2:]) in shapes]


def qkv(
    batch: int = 2, heads: int = 3, queries: int = 7, keys: int = 7, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    seeded = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, queries, HEAD_DIM), *[(batch, heads, keys, HEAD_DIM)] * 2]
    return [torch.randn(shape, generator=seeded).to(dtype) for shape in shapes]


def attend(makes: Sequence[MakeMask]) -> Callable[..., tuple[Tensor, ...]]:
    """One attention for each way to make a mask; its place is its site."""

    def run(q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        outs = [torch.ops.jenga.attention(q, k, v, make(*inputs), None, site) for site, make in enumerate(makes)]
        return tuple(out.transpose(1, 2).flatten(2) for out in outs)

    return run


def compiled(function: Callable[..., Any], outcome: Outcome, *, decompose: bool = True, dynamic: bool = False) -> Any:
    """`function` as one graph, with the pass applied, run op by op."""

    def rewrite(gm: GraphModule, inputs: Sequence[Any]) -> Any:
        ledger = Ledger(parse_options({}))
        for _ in gm.graph.find_nodes(op="call_function", target=ATTENTION):
            ledger.enter(Site(path="", decision="left", reason="", batch=1, heads=1, queries=1, keys=1, head_dim=1))
        normalise_mask(gm, ledger)
        gm.graph.lint()
        outcome.graph, outcome.graphs = gm, outcome.graphs + 1
        outcome.reasons = tuple(site.reason for site in ledger.report().sites)
        return make_boxed_func(gm.forward)

    table = select_decomp_table() if decompose else {}
    backend = aot_autograd(fw_compiler=rewrite, inference_compiler=rewrite, decompositions=table)
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)


def run(
    makes: Sequence[MakeMask], tensors: Sequence[Tensor], inputs: Sequence[Tensor], *, decompose: bool = True
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Outcome]:
    """Outputs as written, outputs as rewritten, and what became of the graph."""
    outcome, function = Outcome(), attend(makes)
    with torch.no_grad():
        found = compiled(function, outcome, decompose=decompose)(*tensors, *inputs)
        return function(*tensors, *inputs), found, outcome
