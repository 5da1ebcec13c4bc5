"""A small call of `jenga::block_sparse_attention` with its answer, on which kernels prove themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from jenga_compile.errors import NoKernelWorks
from jenga_compile.kernels import tuning
from jenga_compile.kernels.block_sparse_attention import gathered
from jenga_compile.kernels.knobs import make_knobs

_HEADS, _ROWS, _LISTED = 8, 64, 48
"""Rows as long as those of a short clip: on shorter ones, how a kernel starts would decide which is the fastest."""

_ANY = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments, and what the operator gives for them in fp32."""

    arguments: Any
    """Of the operator, in order, up to the scale."""

    truth: torch.Tensor
    """float32 [1, H, L, Dv]."""

    def solved_by(self, attention: Callable[..., torch.Tensor], **more: object) -> torch.Tensor:
        return attention(*self.arguments, **more)


def attention_problem(device: torch.device, dtype: torch.dtype, dim: int, value_dim: int) -> Problem:
    """64 query rows of 8 heads that list 48 blocks each, with text, partial blocks and a bias."""
    random = torch.Generator().manual_seed(0)
    video, text = _ROWS * 128 - 5, 131
    keys = _ROWS + 2
    q, k, v = (
        torch.randn(1, video + text, _HEADS, width, generator=random).to(device, dtype).transpose(1, 2)
        for width in (dim, dim, value_dim)
    )
    chosen = torch.rand(1, _HEADS, _ROWS, _ROWS, generator=random).argsort(-1)[..., : _LISTED - 2].sort(-1).values
    indices = torch.full((1, _HEADS, _ROWS, keys), -1, dtype=torch.int32)
    indices[..., :_LISTED] = torch.cat((chosen, torch.arange(_ROWS, keys).expand(*chosen.shape[:-1], 2)), -1)
    counts = torch.full((1, _HEADS, _ROWS), _LISTED, dtype=torch.int32)
    rest = (indices.to(device), counts.to(device), make_knobs(0.3, 0.0, 0.5, device=device), video, None, dim**-0.5)
    with sdpa_kernel(_ANY):  # whatever a caller restricts
        truth = gathered.block_sparse_attention(q.float(), k.float(), v.float(), *rest)
    return Problem(arguments=(q, k, v, *rest), truth=truth)


C = TypeVar("C")

_settled: dict[tuple[str, torch.device], tuple[object] | NoKernelWorks] = {}


def settle(
    what: str,
    attention: Callable[[C], Callable[..., torch.Tensor]],
    *,
    candidates: Callable[[], Sequence[C]],
    source: Path,
    device: torch.device,
    dtype: torch.dtype,
    dims: tuple[int, int],
    allowed: float | None = None,
) -> C | None:
    """The fastest right candidate, measured once a process unless it is on disk; None where that cannot be now.

    Args:
        what: names the kernel and what it is measured for: dtype, head dims.
        attention: makes the operator out of a candidate.
        candidates: asked for once.
        dims: head dims of keys and of values.
        source, allowed: as in `tuning.fastest`.

    Raises:
        NoKernelWorks: none is right, which is remembered too.
        OutOfMemoryError: there is no memory to try them.
    """
    key = (what, device)
    if key not in _settled:
        offered = candidates()
        found = tuning.remembered(what, source=source, candidates=offered, device=device)
        if found is None and tuning.forbidden(device):
            return None
        try:
            if found is None:
                problem = attention_problem(device, dtype, *dims)
                found = tuning.fastest(
                    what,
                    source=source,
                    candidates=offered,
                    run=lambda candidate: functools.partial(problem.solved_by, attention(candidate)),
                    truth=problem.truth,
                    device=device,
                    allowed=allowed,
                )
            _settled[key] = (found,)
        except NoKernelWorks as error:
            _settled[key] = NoKernelWorks(**error.facts)
    settled = _settled[key]
    if isinstance(settled, NoKernelWorks):
        # A new one each time: what is raised holds on to the tensors of those who called.
        raise NoKernelWorks(**settled.facts)
    return cast("C", settled[0])
