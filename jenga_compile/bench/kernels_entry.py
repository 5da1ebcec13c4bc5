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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One row: ours, a rival, or what the chip can do at best."""

    name: str

    group: Group

    sees: Sees
    """The pattern that is its work (`Work.ours` and so on); `nothing` where it attends to nothing."""

    prepare: Callable[[Work], Call]
    """Do what is not timed, and return the timed call. Attention gives [1, H, L, D], whatever its storage."""

    missing: Callable[[torch.device], str | None]
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
    if reason := needs_cuda(device):
        return reason
    found = torch.cuda.get_device_capability(device)
    return None if found[0] == 9 else f"needs compute capability 9, this GPU has {found[0]}.{found[1]}"


def needs_package(module: str, package: str) -> Callable[[torch.device], str | None]:
    """A Hopper GPU and an installed package."""

    def missing(device: torch.device) -> str | None:
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        return f"{package} is not installed" if found is None else needs_hopper(device)

    return missing


def never_missing(device: torch.device) -> None:
    return None
