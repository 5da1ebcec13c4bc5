"""What is known of a model family and cannot be read off its graph: data, not code paths.

A model without a recipe is carved all the same; a recipe only states the authors' choices where they differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from jenga_compile.config import CurveKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One family of video transformers."""

    family: str

    modules: frozenset[str]
    """Class names of the modules that hold the family's large attention."""

    curve: CurveKind
    """Token order that the paper's authors use for the family."""


GENERIC = Recipe(family="generic", modules=frozenset(), curve="gilbert")

RECIPES = (
    Recipe(
        family="hunyuan-video",
        modules=frozenset({"HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"}),
        curve="gilbert",
    ),
    Recipe(family="wan", modules=frozenset({"WanTransformerBlock", "WanVACETransformerBlock"}), curve="sliced"),
)


def recipe_for(modules: Collection[str]) -> Recipe:
    """Recipe of the family that one of these module classes belongs to; `GENERIC` for a model never heard of."""
    return next((recipe for recipe in RECIPES if recipe.modules & set(modules)), GENERIC)
