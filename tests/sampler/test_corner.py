"""Small latents in a corner: cropping undoes padding, whatever the layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from jenga_compile.sampler.corner import Corner, noise_like, resize


@st.composite
def corners(draw: st.DrawFn) -> Corner:
    layout: Any = draw(st.sampled_from(("channels_first", "frames_first", "tokens")))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    part = draw(st.integers(1, height)), draw(st.integers(1, width))
    return Corner(layout, draw(st.integers(1, 3)), (height, width), part)


def latents(corner: Corner, size: tuple[int, int], batch: int = 2, channels: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    shape = {
        "channels_first": (batch, channels, corner.frames, *size),
        "frames_first": (batch, corner.frames, channels, *size),
        "tokens": (batch, corner.frames * size[0] * size[1], channels),
    }[corner.layout]
    return torch.randn(shape, generator=random)


@given(corners())
def test_cropping_undoes_padding(corner: Corner) -> None:
    small = latents(corner, corner.part)
    padded = corner.pad(small)
    assert padded.shape == latents(corner, corner.full).shape
    assert torch.equal(corner.crop(padded), small)
    assert padded.count_nonzero() == small.count_nonzero()
    assert corner.is_small(small)
    assert corner.is_small(padded) == corner.whole


@given(corners())
def test_a_whole_frame_is_left_as_it_is(corner: Corner) -> None:
    whole = Corner(corner.layout, corner.frames, corner.full, corner.full)
    x = latents(whole, whole.full)
    assert whole.crop(x) is x
    assert whole.pad(x) is x


@given(corners())
def test_layouts_show_the_same_corner(corner: Corner) -> None:
    """Cropping in one layout is cropping in the others."""
    first = Corner("channels_first", corner.frames, corner.full, corner.part)
    x = latents(first, first.full)
    frames, tokens = (dataclasses.replace(first, layout=layout) for layout in ("frames_first", "tokens"))
    cropped = first.crop(x)
    assert torch.equal(frames.crop(x.transpose(1, 2)).transpose(1, 2), cropped)
    assert torch.equal(tokens.crop(x.flatten(2).mT), cropped.flatten(2).mT)


@given(corners(), st.sampled_from(("trilinear", "area")))
def test_every_frame_is_resized_alone(corner: Corner, mode: Any) -> None:
    target = Corner(corner.layout, corner.frames, corner.full, corner.full)
    x = latents(corner, corner.part)
    made = resize(x, corner, target, mode)
    assert made.shape == latents(corner, corner.full).shape
    plain = dataclasses.replace(corner, layout="channels_first")
    whole = dataclasses.replace(plain, part=corner.full)
    video = {
        "channels_first": lambda x: x,
        "frames_first": lambda x: x.transpose(1, 2),
        "tokens": lambda x: x.mT.unflatten(2, (corner.frames, *corner.part)),
    }[corner.layout](x)
    frame = {"trilinear": "bilinear", "area": "area"}[mode]
    for index in range(corner.frames):
        expected = F.interpolate(video[:, :, index], size=corner.full, mode=frame)
        large = resize(video.contiguous(), plain, whole, mode)
        torch.testing.assert_close(large[:, :, index], expected)


def test_known_values() -> None:
    """Six values enlarged to eight, as the authors' code does."""
    source, target = Corner("channels_first", 1, (1, 8), (1, 6)), Corner("channels_first", 1, (1, 8), (1, 8))
    x = torch.arange(6.0).reshape(1, 1, 1, 1, 6)
    trilinear, area = (resize(x, source, target, mode).flatten().tolist() for mode in ("trilinear", "area"))
    assert trilinear == pytest.approx([0, 0.625, 1.375, 2.125, 2.875, 3.625, 4.375, 5])
    assert area == pytest.approx([0, 0.5, 1.5, 2, 3, 3.5, 4.5, 5])


def test_a_value_a_token_is_cropped_as_the_latents_are() -> None:
    corner = Corner("channels_first", 2, (8, 12), (6, 8))
    rows = torch.arange(2 * 4 * 6.0).reshape(1, -1, 1)
    assert torch.equal(corner.in_tokens((2, 2)).crop(rows), rows.reshape(1, 2, 4, 6, 1)[:, :, :3, :4].reshape(1, -1, 1))


def test_noise_comes_from_the_generator() -> None:
    x = torch.zeros(2, 3, 1, 4, 5)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, two = (noise_like(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before)
    each = noise_like(x, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    assert not torch.equal(each[0], each[1])
