"""Does a reordered graph compute what it should? Asked of the compiled graph itself, on the first real inputs.

With attention dense, no output may depend on the order of the tokens. So the graph runs once with the tokens left in
place and once with them in random order, and the results must agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from jenga_compile.errors import OrderMatters
from jenga_compile.kernels.dispatch import use_order


def self_checked(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, checked when it is first called.

    Raises (then):
        OrderMatters: an output depends on the order in which the graph puts its tokens.
    """
    pending = True

    def call(*inputs: Any) -> Any:
        nonlocal pending
        if pending:
            check_order(compiled, inputs)
            pending = False
        return compiled(*inputs)

    return call


def check_order(compiled: Callable[..., Any], inputs: Sequence[Any]) -> None:
    """Run a graph in two orders; the inputs are copied, so a graph may write into them.

    Raises:
        OrderMatters: the outputs differ by more than rounding can.
    """
    in_place, shuffled = (_run(compiled, inputs, order) for order in (torch.arange, _shuffle))
    for place, (expected, found) in enumerate(zip(in_place, shuffled, strict=True)):
        if not isinstance(expected, torch.Tensor) or not expected.is_floating_point() or not expected.numel():
            continue
        largest = float(expected.abs().max())
        difference = float((expected - found).abs().max())
        # Rounding errors grow through the layers, by factors that no one knows; a token in a wrong place is an error
        # of the order of the values themselves. The square root of eps lies well between the two.
        if difference > torch.finfo(expected.dtype).eps ** 0.5 * largest:
            raise OrderMatters(output=place, difference=difference, largest=largest)


def _run(compiled: Callable[..., Any], inputs: Sequence[Any], order: Callable[[int], torch.Tensor]) -> Sequence[Any]:
    copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
    with use_order(order):
        outputs: Sequence[Any] = compiled(*copies)
    return outputs


def _shuffle(tokens: int) -> torch.Tensor:
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens))
