"""Operations of a transformer's call, counted by running its `forward` on tensors without data.

Nothing is computed and no memory is taken: a copy of the module's structure has its weights on `meta`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from jenga_compile.sampler.trunk import twin


def without_data(values: Any) -> Any:
    """The same nest with every tensor on `meta`."""
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), values)


@dataclasses.dataclass(frozen=True)
class Operations:
    """2 a multiply-add."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def operations(model: nn.Module, call: Mapping[str, Any]) -> Operations | None:
    """Operations of `model(**call)`; None where its `forward` needs data.

    Args:
        call: as `without_data` returns it.
    """
    try:
        hollow = _hollow(model, {})
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            hollow(**call)
    except Exception:  # of any class: a model that looks at its data, or takes no other device
        return None
    counts = {str(op): float(done) for op, done in counter.get_flop_counts()["Global"].items()}
    # Batched products are attention's alone, where no kernel of it is counted as a whole.
    attention = sum(done for op, done in counts.items() if "bmm" in op or "attention" in op)
    return Operations(sum(counts.values()) - attention, attention)


def _hollow(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """A copy of the structure, with nothing that is hung on its modules, and all tensors on `meta`."""
    if id(module) in done:
        return done[id(module)]
    other = done[id(module)] = twin(module)
    members = vars(other)
    for name, value in list(members.items()):
        if isinstance(value, Tensor):
            members[name] = value.to("meta")
    other._forward_hooks, other._forward_pre_hooks = type(module._forward_hooks)(), type(module._forward_pre_hooks)()
    other._parameters = {
        name: None if value is None else nn.Parameter(value.detach().to("meta"), requires_grad=False)
        for name, value in module._parameters.items()
    }
    other._buffers = {name: None if value is None else value.to("meta") for name, value in module._buffers.items()}
    other._modules = {name: None if child is None else _hollow(child, done) for name, child in module._modules.items()}
    return other
