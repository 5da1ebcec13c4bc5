"""The values that change between steps without recompiling: a tensor the kernels read, and who owns it.

The tensor is float32 [3], indexed by `KEEP`, `CUTOFF` and `TEXT_BIAS`. A graph cannot hold it, so `carved_attention`
gets an integer handle instead and looks the tensor up when it runs; setting an attribute of the `Knobs` behind the
handle writes the tensors in place, which a captured CUDA graph sees as well.
"""

from __future__ import annotations

import itertools
import math

import torch

from jenga_compile.errors import OptionOfWrongType, OptionOutOfRange, UnknownKnob, UnknownKnobs, hint
from jenga_compile.scalars import plain_float

KEEP = 0
"""Index of the fraction of video blocks that every query block keeps at least."""

CUTOFF = 1
"""Index of the softmax mass that the kept video blocks must exceed."""

TEXT_BIAS = 2
"""Index of the bias on logits of text keys for video queries, natural-log units, after scaling."""


def make_knobs(
    keep: float, cutoff: float, text_bias: float = 0.0, device: torch.device | str | None = None
) -> torch.Tensor:
    """The knobs as a tensor.

    Args:
        keep: in (0, 1].
        cutoff: in [0, 1); 0.0 switches the rule off.
        text_bias: finite.
        device: where the tensor lives; the kernels want it beside q.

    Returns:
        float32, shape [3].

    Raises:
        OptionOutOfRange, OptionOfWrongType: a value is outside its range, or no number.
    """
    return torch.tensor(_checked(keep, cutoff, text_bias), dtype=torch.float32, device=device)


class Knobs:
    """Settable `keep`, `cutoff` and `text_bias` with a tensor on every device that asked for one.

    Args:
        metered: whether carved attention under these knobs counts the blocks that it sees (`read_meter`).

    Raises:
        OptionOutOfRange, OptionOfWrongType: a value, at birth or when set, is outside the range `make_knobs` gives, or
            no number.
        UnknownKnob: another attribute is set.
    """

    __slots__ = ("_meters", "_tensors", "_values")

    def __init__(
        self, keep: float = 0.3, cutoff: float = 0.3, text_bias: float = 0.0, *, metered: bool = False
    ) -> None:
        self._values = _checked(keep, cutoff, text_bias)
        self._tensors: dict[torch.device, torch.Tensor] = {}
        self._meters: dict[torch.device, torch.Tensor] | None = {} if metered else None

    def __setattr__(self, name: str, value: object) -> None:
        if not hasattr(type(self), name):
            raise UnknownKnob(name=name, hint=hint(name, _NAMES), valid=", ".join(_NAMES))
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Knobs(keep={self.keep}, cutoff={self.cutoff}, text_bias={self.text_bias})"

    @property
    def keep(self) -> float:
        """Fraction of the video blocks that every query block attends to at least."""
        return self._values[KEEP]

    @keep.setter
    def keep(self, value: float) -> None:
        self._set(value, self.cutoff, self.text_bias)

    @property
    def cutoff(self) -> float:
        """Softmax mass that the kept video blocks must exceed."""
        return self._values[CUTOFF]

    @cutoff.setter
    def cutoff(self, value: float) -> None:
        self._set(self.keep, value, self.text_bias)

    @property
    def text_bias(self) -> float:
        """Added to the logits of text keys for video queries, natural-log units."""
        return self._values[TEXT_BIAS]

    @text_bias.setter
    def text_bias(self, value: float) -> None:
        self._set(self.keep, self.cutoff, value)

    def tensor(self, device: torch.device) -> torch.Tensor:
        """The values on `device`, float32 [3]: always the same tensor, so never write to it.

        Ask once before a CUDA graph is captured: a tensor made inside would live in the graph's memory.
        """
        if device not in self._tensors:
            # An inference tensor could not be written to by a caller outside inference mode.
            with torch.inference_mode(False):
                self._tensors[device] = make_knobs(*self._values, device=device)
        return self._tensors[device]

    def meter(self, device: torch.device) -> torch.Tensor | None:
        """Where carved attention on `device` adds what it counts, int64 [2]; None if nothing is counted.

        Key blocks that video query blocks saw, text included, and how many they would have seen were it dense.
        """
        if self._meters is None:
            return None
        if device not in self._meters:
            with torch.inference_mode(False):
                self._meters[device] = torch.zeros(2, dtype=torch.int64, device=device)
        return self._meters[device]

    def read_meter(self) -> list[torch.Tensor]:
        """What was counted since it was last read, int64 [2] for each device; does not wait for a GPU."""
        with torch.inference_mode(False):
            read = [meter.clone() for meter in (self._meters or {}).values()]
            for meter in (self._meters or {}).values():
                meter.zero_()
        return read

    def _set(self, keep: float, cutoff: float, text_bias: float) -> None:
        self._values = _checked(keep, cutoff, text_bias)
        for device, tensor in self._tensors.items():
            with torch.inference_mode(False):
                tensor.copy_(make_knobs(*self._values, device=device))


def register(knobs: Knobs) -> int:
    """The handle under which `carved_attention` finds these knobs; the same object gets the same handle.

    Handles live as long as the process, since a compiled graph may outlive everything else that knows its knobs.
    """
    for handle, known in _registry.items():
        if known is knobs:
            return handle
    handle = next(_handles)
    _registry[handle] = knobs
    return handle


def lookup(handle: int, device: torch.device) -> torch.Tensor:
    """The registered knobs as a tensor on `device`, float32 [3].

    Raises:
        UnknownKnobs: no knobs were registered under this handle in this process.
    """
    return _known(handle).tensor(device)


def meter_of(handle: int, device: torch.device) -> torch.Tensor | None:
    """The meter of the registered knobs, if they are metered; raises as `lookup`."""
    return _known(handle).meter(device)


def _known(handle: int) -> Knobs:
    if handle not in _registry:
        raise UnknownKnobs(handle=handle, known=sorted(_registry))
    return _registry[handle]


_NAMES = ("keep", "cutoff", "text_bias")
_registry: dict[int, Knobs] = {}
_handles = itertools.count()


def _checked(keep: float, cutoff: float, text_bias: float) -> tuple[float, float, float]:
    keep, cutoff, text_bias = map(_number, _NAMES, (keep, cutoff, text_bias))
    if not 0.0 < keep <= 1.0:
        raise OptionOutOfRange(name="keep", value=keep, expected="(0, 1]", way_out="Use 1.0 to keep every block.")
    if not 0.0 <= cutoff < 1.0:
        raise OptionOutOfRange(
            name="cutoff", value=cutoff, expected="[0, 1)", way_out="Use 0.0 to switch the rule off."
        )
    if not math.isfinite(text_bias):
        raise OptionOutOfRange(
            name="text_bias", value=text_bias, expected="the finite numbers", way_out="Use 0.0 for no amplifier."
        )
    return keep, cutoff, text_bias


def _number(name: str, value: object) -> float:
    number = plain_float(value)
    if number is None:
        raise OptionOfWrongType(
            name=name, value=value, found=type(value).__name__, expected="a number", way_out="Pass e.g. 0.3."
        )
    return number
