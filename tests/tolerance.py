"""Error budgets derived from float64, the same on every machine.

Two correct ways to compute attention in one dtype differ in the order of their sums, so their errors against the
float64 truth are of one size but not equal. The plain eager computation, which rounds the logits and the weights to
the dtype, shows that size on the very inputs of the test; the code under test may err by at most `FACTOR` times its
largest error. Two, because both errors are maxima over many elements of the same distribution: they vary by some ten
percent from input to input, not by multiples. Where the plain computation happens to be exact (one key, equal keys), a
few units in the last place remain: the output is a weighted mean of values, so one unit is eps times the largest value.
"""

from __future__ import annotations

import torch

FACTOR = 2.0
"""Largest error allowed, in largest errors of the plain computation."""

UNITS = 4
"""Units in the last place allowed on top: one each for logit, weight, sum and store."""


def eager_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """softmax(q k^T * scale + bias) v, every step in the dtype of q; bias broadcasts to [B, H, L, L]."""
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias.to(q.dtype)
    return logits.softmax(-1) @ v


def assert_rounding(actual: torch.Tensor, truth: torch.Tensor, baseline: torch.Tensor, values: torch.Tensor) -> None:
    """`actual` is as close to the truth as its dtype allows.

    Args:
        actual: what the code under test gave.
        truth: the same in float64.
        baseline: what `eager_attention` gives in the dtype of `actual`.
        values: v, or the whole output of a model: it sets the size of one unit in the last place.
    """
    assert actual.dtype == baseline.dtype == values.dtype
    assert truth.dtype == torch.float64
    assert actual.isfinite().all()
    unit = torch.finfo(actual.dtype).eps * float(values.abs().max())
    allowed = FACTOR * _error(baseline, truth) + UNITS * unit
    found = _error(actual, truth)
    assert found <= allowed, f"error {found:.3g} exceeds the budget {allowed:.3g} for {actual.dtype}"


def _error(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x.double() - truth).abs().max())
