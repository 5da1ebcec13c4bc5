"""What a toy is: a model, one call of it, and what the compiler must make of that call."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

How = Literal["backend", "compile", "blocks"]
DYNAMIC_SHAPES = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
"""Dynamo's switches for shapes that depend on data."""


@dataclasses.dataclass(frozen=True)
class Toy:
    """A model and one call of it."""

    model: nn.Module
    inputs: dict[str, Any]
    grid: tuple[int, int, int]
    text: int
    """Condition tokens on the video's axis."""
    carved: tuple[str, ...]
    """Module paths of the sites that must be carved; a path is there once for each of its calls."""
    left: dict[str, str | tuple[str, ...]]
    """Module path of every other site, and how its reason begins; for several calls in one module, each reason."""
    texts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Condition tokens of the carved sites, by path, that have another number of them than `text`."""
    side: Literal["before", "after"] = "after"
    """Where the condition tokens stand."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options that the user has to give, because no graph of the model shows them."""
    how: How = "backend"
    """Whether any `torch.compile` sees the model in one graph; or only one with `fullgraph=True`, which switches the
    `dynamo` settings on, or under them; or none does, and a block is a graph of its own, which serves all layers and
    does not see the patch embedding: the paths of its sites begin there."""
    dynamo: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    """Settings of `torch._dynamo.config` that the model needs to be seen."""
    inside: torch.dtype = torch.float32
    """A type narrower than its own that the model rounds to within, or float32: its float64 truth is no more exact."""
    stays: tuple[str, ...] = ()
    """Names of the modules that `to` leaves in float32, because the model casts their input to it."""

    @property
    def seen(self) -> int:
        """Number of attention sites."""
        return len(self.carved) + sum(1 if isinstance(reason, str) else len(reason) for reason in self.left.values())

    def video(self, path: str) -> tuple[int, int]:
        """Range of the video tokens on the axis of a carved site."""
        first = self.text_at(path) if self.side == "before" else 0
        return first, first + torch.Size(self.grid).numel()

    def text_at(self, path: str) -> int:
        """Condition tokens of a carved site."""
        return self.texts.get(path, self.text)

    def settings(self) -> AbstractContextManager[Any]:
        """The Dynamo settings that the model needs, while it is compiled or explained."""
        return torch._dynamo.config.patch(dict(self.dynamo)) if self.dynamo else contextlib.nullcontext()

    def run(self, model: Any = None) -> Tensor:
        with torch.no_grad():
            out = (self.model if model is None else model)(**self.inputs, return_dict=False)
        result: Tensor = out if isinstance(out, Tensor) else out[0]
        return result

    def cuda(self) -> Toy:
        return self._moved(lambda tensor: tensor.cuda(), copy.deepcopy(self.model).cuda())

    def to(self, dtype: torch.dtype) -> Toy:
        model = copy.deepcopy(self.model).to(dtype)
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in self.stays:
                module.float()
        return self._moved(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, model)

    def _moved(self, move: Callable[[Tensor], Tensor], model: nn.Module) -> Toy:
        return dataclasses.replace(self, model=model, inputs=tree_map_only(Tensor, move, self.inputs))


def randomise(model: nn.Module) -> torch.Generator:
    """Seeded weights without zeros, so that no branch of the network is silent; and the generator for the inputs.

    The scales of norms are near one, or attention would hardly tell its keys apart.
    """
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = torch.randn(parameter.shape, generator=random) * scale + is_norm
    model.eval()
    return random


def paths(pattern: str, layers: int) -> tuple[str, ...]:
    """`pattern` with its `*` replaced by the number of each layer."""
    return tuple(pattern.replace("*", str(layer)) for layer in range(layers))


def padded(batch: int, tokens: int) -> Tensor:
    """Boolean mask [batch, tokens]: the first sample's second half is padding."""
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[0, tokens // 2 :] = False
    return mask
