"""Tuples of parts become slices and selects of the same elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from jenga_compile.config import Options
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.slice_splits import slice_splits

aten = torch.ops.aten
CUTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
OPENED: dict[str, Callable[[Tensor], Tensor]] = {
    "equal parts": lambda x: torch.cat(x.split(3, dim=1)[::-1], 1),
    "a shorter last part": lambda x: torch.cat(x.split(5, dim=1)[::-1], 1),
    "chunks": lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1],
    "given sizes": lambda x: x.split_with_sizes([1, 4, 7], 1)[1] + 1,
    "of the first dimension": lambda x: x.split(1)[1],
    "unbound": lambda x: torch.stack(x.unbind(1)[2:5]),
    "a part twice": lambda x: (lambda part: part @ part.mT)(x.split(4, 1)[2]),
}


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
@pytest.mark.parametrize("name", OPENED)
def test_parts_are_the_same_elements(name: str, mode: str) -> None:
    x = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))
    gm = make_fx(OPENED[name], tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    shapes = [node.meta["val"].shape for node in gm.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    slice_splits(gm, Ledger(Options()))
    gm.graph.lint()
    assert not [node for node in gm.graph.nodes if node.target in CUTS]
    assert torch.equal(gm(x), OPENED[name](x))
    assert shapes == [node.meta["val"].shape for node in gm.graph.nodes if isinstance(node.meta.get("val"), Tensor)]


def test_a_tuple_that_is_used_as_a_whole_is_left() -> None:
    gm = make_fx(lambda x: x.split(4, 1))(torch.randn(2, 12))
    (cut,) = gm.graph.find_nodes(op="call_function", target=aten.split.Tensor)
    gm.graph.output_node().args = (cut,)
    for item in [user for user in cut.users if user.op != "output"]:
        gm.graph.erase_node(item)
    slice_splits(gm, Ledger(Options()))
    assert gm.graph.find_nodes(op="call_function", target=aten.split.Tensor)
