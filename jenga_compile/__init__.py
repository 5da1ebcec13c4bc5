"""Training-free acceleration of video diffusion transformers: attention carving as a torch.compile backend."""

from jenga_compile.config import Carving
from jenga_compile.explain import explain
from jenga_compile.report import Report, Site

__all__ = ["Carving", "Report", "Site", "explain"]
