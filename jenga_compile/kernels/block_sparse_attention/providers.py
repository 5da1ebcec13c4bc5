"""Which kernel computes `jenga::block_sparse_attention`, for tensors like the given ones.

    gathered   torch operations; any device and dtype
    portable   Triton, any GPU
    hopper     Triton's Gluon, Hopper

"auto" takes the lowest of these that can; a kernel asked for by name that cannot is an error.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from jenga_compile.config import Kernel
from jenga_compile.errors import KernelUnavailable, NoKernelWorks, OptionOutOfRange
from jenga_compile.kernels.block_sparse_attention import gathered

_log = logging.getLogger(__name__)


KERNELS: tuple[str, ...] = get_args(Kernel)

Attention = Callable[..., torch.Tensor]


def provider(kernel: str, q: torch.Tensor, v: torch.Tensor, scale: float) -> Attention:
    """The function that computes the operator.

    Raises:
        OptionOutOfRange: there is no such kernel.
        KernelUnavailable: it cannot compute this, or not here.
    """
    if kernel not in KERNELS:
        raise OptionOutOfRange(name="kernel", value=kernel, expected=str(KERNELS), way_out='Use "auto".')
    if kernel == "auto":
        able = [name for name in ("hopper", "portable") if _why_not(name, q, v, scale) is None]
        kernel = able[0] if able else "gathered"
    why = _why_not(kernel, q, v, scale)
    if why is not None:
        raise KernelUnavailable(kernel=kernel, why=why)
    if kernel == "gathered":
        return gathered.block_sparse_attention
    if kernel == "portable":
        from jenga_compile.kernels.block_sparse_attention import portable

        return portable.block_sparse_attention
    from jenga_compile.kernels.block_sparse_attention import hopper

    return hopper.block_sparse_attention


def _why_not(kernel: str, q: torch.Tensor, v: torch.Tensor, scale: float) -> str | None:
    """Why a kernel cannot compute this; None if it can."""
    if kernel == "gathered":
        return None
    if kernel in ("fp8", "flash4"):
        return "it is not there yet"
    if q.device.type != "cuda":
        return f"it needs a GPU, and the tensors are on {q.device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if scale <= 0:
        return f"it needs a positive scale, and this is {scale}"
    return (_why_not_hopper if kernel == "hopper" else _why_not_portable)(q, v)


def _why_not_portable(q: torch.Tensor, v: torch.Tensor) -> str | None:
    from jenga_compile.kernels.block_sparse_attention import portable

    if q.dtype not in portable.DTYPES:
        return f"it computes {_listing(portable.DTYPES)}, not {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > portable.MAX_DIM:
        return f"its largest head dim is {portable.MAX_DIM}, and this is {max(q.shape[-1], v.shape[-1])}"
    return None


def _why_not_hopper(q: torch.Tensor, v: torch.Tensor) -> str | None:
    if torch.version.hip is not None or torch.cuda.get_device_capability(q.device) != (9, 0):
        return f"it is made for Hopper GPUs, not for {torch.cuda.get_device_name(q.device)}"
    if (missing := _gluon_missing()) is not None:
        return missing
    from jenga_compile.kernels.block_sparse_attention import hopper

    dim = q.shape[-1]
    if q.dtype not in hopper.DTYPES:
        return f"it computes {_listing(hopper.DTYPES)}, not {q.dtype}"
    if dim != v.shape[-1] or dim > hopper.MAX_DIM or dim % 8:
        return f"it takes equal head dims in eights up to {hopper.MAX_DIM}, and these are {dim} and {v.shape[-1]}"
    return _hopper_fails(q.device, q.dtype, dim)


@functools.cache
def _gluon_missing() -> str | None:
    """What keeps Triton's Gluon from being imported, or None. It is experimental: later versions may differ."""
    try:
        from jenga_compile.kernels.block_sparse_attention import hopper  # noqa: F401
    except Exception as error:
        _log.warning("jenga: the Hopper kernel is left out, Triton's Gluon differs: %s", error)
        return f"Triton's Gluon differs from what it was written for: {error}"
    return None


_failures: dict[tuple[torch.device, torch.dtype, int], str | None] = {}


def _hopper_fails(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """What is wrong with the compiled kernel, found by running it once on a small problem; None if it is right."""
    from jenga_compile.kernels import tuning
    from jenga_compile.kernels.block_sparse_attention import hopper
    from jenga_compile.kernels.block_sparse_attention.problem import attention_problem

    key = (device, dtype, dim)
    if key not in _failures:
        if tuning.forbidden(device):
            return "it has not proven itself yet, which cannot be done while a CUDA graph is captured"
        problem = attention_problem(device, dtype, dim, dim)
        try:
            tuning.fastest(
                f"hopper {dtype} {dim}",
                source=Path(hopper.__file__).with_name("hopper_kernel.py"),
                candidates=("hopper",),
                run=lambda _: functools.partial(problem.solved_by, hopper.block_sparse_attention),
                truth=problem.truth,
                device=device,
            )
            _failures[key] = None
        except NoKernelWorks as error:
            _log.warning("jenga: the Hopper kernel is left out: %s", error)
            _failures[key] = str(error)
    return _failures[key]


def _listing(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
