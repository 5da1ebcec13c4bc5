"""What is known of a model family and cannot be read off its graph: data, not code paths.

A model without a recipe is carved all the same; a recipe only states the authors' choices where they differ.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch

from jenga_compile.grid import CurveKind, TextSide, TokenGrid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One family of video transformers."""

    family: str

    modules: frozenset[str]
    """Class names of the modules that hold the family's large attention."""

    curve: CurveKind
    """Token order that the paper's authors use for the family."""

    whole: str | None = None
    """Class name of the whole transformer, where its graph breaks between the patch embedding and the blocks, so that
    no graph shows the grid; it is then computed from the call: latents [B, C, T, H, W] in `hidden_states`, patches in
    the configuration's `patch_size_t` and `patch_size`."""

    text: TextSide | None = None
    """Side of the condition tokens there."""


GENERIC = Recipe(family="generic", modules=frozenset(), curve="gilbert")

RECIPES = (
    Recipe(
        family="hunyuan-video",
        modules=frozenset({"HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"}),
        curve="gilbert",
    ),
    Recipe(
        family="hunyuan-video-1.5",
        modules=frozenset({"HunyuanVideo15TransformerBlock"}),
        curve="gilbert",
        whole="HunyuanVideo15Transformer3DModel",
        text="after",
    ),
    Recipe(family="wan", modules=frozenset({"WanTransformerBlock", "WanVACETransformerBlock"}), curve="sliced"),
)


def recipe_for(modules: Collection[str]) -> Recipe:
    """Recipe of the family that one of these module classes belongs to; `GENERIC` for a model never heard of."""
    return next((recipe for recipe in RECIPES if recipe.modules & set(modules)), GENERIC)


def grid_of(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[TokenGrid, TextSide | None] | None:
    """Token grid of a call of `model`, and the side of its condition tokens, if a recipe knows how to compute them."""
    recipe = next((recipe for recipe in RECIPES if recipe.whole == type(model).__name__), None)
    if recipe is None:
        return None
    latents = inspect.signature(model.forward).bind(*args, **kwargs).arguments["hidden_states"]
    config: Any = model.config
    patch, patch_t = config.patch_size, config.patch_size_t
    frames, height, width = latents.shape[2:]
    return TokenGrid(frames // patch_t, height // patch, width // patch), recipe.text
