"""Which provider computes an operator: the fast one, or on request the reference that defines it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """Inside, operators compute in the types they are given and say they return, whatever the caller's mode is."""
    return torch.autocast(tensor.device.type, enabled=False)


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
