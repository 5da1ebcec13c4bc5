"""A model without its trunk: patch embedding, what the trunk added when it last ran, final layer.

    recorded    v = last(x0 + r),  r = blocks(x0) - x0,  x0 = first(x)        r is kept
    reused      v = last(x0 + r)                          x0 = first(x)        no block runs

Both are the model's own `forward`, run on twins of the module: other objects with the same parameters and submodules,
whose lists of blocks are changed. So conditioning, LoRA scales and modulation are computed as ever, and each twin can
be compiled as a whole. The cached quantity is the paper's ("before image unpatchify").
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers", "visual_transformer_blocks")
"""Names under which transformers of diffusers hold the blocks of their trunk, run in the order of definition."""

_HUNG_ON = ("forward", "_hf_hook", "_old_forward", "_diffusers_hook", "_compiled_call_impl")
"""What offloading, caching and compiling put on a module object: that is the object's own, not its twin's."""


class Residual(nn.Module):
    """What the trunk added to the video's tokens, [B, L, D], and what else its last block returned."""

    def __init__(self) -> None:
        super().__init__()
        self.start: Tensor | None = None
        self.value: Tensor | None = None
        self.place: int | None = None
        """Where the video's tokens are in what blocks return; None if they return nothing else."""


class Enter(nn.Module):
    """The first block, noting what it is given."""

    def __init__(self, block: nn.Module, residual: Residual) -> None:
        super().__init__()
        self.block, self.residual = block, residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.residual.start = _tokens(args, kwargs)
        return self.block(*args, **kwargs)


class Leave(nn.Module):
    """The last block, noting what the trunk has added."""

    def __init__(self, block: nn.Module, residual: Residual) -> None:
        super().__init__()
        self.block, self.residual = block, residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.block(*args, **kwargs)
        start, returned = self.residual.start, out if isinstance(out, tuple) else (out,)
        assert start is not None
        self.residual.start = self.residual.value = None
        for place, x in enumerate(returned):
            if isinstance(x, Tensor) and x.shape == start.shape and len(returned) <= 2:
                self.residual.place = place if isinstance(out, tuple) else None
                self.residual.value = x - start
                break
        return out


class Reuse(nn.Module):
    """All blocks at once: adds what they added when they last ran."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.residual.value is not None
        video = _tokens(args, kwargs) + self.residual.value
        if self.residual.place is None:
            return video
        text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        return (video, text) if self.residual.place == 0 else (text, video)


def _tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    tokens: Tensor = args[0] if args else kwargs["hidden_states"]
    return tokens


@dataclasses.dataclass(frozen=True)
class Twins:
    """The two twins of one model. `residual` is read after a recorded call, and set before a reused one."""

    recorded: nn.Module
    reused: nn.Module
    residual: Residual


def block_lists(model: nn.Module) -> list[str]:
    """Names of the lists that make up the trunk, in their order; none where the model's blocks are not known."""
    lists = [name for name, child in model.named_children() if isinstance(child, nn.ModuleList) and len(child)]
    return lists if set(lists) <= set(BLOCKS) else []


def twin(model: nn.Module) -> nn.Module:
    """Another module object with the same parameters, buffers and submodules, and nothing that is hung on this one."""
    other = copy.copy(model)
    for name in _HUNG_ON:
        vars(other).pop(name, None)
    return other


def make_twins(model: nn.Module) -> Twins | None:
    """The twins of a model, or None where its blocks are not known."""
    names = block_lists(model)
    if not names:
        return None
    twins = Twins(twin(model), twin(model), Residual())
    refresh(twins, model)
    return twins


def refresh(twins: Twins, model: nn.Module) -> None:
    """Let the twins have the submodules that the model has now, such as those that LoRA has wrapped."""
    names = block_lists(model)
    lists = {name: list(model.get_submodule(name).children()) for name in names}
    lists[names[0]][0] = Enter(lists[names[0]][0], twins.residual)
    lists[names[-1]][-1] = Leave(lists[names[-1]][-1], twins.residual)
    _share(twins.recorded, model, {name: nn.ModuleList(blocks) for name, blocks in lists.items()})
    _share(
        twins.reused,
        model,
        {name: nn.ModuleList([Reuse(twins.residual)] if name == names[0] else []) for name in names},
    )


def _share(other: nn.Module, model: nn.Module, lists: Mapping[str, nn.ModuleList]) -> None:
    shared = {name: value for name, value in vars(model).items() if name not in _HUNG_ON}
    vars(other).update(shared)
    # A dictionary of its own, so that the lists are changed in the twin alone.
    other._modules = {**model._modules, **lists}
    for blocks in lists.values():
        blocks.training = model.training


def through_hooks(model: nn.Module, run: Any, arguments: Mapping[str, Any]) -> Any:
    """`run(**arguments)` between the hooks that offloading has hung on the model itself, as its own call would be."""
    hook = vars(model).get("_hf_hook")
    registry = vars(model).get("_diffusers_hook")
    references = registry._fn_refs if registry is not None else []
    args: tuple[Any, ...] = ()
    kwargs = dict(arguments)
    if hook is not None:
        args, kwargs = hook.pre_forward(model, *args, **kwargs)
    for reference in reversed(references):
        args, kwargs = reference.pre_forward(model, *args, **kwargs)
    out = run(*args, **kwargs)
    for reference in references:
        out = reference.post_forward(model, out)
    return hook.post_forward(model, out) if hook is not None else out


def relative_difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=torch.finfo(torch.float32).tiny))
