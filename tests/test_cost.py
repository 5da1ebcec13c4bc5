"""Counted cost: the documented densities, and the formula at its ends."""

from __future__ import annotations

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from jenga_compile.config import Carving
from jenga_compile.cost import expected_keep
from jenga_compile.grid import TokenGrid
from jenga_compile.sites import Site

TEXT_BLOCKS = 2


@pytest.mark.parametrize(
    ("grid", "keep", "density"),
    [
        ((32, 45, 80), 270 / 900, 0.3161),
        ((32, 45, 80), 225 / 900, 0.2672),
        ((32, 45, 80), 135 / 900, 0.1695),
        ((32, 33, 60), 148 / 495, 0.3261),
        ((32, 22, 40), 55 / 220, 0.3136),
    ],
)
def test_the_expected_density_is_the_documented_one(grid: tuple[int, int, int], keep: float, density: float) -> None:
    video = TokenGrid(*grid)
    share = expected_keep(video, "gilbert", Carving(keep=keep))
    blocks = video.blocks()
    assert (share * blocks + TEXT_BLOCKS) / (blocks + TEXT_BLOCKS) == pytest.approx(density, abs=6e-5)


@pytest.mark.parametrize("adjacency", [True, False])
def test_more_kept_is_more_seen_and_never_less_than_keep(adjacency: bool) -> None:
    grid = TokenGrid(7, 13, 11)
    keeps = (0.05, 0.2, 0.5, 0.9, 1.0)
    shares = [expected_keep(grid, "gilbert", Carving(keep=keep, adjacency=adjacency)) for keep in keeps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(keep <= share <= 1.0 for keep, share in zip(keeps, shares, strict=True))


def test_it_can_be_asked_while_a_graph_is_compiled() -> None:
    grid = TokenGrid(6, 13, 11)
    with FakeTensorMode():
        inside = expected_keep(grid, "gilbert", Carving(keep=0.3))
    assert inside == expected_keep(grid, "gilbert", Carving(keep=0.3))


def test_without_adjacency_a_rows_share_is_what_is_kept() -> None:
    assert expected_keep(TokenGrid(32, 45, 80), "gilbert", Carving(keep=0.2, adjacency=False)) == 180 / 900


def site(text: int) -> Site:
    return Site(
        path="blocks.0",
        decision="carved",
        reason="",
        batch=2,
        heads=3,
        queries=1000 + text,
        keys=1000 + text,
        head_dim=64,
        grid=(10, 10, 10),
        video=(0, 1000),
        text=text,
    )


@pytest.mark.parametrize("text", [0, 128])
def test_seeing_everything_is_dense(text: int) -> None:
    assert site(text).flops_at(1.0) == site(text).dense_flops


def test_the_condition_is_seen_and_sees_all() -> None:
    assert site(0).flops_at(0.25) == site(0).dense_flops // 4
    pairs = 1000 * (250 + 128) + 128 * 1128
    assert site(128).flops_at(0.25) == 4 * 2 * 3 * 64 * pairs
