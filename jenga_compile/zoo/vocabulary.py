"""What clips can show and how captions say it: objects, motions, colours, textures, and the shipped sprite pack.

In captions a colour always belongs to the background: "a fox moving left on a sky blue striped background".
Source of the artwork: Microsoft Fluent animated emoji (MIT), see data/LICENSE.sprites.txt; the pack is made by
benchmarks/make_sprite_pack.py.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
from collections.abc import Mapping
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MOTIONS = (
    "standing still",
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "spinning",
    "bouncing",
    "growing",
    "shrinking",
    "swinging",
)

COLOURS: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((220, 45, 45), (165, 25, 30)),
    "orange": ((245, 140, 30), (200, 100, 10)),
    "yellow": ((250, 220, 60), (215, 175, 25)),
    "green": ((60, 170, 80), (35, 120, 55)),
    "sky blue": ((135, 206, 250), (90, 165, 225)),
    "blue": ((45, 85, 215), (25, 50, 150)),
    "purple": ((130, 65, 190), (90, 40, 140)),
    "pink": ((255, 165, 205), (235, 120, 170)),
    "white": ((250, 250, 250), (214, 214, 218)),
    "gray": ((135, 140, 145), (100, 105, 110)),
    "black": ((18, 18, 22), (58, 58, 64)),
}
"""Name -> (main tone, second tone) in 8-bit sRGB. Textures mix the two; plain backgrounds are the main tone."""

TEXTURES = ("plain", "striped", "gradient", "checkered")

TEMPLATES = (
    "{thing} {motion} on {colour}{texture} background",
    "{thing} {motion} in front of {colour}{texture} background",
    "{thing} is {motion}, {colour}{texture} background",
    "on {colour}{texture} background, {thing} {motion}",
)
"""Wordings that name every label; the first is the canonical one. `{texture}` is empty for plain backgrounds."""

PARTIAL_TEMPLATES = ("{thing} {motion}", "{thing} on {colour}{texture} background", "{thing}")
"""Wordings that leave labels unsaid, so that a short prompt is in the training distribution too."""

LABEL_NAMES = ("object", "colour", "motion", "texture")
STRIP_FRAMES = 16
STRIP_PIXELS = 64


@dataclasses.dataclass(frozen=True)
class Sprite:
    """One entry of the pack's meta.json."""

    file: str
    name: str
    article: str
    hexcode: str
    group: str
    frames: int

    @property
    def phrase(self) -> str:
        return f"{self.article} {self.name}".strip()


@functools.cache
def vocabulary() -> tuple[Sprite, ...]:
    """The sprites of the shipped pack, in label order."""
    with zipfile.ZipFile(_pack()) as pack:
        return tuple(Sprite(**entry) for entry in json.loads(pack.read("meta.json")))


def classes(label: str) -> tuple[str, ...]:
    """Names of a label's classes, in the order of its indices."""
    known = {"colour": tuple(COLOURS), "motion": MOTIONS, "texture": TEXTURES}
    return known[label] if label in known else tuple(sprite.name for sprite in vocabulary())


def caption(thing: int, colour: int, motion: int, texture: int, wording: int = 0) -> str:
    """The sentence for one clip's labels; `wording` as in `Scene`."""
    shade = classes("colour")[colour]
    words = {
        "thing": vocabulary()[thing].phrase,
        "colour": f"an {shade}" if shade[0] in "aeiou" else f"a {shade}",
        "motion": MOTIONS[motion],
        "texture": f" {TEXTURES[texture]}" if texture else "",
    }
    return (TEMPLATES + PARTIAL_TEMPLATES)[wording].format(**words)


def _pack() -> io.BytesIO:
    return io.BytesIO((resources.files("jenga_compile.zoo") / "data" / "sprites.zip").read_bytes())


@functools.cache
def load_strips() -> tuple[Tensor, ...]:
    """RGBA frames of every sprite, uint8 [16 or 1, 4, 64, 64], alpha not premultiplied."""
    strips = []
    with zipfile.ZipFile(_pack()) as pack:
        for sprite in vocabulary():
            image = np.array(Image.open(io.BytesIO(pack.read(sprite.file))).convert("RGBA"))  # [64, frames*64, 4]
            strip = torch.from_numpy(image).view(STRIP_PIXELS, sprite.frames, STRIP_PIXELS, 4)
            strips.append(strip.permute(1, 3, 0, 2).contiguous())
    return tuple(strips)
