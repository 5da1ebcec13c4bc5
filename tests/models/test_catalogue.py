"""The catalogue: sizes as documented, models as large as released, and calls that their transformers take."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch

from jenga_compile.errors import ExtraMissing, FramesDoNotFit, OutOfRange, SizeNotDivisible, UnknownModel
from jenga_compile.models.catalogue import CATALOGUE, find_model
from jenga_compile.models.entry import Entry, hollow
from jenga_compile.zoo.model import SPRITE_DIT, TEXT_TOKENS

ENTRIES = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)

BEYOND_META = {"hunyuan-video-1.5", "helios", "mochi"}
"""They ask for values, or for autocast of a kind of device, which meta cannot answer; hollow weights can."""

DOCUMENTED = [
    ("hunyuan-video", (720, 1280, 125), (32, 45, 80)),
    ("hunyuan-video", (528, 960, 125), (32, 33, 60)),
    ("hunyuan-video", (352, 640, 125), (32, 22, 40)),
    ("hunyuan-video-i2v-replace", (1088, 832, 125), (32, 68, 52)),
    ("wan2.1-t2v-1.3b", (480, 832, 81), (21, 30, 52)),
    ("wan2.1-t2v-14b", (720, 1280, 81), (21, 45, 80)),
    ("wan2.2-ti2v-5b", (704, 1280, 121), (31, 22, 40)),
    ("cogvideox-5b", (480, 720, 49), (13, 30, 45)),
    ("cogvideox1.5-5b", (768, 1360, 81), (11, 48, 85)),
    ("ltx-video", (512, 704, 161), (21, 16, 22)),
    ("kandinsky-5-lite", (512, 768, 121), (31, 32, 48)),
    ("mochi", (480, 848, 163), (28, 30, 53)),
    ("hunyuan-video-1.5", (720, 1280, 121), (31, 45, 80)),
    ("qwen-image", (1328, 1328, 1), (1, 83, 83)),
    ("toy", (64, 64, 16), (8, 16, 16)),
]

BILLIONS = {
    "hunyuan-video": 12.82,
    "hunyuan-video-i2v-concat": 12.81,
    "hunyuan-video-i2v-replace": 12.82,
    "hunyuan-video-1.5": 8.33,
    "toy": 0.020,
    "wan2.1-t2v-1.3b": 1.42,
    "wan2.1-t2v-14b": 14.29,
    "wan2.2-t2v-a14b": 14.29,
    "wan2.1-i2v-14b": 16.40,
    "wan2.2-i2v-a14b": 14.29,
    "wan2.2-ti2v-5b": 5.00,
    "wan2.1-vace-1.3b": 2.15,
    "wan2.1-vace-14b": 17.34,
    "helios": 14.31,
    "cogvideox-2b": 1.69,
    "cogvideox-5b": 5.57,
    "cogvideox1.5-5b": 5.57,
    "ltx-video": 1.92,
    "ltx-video-13b": 13.04,
    "kandinsky-5-lite": 2.01,
    "mochi": 10.03,
    "sd3-medium": 2.03,
    "sd3.5-medium": 2.24,
    "sd3.5-large": 8.06,
    "qwen-image": 20.43,
    "flux-dev": 11.90,
}
"""Parameters of the released transformers."""


@pytest.mark.parametrize(("name", "asked", "grid"), DOCUMENTED)
def test_the_grid_is_the_documented_one(name: str, asked: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    assert find_model(name).sizes(*asked).grid.shape == grid


@ENTRIES
def test_at_full_depth_a_model_is_as_large_as_released(entry: Entry) -> None:
    count = sum(weight.numel() for weight in entry.build().parameters())
    assert count / 1e9 == pytest.approx(BILLIONS[entry.name], rel=0.005)


@ENTRIES
def test_the_configuration_names_arguments_of_the_class(entry: Entry) -> None:
    arguments = inspect.signature(getattr(diffusers, entry.transformer).__init__).parameters
    assert {*entry.config, *entry.depth} <= set(arguments)
    assert not set(entry.config) & set(entry.depth)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@ENTRIES
def test_cut_to_one_block_the_transformer_takes_the_call(entry: Entry) -> None:
    model, inputs = entry.build(1), entry.inputs(*entry.size, entry.frames, batch=2)
    assert all(value.is_meta for value in [*model.parameters(), *model.buffers(), *tensors(inputs)])
    inspect.signature(model.forward).bind(**inputs)
    if entry.name not in BEYOND_META:
        with torch.no_grad():
            out = model(**inputs)
        out = out[0] if isinstance(out, tuple) else out
        assert out.shape[0] == 2
        assert out.numel() >= 2 * entry.sizes(*entry.size, entry.frames).grid.tokens


@ENTRIES
def test_hollow_is_the_same_without_memory(entry: Entry) -> None:
    plain, model = entry.build(1), entry.build_hollow(1)
    assert {name: weight.shape for name, weight in plain.state_dict().items()} == {
        name: weight.shape for name, weight in model.state_dict().items()
    }
    assert all(value.device.type == "cpu" for value in [*model.parameters(), *model.buffers()])
    assert all(value.untyped_storage().nbytes() <= 8 for value in [*model.parameters(), *model.buffers()])
    inputs = entry.hollow_inputs(*entry.size, entry.frames)
    assert set(inputs) == set(entry.inputs(*entry.size, entry.frames))
    noise = [value for value in tensors(inputs) if value.untyped_storage().nbytes() > 2**22]
    assert all(value.dtype != torch.bfloat16 for value in noise)


@ENTRIES
def test_sizes_are_whole_tokens_and_what_does_not_fit_names_what_does(entry: Entry) -> None:
    for frames in range(1, entry.frames + 20):
        try:
            sizes = entry.sizes(*entry.size, frames)
        except FramesDoNotFit as error:
            for near in str(error.facts["near"]).split(" or "):
                entry.sizes(*entry.size, int(near))
        else:
            assert sizes.frames == sizes.grid.t * entry.patch[0]
            assert math.prod(sizes.grid.shape) == sizes.grid.tokens
    height, width = entry.size
    for wrong in ((height + 1, width), (height, width - 1), (0, width), (height, -16)):
        with pytest.raises(SizeNotDivisible) as caught:
            entry.sizes(*wrong, entry.frames)
        for near in str(caught.value.facts["near"]).split(" or "):
            entry.sizes(int(near), int(near), entry.frames)


def test_what_a_seed_gives_is_always_the_same() -> None:
    entry = find_model("toy")
    first, second = (entry.inputs(64, 64, 16, "cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert first["hidden_states"].float().std() == pytest.approx(1.0, abs=0.02)


def test_depth_is_cut_evenly_and_within_the_model() -> None:
    entry = find_model("wan2.1-vace-14b")
    assert len(entry.build(6).vace_blocks) == 2  # type: ignore[arg-type]
    for layers in (0, 41):
        with pytest.raises(OutOfRange, match=r"\[1, 40\]"):
            entry.build(layers)


def test_a_stage_is_the_largest_that_fits() -> None:
    entry = find_model("hunyuan-video")
    assert [entry.scaled(720, 1280, scale) for scale in (0.5, 0.75, 1.0)] == [(352, 640), (528, 960), (720, 1280)]


def test_a_name_is_found_in_any_case_and_a_wrong_one_names_the_nearest() -> None:
    assert find_model("Wan2.1-T2V-14B").name == "wan2.1-t2v-14b"
    with pytest.raises(UnknownModel, match="'hunyuan-video'"):
        find_model("hunyuan-vido")
    with pytest.raises(UnknownModel, match="nearest"):
        find_model("")


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ExtraMissing, match=r"jenga-compile\[diffusers\]"):
        find_model("toy").build()


def test_the_packaged_model_is_the_one_in_the_zoo() -> None:
    entry = find_model("toy")
    assert entry.text == TEXT_TOKENS
    assert {name: getattr(SPRITE_DIT, name) for name in entry.depth} == entry.depth
    sizes = entry.sizes(64, 64, 16)
    assert sizes.grid.tokens == SPRITE_DIT.video_tokens(16, 64)


def test_hollow_keeps_shape_and_dtype() -> None:
    made = hollow(torch.ones(3, 4, dtype=torch.int32))
    assert (made.shape, made.dtype, made.untyped_storage().nbytes()) == ((3, 4), torch.int32, 4)


def tensors(inputs: dict[str, Any]) -> list[torch.Tensor]:
    flat = [item for value in inputs.values() for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [item for item in flat if isinstance(item, torch.Tensor)]
