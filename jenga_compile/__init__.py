"""Training-free acceleration of video diffusion transformers: attention carving as a torch.compile backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jenga_compile.config import Carving
from jenga_compile.report import Report, Site

if TYPE_CHECKING:
    from jenga_compile.explanation import explain

    __version__: str

__all__ = ["Carving", "Report", "Site", "__version__", "explain"]


def __getattr__(name: str) -> object:
    """What takes seconds to import, or a look at the installation, waits until it is asked for."""
    if name == "explain":
        from jenga_compile.explanation import explain

        return explain
    if name == "__version__":
        from importlib.metadata import version

        return version("jenga-compile")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
