"""What every launch of a Triton kernel needs."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch

LOG2E = math.log2(math.e)
"""Kernels exponentiate to base 2; a logit in natural units times this is one of theirs."""


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Inside, kernels are launched on `device`; Triton launches on the current one. On a CPU, its interpreter runs."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
