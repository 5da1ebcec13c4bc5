"""Which kernel computes `jenga::block_sparse_attention`, for tensors like the given ones.

    gathered   torch operations; any device and dtype
    portable   Triton, any GPU
    hopper     Triton's Gluon, Hopper
    fp8        as hopper, on numbers rounded to 8 bits; never chosen by "auto"
    flash4     FlashAttention 4, Hopper; a package of its own

"auto" takes hopper, portable or gathered, the first that can; a kernel asked for by name that cannot is an error.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import torch

from jenga_compile.config import Kernel
from jenga_compile.errors import KernelUnavailable, NoKernelWorks, OptionOutOfRange
from jenga_compile.kernels.block_sparse_attention import gathered

_log = logging.getLogger(__name__)

KERNELS: tuple[str, ...] = get_args(Kernel)

Attention = Callable[..., torch.Tensor]


def find(kernel: str, q: torch.Tensor, v: torch.Tensor, scale: float, masked: bool) -> Attention:
    """The function that computes the operator; `masked` if there is a key mask.

    Raises:
        OptionOutOfRange: there is no such kernel.
        KernelUnavailable: it cannot compute this, or not here.
        NoKernelWorks: it is made for this, but gives wrong numbers here.
    """
    if kernel not in KERNELS:
        raise OptionOutOfRange(name="kernel", value=kernel, expected=str(KERNELS), way_out='Use "auto".')
    if kernel == "auto":
        able = (name for name in ("hopper", "portable") if _can(name, q, v, scale, masked))
        kernel = next(able, "gathered")
    elif (why := _why_not(kernel, q, v, scale, masked)) is not None:
        raise KernelUnavailable(kernel=kernel, why=why)
    if kernel == "gathered":
        return gathered.block_sparse_attention
    if kernel == "portable":
        from jenga_compile.kernels.block_sparse_attention import portable

        return portable.block_sparse_attention
    if kernel == "flash4":
        from jenga_compile.kernels.block_sparse_attention import flash4

        return flash4.block_sparse_attention
    if kernel == "fp8":
        from jenga_compile.kernels.block_sparse_attention import hopper_fp8

        return hopper_fp8.block_sparse_attention
    from jenga_compile.kernels.block_sparse_attention import hopper

    return hopper.block_sparse_attention


def _can(kernel: str, q: torch.Tensor, v: torch.Tensor, scale: float, masked: bool) -> bool:
    try:
        return _why_not(kernel, q, v, scale, masked) is None
    except NoKernelWorks:
        return False


def _why_not(kernel: str, q: torch.Tensor, v: torch.Tensor, scale: float, masked: bool) -> str | None:
    """Why a kernel cannot compute this; None if it can.

    Raises:
        NoKernelWorks: it should, but gives wrong numbers.
    """
    if kernel == "gathered":
        return None
    if q.device.type != "cuda":
        return f"it needs a GPU, and the tensors are on {q.device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if scale <= 0:
        return f"it needs a positive scale, and this is {scale}"
    if kernel == "flash4":
        return "it takes no key mask" if masked else _why_not_flash4(q, v)
    return {"hopper": _why_not_hopper, "fp8": _why_not_fp8, "portable": _why_not_portable}[kernel](q, v)


def _why_not_portable(q: torch.Tensor, v: torch.Tensor) -> str | None:
    from jenga_compile.kernels.block_sparse_attention import portable

    if q.dtype not in portable.DTYPES:
        return f"it computes {_listing(portable.DTYPES)}, not {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > portable.MAX_DIM:
        return f"its largest head dim is {portable.MAX_DIM}, and this is {max(q.shape[-1], v.shape[-1])}"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"it needs compute capability 8.0, and {torch.cuda.get_device_name(q.device)} has less"
    return _why_unproven("portable", lambda: portable.proven(q, v))


def _why_not_hopper(q: torch.Tensor, v: torch.Tensor) -> str | None:
    missing = _no_hopper_gpu(q) or _gluon_missing("hopper")
    if missing is not None:
        return missing
    from jenga_compile.kernels.block_sparse_attention import hopper

    unsuited = _unsuited(q, v, hopper.DTYPES, hopper.MAX_DIM)
    return unsuited or _unproven(
        "hopper", hopper.block_sparse_attention, Path(hopper.__file__).with_name("hopper_kernel.py"), q
    )


def _why_not_fp8(q: torch.Tensor, v: torch.Tensor) -> str | None:
    missing = _no_hopper_gpu(q) or _gluon_missing("hopper_fp8")
    if missing is not None:
        return missing
    from jenga_compile.kernels.block_sparse_attention import hopper_fp8

    unsuited = _unsuited(q, v, hopper_fp8.DTYPES, hopper_fp8.MAX_DIM)
    source = Path(hopper_fp8.__file__).with_name("hopper_fp8_kernel.py")
    return unsuited or _unproven("fp8", hopper_fp8.block_sparse_attention, source, q, allowed=_FP8_ALLOWED)


def _why_not_flash4(q: torch.Tensor, v: torch.Tensor) -> str | None:
    from jenga_compile.kernels.block_sparse_attention import flash4

    found = _version(flash4.PACKAGE)
    if found is None:
        return f"{flash4.PACKAGE} is not installed"
    unsuited = _no_hopper_gpu(q) or _unsuited(q, v, flash4.DTYPES, flash4.MAX_DIM)
    return unsuited or _unproven(f"{flash4.PACKAGE} {found}", flash4.block_sparse_attention, Path(flash4.__file__), q)


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _no_hopper_gpu(q: torch.Tensor) -> str | None:
    if torch.version.hip is not None or torch.cuda.get_device_capability(q.device) != (9, 0):
        return f"it is made for Hopper GPUs, not for {torch.cuda.get_device_name(q.device)}"
    return None


def _unsuited(q: torch.Tensor, v: torch.Tensor, dtypes: tuple[torch.dtype, ...], largest: int) -> str | None:
    """Why a kernel made for tensor cores and the copy engine does not take these; None if it does."""
    dim = q.shape[-1]
    if q.dtype not in dtypes:
        return f"it computes {_listing(dtypes)}, not {q.dtype}"
    if dim != v.shape[-1] or dim > largest or dim % 8:
        return f"it takes equal head dims in eights up to {largest}, and these are {dim} and {v.shape[-1]}"
    return None


@functools.cache
def _gluon_missing(module: str) -> str | None:
    """What keeps a module in Triton's Gluon from being imported, or None. Gluon is experimental: versions differ."""
    try:
        importlib.import_module(f"{__package__}.{module}")
    except Exception as error:
        _log.warning("jenga: the kernel %s is left out, Triton's Gluon differs: %s", module, error)
        return f"Triton's Gluon differs from what it was written for: {error}"
    return None


_FP8_ALLOWED = 0.1
"""Largest relative error of the fp8 kernel on `attention_problem`, whose values are random with no mean, so that their
average is small and rounding weighs most. Rounding q, k, v and P to e4m3 with a scale a head gives 0.053 there at head
dim 64 to 128 and 0.073 at 8; the kernel's own arithmetic, emulated, 0.057 and 0.074. A fault gives more: one of the 48
blocks left out, 0.14."""

_UNPROVEN = "it has not proven itself yet, which cannot be done while a CUDA graph is captured: call it once before"
_NO_MEMORY = "the GPU has no memory left to prove it on a small problem"


def _unproven(
    name: str, attention: Attention, source: Path, q: torch.Tensor, allowed: float | None = None
) -> str | None:
    """`_why_unproven` of a kernel without variants; its relative error may be `allowed`, None: what q's dtype costs."""
    from jenga_compile.kernels.block_sparse_attention.problem import settle

    dim = q.shape[-1]
    return _why_unproven(
        name,
        lambda: (
            settle(
                f"{name} {q.dtype} {dim}",
                lambda _: attention,
                candidates=lambda: (name,),
                source=source,
                device=q.device,
                dtype=q.dtype,
                dims=(dim, dim),
                allowed=allowed,
            )
            is not None
        ),
    )


def _why_unproven(name: str, proven: Callable[[], bool]) -> str | None:
    """Why a kernel cannot prove itself now; None if it has.

    Raises:
        NoKernelWorks: it gives wrong numbers.
    """
    try:
        return None if proven() else _UNPROVEN
    except NoKernelWorks as error:
        _warn(name, error)
        raise
    except torch.OutOfMemoryError:
        return _NO_MEMORY


_warned: set[str] = set()


def _warn(name: str, error: NoKernelWorks) -> None:
    if str(error) not in _warned:
        _warned.add(str(error))
        _log.warning("jenga: the kernel %s is left out: %s", name, error)


def _listing(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
