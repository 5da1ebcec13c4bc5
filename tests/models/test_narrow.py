"""Narrow models: the released one in everything but its widths."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from jenga_compile.errors import NoNarrowModel
from jenga_compile.models.catalogue import CATALOGUE, find_model
from jenga_compile.models.entry import Entry
from jenga_compile.models.narrow import narrow

CLASSES = {entry.transformer: entry for entry in CATALOGUE.values()}
ENTRIES = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)

RUNS = ("hunyuan-video", "wan2.1-i2v-14b", "cogvideox-5b", "ltx-video")


def names(model: nn.Module) -> tuple[list[str], list[str]]:
    modules = [f"{name} {type(module).__name__}" for name, module in model.named_modules()]
    return modules, [name for name, _ in model.named_parameters()]


@ENTRIES
def test_a_narrow_model_has_every_module_and_weight_of_the_released_one(entry: Entry) -> None:
    assert names(narrow(entry).build(1)) == names(entry.build(1))


@ENTRIES
def test_only_the_widths_differ(entry: Entry) -> None:
    made = narrow(entry)
    assert dataclasses.replace(made, config=entry.config) == entry
    assert entry.config.keys() <= made.config.keys()
    assert made.sizes(*entry.size, entry.frames) == entry.sizes(*entry.size, entry.frames)


@pytest.mark.parametrize("entry", CLASSES.values(), ids=lambda entry: entry.name)
def test_a_narrow_model_is_as_deep_and_far_smaller(entry: Entry) -> None:
    wide, slim = (sum(weight.numel() for weight in made.build().parameters()) for made in (entry, narrow(entry)))
    assert slim < 0.02 * wide
    assert narrow(entry).depth == entry.depth


@pytest.mark.parametrize("name", RUNS)
def test_a_narrow_model_runs(name: str) -> None:
    made = narrow(find_model(name))
    frames = made.compression[0] * (made.patch[0] - 1) + 1
    inputs = made.inputs(4 * made.unit, 6 * made.unit, frames, "cpu", dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        (output,) = made.build(1, "cpu", dtype=torch.float32)(**inputs)
    assert output.isfinite().all()
    assert output.std() > 0


def test_a_class_of_unknown_widths_is_refused() -> None:
    strange = dataclasses.replace(find_model("toy"), transformer="SanaTransformer2DModel")
    with pytest.raises(NoNarrowModel, match=r"toy cannot be made narrow: .* SanaTransformer2DModel"):
        narrow(strange)
