"""Which provider computes an operator: the fast one, or on request the reference that defines it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """Inside, operators compute in the types they are given and say they return, whatever the caller's mode is."""
    return torch.autocast(tensor.device.type, enabled=False)


@functools.cache
def runs_triton(device: torch.device) -> bool:
    """Whether kernels of ours can run there: Triton, and an NVIDIA GPU that has bf16 and tf32 (sm_80 and later)."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


_order: ContextVar[Callable[[int], torch.Tensor] | None] = ContextVar("jenga_order", default=None)


def stand_in_order() -> Callable[[int], torch.Tensor] | None:
    """The order that stands in for every curve inside `use_order`; None outside."""
    return _order.get()


@contextmanager
def use_order(order: Callable[[int], torch.Tensor]) -> Iterator[None]:
    """Inside, tokens are put in another order than a curve's, and carved attention attends to everything.

    What a graph computes then must not depend on the order, which is how a reordered graph is checked.

    Args:
        order: a permutation for a number of tokens, int64 [tokens]; the same one for the same number.
    """
    token = _order.set(order)
    try:
        yield
    finally:
        _order.reset(token)


_reference: ContextVar[bool] = ContextVar("jenga_reference", default=False)


def reference_requested() -> bool:
    """Whether this thread or task is inside `use_reference()`."""
    return _reference.get()


@contextmanager
def use_reference() -> Iterator[None]:
    """Inside, every `jenga::*` operator runs its `reference.py`: slow, and the definition of the right answer.

    Holds for the current thread or task, compiled graphs included (operators choose when they run).
    """
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)
