"""Training-free acceleration of video diffusion transformers: attention carving as a torch.compile backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jenga_compile.config import Carving
from jenga_compile.sites import Report, Site

if TYPE_CHECKING:
    from jenga_compile.compilation import compile
    from jenga_compile.explanation import explain
    from jenga_compile.kernels.knobs import Knobs
    from jenga_compile.presets import Adaptive, Listed, Preset, Stage
    from jenga_compile.sampler import accelerate, plan, report
    from jenga_compile.token_context import token_grid

    __version__: str

__all__ = [
    "Adaptive",
    "Carving",
    "Knobs",
    "Listed",
    "Preset",
    "Report",
    "Site",
    "Stage",
    "__version__",
    "accelerate",
    "compile",
    "explain",
    "plan",
    "report",
    "token_grid",
]

_LATER = {
    "Adaptive": "jenga_compile.presets",
    "Knobs": "jenga_compile.kernels.knobs",
    "Listed": "jenga_compile.presets",
    "Preset": "jenga_compile.presets",
    "Stage": "jenga_compile.presets",
    "accelerate": "jenga_compile.sampler",
    "compile": "jenga_compile.compilation",
    "explain": "jenga_compile.explanation",
    "plan": "jenga_compile.sampler",
    "report": "jenga_compile.sampler",
    "token_grid": "jenga_compile.token_context",
}
"""Names that take seconds to import, and where they are."""


def __getattr__(name: str) -> object:
    """What takes seconds to import, or a look at the installation, waits until it is asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("jenga-compile")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
