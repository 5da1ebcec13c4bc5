"""The clip generator: what a caption says is what the pixels show, at every size, from the generator's state alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from jenga_compile.zoo.sprites import Scene, Sprites, captions_of
from jenga_compile.zoo.vocabulary import (
    COLOURS,
    LABEL_NAMES,
    MOTIONS,
    PARTIAL_TEMPLATES,
    TEMPLATES,
    TEXTURES,
    caption,
    classes,
    vocabulary,
)


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return Sprites()


def scene_of(sprites: Sprites, batch: int, **fixed: int) -> Scene:
    scene = sprites.draw(batch, torch.Generator().manual_seed(5))
    labels = scene.labels | {name: torch.full((batch,), value) for name, value in fixed.items()}
    return dataclasses.replace(scene, labels=labels)


def centroids(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre x, y in [-1, 1] and covered share of the frame, [B, T] each."""
    axis = torch.linspace(-1, 1, alpha.shape[-1])
    mass = alpha[:, 0].sum((2, 3))
    x = (alpha[:, 0].sum(2) * axis).sum(-1) / mass
    y = (alpha[:, 0].sum(3) * axis).sum(-1) / mass
    return x, y, mass / alpha.shape[-1] ** 2


def test_vocabulary_is_curated() -> None:
    names = [sprite.name for sprite in vocabulary()]
    assert 128 <= len(names) <= 160
    assert len(set(names)) == len(names)
    assert all(len(name.split()) <= 2 for name in names)
    assert all(
        sprite.article == ("an" if sprite.name[0] in "aeio" else "a")
        for sprite in vocabulary()
        if sprite.article and sprite.name not in ("umbrella", "unicorn", "ufo")
    )


def test_same_state_same_clips(sprites: Sprites) -> None:
    first = sprites(3, 48, torch.Generator().manual_seed(11), partial=0.5)
    again = sprites(3, 48, torch.Generator().manual_seed(11), partial=0.5)
    other = sprites(3, 48, torch.Generator().manual_seed(12), partial=0.5)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("size", [48, 64, 80, 96])
def test_sizes(sprites: Sprites, size: int) -> None:
    clips, captions, labels = sprites(2, size, torch.Generator().manual_seed(0))
    assert clips.shape == (2, 3, 16, size, size)
    assert -1 <= clips.min() < clips.max() <= 1
    assert len(captions) == 2
    assert all(labels[name].dtype == torch.int64 and len(labels[name]) == 2 for name in LABEL_NAMES)


def test_sizes_show_the_same_scene(sprites: Sprites) -> None:
    scene = scene_of(sprites, 4, texture=0)
    small, large = sprites.render(scene, 48)[0], sprites.render(scene, 96)[0]
    shrunk = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (small - shrunk).abs().mean() < 0.05


def test_other_frame_counts_span_the_same_motion() -> None:
    short = Sprites(frames=4)
    _, alpha = short.render(scene_of(short, 8, motion=MOTIONS.index("moving left")), 48)
    x, _, _ = centroids(alpha)
    assert x.shape == (8, 4)
    assert bool((x[:, -1] - x[:, 0] < -0.5).all())


def test_captions_name_every_label(sprites: Sprites) -> None:
    scene = sprites.draw(300, torch.Generator().manual_seed(2))
    rows = zip(captions_of(scene), *(scene.labels[name].tolist() for name in LABEL_NAMES), strict=True)
    for text, thing, colour, motion, texture in rows:
        assert vocabulary()[thing].phrase in text
        assert f"{classes('colour')[colour]}{' ' + TEXTURES[texture] if texture else ''} background" in text
        assert MOTIONS[motion] in text


def test_articles() -> None:
    owl, orange = classes("object").index("owl"), classes("colour").index("orange")
    assert caption(owl, orange, 0, 0) == "an owl standing still on an orange background"
    assert caption(classes("object").index("popcorn"), 0, 5, 1) == "popcorn spinning on a red striped background"


def test_partial_captions_are_as_frequent_as_asked(sprites: Sprites) -> None:
    draws = torch.Generator().manual_seed(3)
    assert int(sprites.draw(500, draws).wording.max()) < len(TEMPLATES)
    wording = sprites.draw(2000, draws, partial=0.25).wording
    assert int(wording.max()) == len(TEMPLATES) + len(PARTIAL_TEMPLATES) - 1
    assert (wording >= len(TEMPLATES)).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_splits_are_disjoint(sprites: Sprites) -> None:
    def combinations(split: str) -> set[tuple[int, ...]]:
        labels = sprites.draw(3000, torch.Generator().manual_seed(4), split=split).labels  # type: ignore[arg-type]
        return set(zip(*(labels[name].tolist() for name in ("object", "motion", "colour")), strict=True))

    assert not combinations("seen") & combinations("unseen")
    assert combinations("any") & combinations("unseen")


@pytest.mark.parametrize(
    ("motion", "sign_x", "sign_y"),
    [("moving left", -1, 0), ("moving right", 1, 0), ("moving up", 0, -1), ("moving down", 0, 1)],
)
def test_translations_go_where_they_say(sprites: Sprites, motion: str, sign_x: int, sign_y: int) -> None:
    _, alpha = sprites.render(scene_of(sprites, 24, motion=MOTIONS.index(motion)), 48)
    x, y, _ = centroids(alpha)
    for track, sign in ((x, sign_x), (y, sign_y)):
        travel = track[:, -1] - track[:, 0]
        if sign:
            assert bool((sign * travel > 0.4).all())
        else:
            assert travel.abs().median() < 0.15


def test_standing_still_stays(sprites: Sprites) -> None:
    _, alpha = sprites.render(scene_of(sprites, 24, motion=0), 48)
    x, y, _ = centroids(alpha)
    assert (x.amax(1) - x.amin(1)).median() < 0.15
    assert (y.amax(1) - y.amin(1)).median() < 0.15


@pytest.mark.parametrize(("motion", "sign"), [("growing", 1), ("shrinking", -1)])
def test_scaling_scales(sprites: Sprites, motion: str, sign: int) -> None:
    _, alpha = sprites.render(scene_of(sprites, 24, motion=MOTIONS.index(motion)), 48)
    _, _, share = centroids(alpha)
    assert bool((sign * (share[:, -1] / share[:, 0]).log() > 0.9).all())


def test_bouncing_leaves_the_floor_twice(sprites: Sprites) -> None:
    _, alpha = sprites.render(scene_of(sprites, 24, motion=MOTIONS.index("bouncing")), 48)
    _, y, _ = centroids(alpha)
    assert bool((y[:, 4] < y[:, 0] - 0.3).all())
    assert bool((y[:, 12] < y[:, 8] - 0.3).all())


def test_spinning_turns_upside_down(sprites: Sprites) -> None:
    scene = scene_of(sprites, 8, motion=MOTIONS.index("spinning"), object=classes("object").index("rose"))
    still = dataclasses.replace(scene, labels=scene.labels | {"motion": torch.zeros(8, dtype=torch.int64)})
    placement = scene.placement.clone()
    placement[:, :2] = 0
    turned, upright = (
        sprites.render(dataclasses.replace(s, placement=placement), 48)[1][:, 0, 8] for s in (scene, still)
    )
    assert (turned - upright.flip(1, 2)).abs().mean() < 0.01


def test_swinging_goes_both_ways(sprites: Sprites) -> None:
    _, alpha = sprites.render(scene_of(sprites, 24, motion=MOTIONS.index("swinging")), 48)
    x, _, _ = centroids(alpha)
    assert bool((x[:, 4] < x[:, 0] - 0.15).all())
    assert bool((x[:, 12] > x[:, 0] + 0.15).all())


@pytest.mark.parametrize("texture", range(len(TEXTURES)))
@pytest.mark.parametrize("colour", range(len(COLOURS)))
def test_corners_show_the_named_colour(sprites: Sprites, colour: int, texture: int) -> None:
    """The frame's uncovered pixels are, on average, nearest to the two tones of the named colour."""
    clips, alpha = sprites.render(scene_of(sprites, 2, colour=colour, texture=texture, motion=0), 48)
    bare = (alpha[:, 0].amax(1) < 1e-3).flatten()  # [B*H*W]
    pixels = (clips[:, :, 0].permute(0, 2, 3, 1).reshape(-1, 3)[bare] + 1) / 2
    tones = torch.tensor(list(COLOURS.values())).float().div(255)
    distance = (pixels.mean(0) - tones[:, : 2 if texture else 1].mean(1)).norm(dim=1)
    assert int(distance.argmin()) == colour
