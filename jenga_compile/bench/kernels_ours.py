"""Our own rows of `jenga bench kernels`: the operators, and each kernel that `block_sparse_attention` has by name.

jenga select      block_select alone
jenga site        carved_attention on tokens in curve order: select and attend, as a compiled model runs it
jenga auto, ...   block_sparse_attention over the given lists, by the kernel of that name; `auto` chooses
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from jenga_compile.bench.kernels_entry import Call, Kernel, never_missing
from jenga_compile.bench.kernels_inputs import CURVE, Work

ops = torch.ops.jenga

SELECT, SITE, AUTO = "jenga select", "jenga site", "jenga auto"

KERNELS = ("hopper", "fp8", "flash4", "portable", "gathered")
"""What computes it beside `auto`."""


def _select(work: Work) -> Call:
    q, k, video = work.inputs.q, work.inputs.k, work.inputs.shape.grid.tokens
    always, knobs = work.always, work.knob_values

    def call() -> tuple[torch.Tensor, ...]:
        indices, counts = ops.block_select(q, k, always, knobs, video)
        return indices, counts

    return call


def _site(work: Work) -> Call:
    q, k, v = work.inputs.q, work.inputs.k, work.inputs.v
    where: tuple[object, ...] = (*work.inputs.shape.grid.shape, 0, CURVE, [], work.masks, work.knobs, None, True)

    def call() -> torch.Tensor:
        out: torch.Tensor = ops.carved_attention(q, k, v, None, *where)
        return out

    return call


def _attention(kernel: str | None) -> Callable[[Work], Call]:
    chosen = {} if kernel is None else {"provider": kernel}

    def prepare(work: Work) -> Call:
        q, k, v, video = work.inputs.q, work.inputs.k, work.inputs.v, work.inputs.shape.grid.tokens
        lists, knobs = (work.indices, work.counts), work.knob_values

        def call() -> torch.Tensor:
            out: torch.Tensor = ops.block_sparse_attention(q, k, v, *lists, knobs, video, **chosen)
            return out

        return call

    return prepare


def _named(kernel: str) -> Kernel:
    return Kernel(
        name=f"jenga {kernel}",
        group="ours",
        sees="ours",
        prepare=_attention(kernel),
        missing=never_missing,
        precision="fp8" if kernel == "fp8" else "same",
    )


OURS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            name=SELECT,
            group="ours",
            sees="nothing",
            prepare=_select,
            missing=never_missing,
            masks=("structured",),
        ),
        Kernel(name=SITE, group="ours", sees="ours", prepare=_site, missing=never_missing, masks=("structured",)),
        Kernel(name=AUTO, group="ours", sees="ours", prepare=_attention(None), missing=never_missing),
        *map(_named, KERNELS),
    )
}
