"""The part of a block mask that does not depend on q and k, as tensors the operators read, and who owns it.

A graph cannot hold a mask, so `carved_attention` gets an integer handle and looks the mask up when it runs, as it does
with `knobs.py`.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from jenga_compile.block_mask import Everything, Mask
from jenga_compile.curve import AnyCurve
from jenga_compile.errors import UnknownMask
from jenga_compile.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class StaticMasks:
    """A row sees `always | (what importance chooses & allowed)`, of video blocks; text is always seen."""

    always: Mask
    allowed: Mask = dataclasses.field(default_factory=Everything)


def register(masks: StaticMasks) -> int:
    """The handle under which `carved_attention` finds these masks; equal masks get the same one.

    Handles live as long as the process, since a compiled graph may outlive everything else that knows its masks.
    """
    if masks not in _registry:
        _registry.append(masks)
    return _registry.index(masks)


def lookup(handle: int) -> StaticMasks:
    """The registered masks.

    Raises:
        UnknownMask: none were registered under this handle in this process.
    """
    if not 0 <= handle < len(_registry):
        raise UnknownMask(handle=handle, known=len(_registry))
    return _registry[handle]


_registry: list[StaticMasks] = []


@functools.lru_cache(maxsize=64)
def cached_tensors(
    masks: StaticMasks, grid: TokenGrid, curve: AnyCurve, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`always` and `allowed`, bool [R, R] or, of heads in turn, [n, R, R]; None for an `allowed` that allows all.

    Shared between callers, never write to them. Ask once before a CUDA graph is captured: a tensor made inside would
    live in the graph's memory.
    """
    # The cache outlives the caller's mode.
    with torch.inference_mode(False):
        always = masks.always.dense(grid, curve).to(device)
        allowed = None if masks.allowed == Everything() else masks.allowed.dense(grid, curve).to(device)
        return always, allowed
