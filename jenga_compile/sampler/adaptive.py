"""Whether a step can be skipped, from how the model's input has changed since it was last computed.

    k = |v_t - v_s| / |x_t - x_s|        how much the output changes with the input, from the last two computed steps
    e = sum of k |x_i - x_{i-1}| / |v_t| over the steps since t, the change that skipping would miss
    skipped while e < threshold

EasyCache (arXiv:2507.02860). Norms are over all of the tensor; a step costs one of them, and waits for the device once.
"""

from __future__ import annotations

from torch import Tensor


class Change:
    """What is known of a stage's steps so far."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._input: Tensor | None = None
        self._computed: tuple[Tensor, Tensor] | None = None
        self._rate: float | None = None
        self._missed = 0.0

    def is_small(self, x: Tensor) -> bool:
        """Whether the step with the input `x` can be skipped; asked once a step.

        Never before two steps of the stage were computed, which the rate needs.
        """
        # A copy: some pipelines write the next latents into the same tensor.
        before, self._input = self._input, x.clone()
        if before is None or self._computed is None or self._rate is None:
            return False
        self._missed += self._rate * _norm(x - before) / max(_norm(self._computed[1]), _TINY)
        return self._missed < self.threshold

    def computed(self, x: Tensor, v: Tensor) -> None:
        """The model was run: from `x` it made `v`."""
        if self._computed is not None:
            moved = _norm(x - self._computed[0])
            self._rate = _norm(v - self._computed[1]) / max(moved, _TINY)
        self._computed = (x.clone(), v.clone())
        self._missed = 0.0


_TINY = 1e-12


def _norm(x: Tensor) -> float:
    return float(x.float().norm())
