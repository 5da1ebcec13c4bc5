"""A kernel as `jenga bench kernels` sees it: where it runs, what it computes, and how it is called."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias

import torch

from jenga_compile.bench.kernels_inputs import MaskKind, Work

Group = Literal["ours", "sparse", "dense", "ceiling"]
Sees = Literal["ours", "flat", "dense", "nothing"]
Result: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
Call: TypeAlias = Callable[[], Result]
Missing: TypeAlias = Callable[[torch.device], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One row: ours, a rival, or what the chip can do at best."""

    name: str

    group: Group

    sees: Sees
    """The pattern that is its work (`Work.ours` and so on); `nothing` where it attends to nothing."""

    prepare: Callable[[Work], Call]
    """Do what is not timed, and return the timed call. Attention gives [1, H, L, D], whatever its storage."""

    missing: Missing
    """Why this machine cannot run it; None if it can."""

    precision: Literal["same", "fp8"] = "same"
    """Of the inputs, as they are given or rounded to eight bits."""

    masks: tuple[MaskKind, ...] = ("structured", "random")
    """Kinds of lists it is measured with."""

    package: str | None = None
    """Distribution that brings it, where it is not PyTorch's or our own."""

    @property
    def version(self) -> str | None:
        """Of its distribution, if it is installed."""
        try:
            return None if self.package is None else version(self.package)
        except PackageNotFoundError:
            return None


def needs_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "needs a CUDA GPU"


def needs_hopper(device: torch.device) -> str | None:
    """Machine code for Hopper runs on no other GPU."""
    return needs_cuda(device) or _capability(device, "9", lambda major: major == 9)


def needs_tma(device: torch.device) -> str | None:
    """Bulk tensor copies, which Hopper and later GPUs have."""
    return needs_cuda(device) or _capability(device, "9 or above", lambda major: major >= 9)


def needs_package(module: str, package: str, machine: Missing) -> Missing:
    """An installed package, and then a machine."""

    def missing(device: torch.device) -> str | None:
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        return f"{package} is not installed" if found is None else machine(device)

    return missing


def _capability(device: torch.device, wanted: str, suits: Callable[[int], bool]) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    return None if suits(major) else f"needs compute capability {wanted}, this GPU has {major}.{minor}"


def never_missing(device: torch.device) -> None:
    return None
