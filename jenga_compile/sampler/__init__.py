"""The sampler transform: progressive resolution, skipped steps and the text amplifier around an unmodified pipeline."""

from __future__ import annotations

from jenga_compile.sampler.acceleration import Accelerated, accelerate, report
from jenga_compile.sampler.planning import plan

__all__ = ["Accelerated", "accelerate", "plan", "report"]
