"""Masks compose as sets do, equal sets of terms are one value, and importance can be taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jenga_compile import block_mask
from jenga_compile.block_mask import (
    Adjacency,
    Condition,
    Everything,
    Fixed,
    Importance,
    Mask,
    Nothing,
    Own,
    PerHead,
    Spatial,
    Temporal,
    Window,
    all_of,
    any_of,
    split,
)
from jenga_compile.errors import HeadsNested, ImportancesDiffer, MaskNotStatic, MaskUnfit, OutOfRange
from jenga_compile.grid import TokenGrid
from tests.block_mask.strategies import ANY, ANY_STATIC, DYNAMIC, IMPORTANCE, LAW, STATIC

GRID = TokenGrid(3, 5, 6)
BLOCK = 8
TEXT = 20
ROWS, KEYS = 12, 15


def dense(mask: Mask) -> torch.Tensor:
    """[H or 1, R, N]."""
    return mask.dense_with_text(GRID, "gilbert", TEXT, BLOCK).reshape(-1, ROWS, KEYS)


def heads(matrix: torch.Tensor, count: int) -> torch.Tensor:
    return matrix[torch.arange(count) % len(matrix)]


@LAW
@given(ANY_STATIC, ANY_STATIC)
def test_or_and_and_are_those_of_the_matrices(a: Mask, b: Mask) -> None:
    count = int(np.lcm(a.heads, b.heads))
    assert torch.equal(dense(a | b), heads(dense(a), count) | heads(dense(b), count))
    assert torch.equal(dense(a & b), heads(dense(a), count) & heads(dense(b), count))


@LAW
@given(ANY, ANY, ANY)
def test_the_laws_hold_for_the_values_themselves(a: Mask, b: Mask, c: Mask) -> None:
    for op in (lambda x, y: x | y, lambda x, y: x & y):
        assert op(a, b) == op(b, a)
        assert hash(op(a, b)) == hash(op(b, a))
        assert op(op(a, b), c) == op(a, op(b, c))
        assert op(a, a) == a
    assert a | Nothing() == a & Everything() == a


@LAW
@given(st.sampled_from([Own(), Window(2), IMPORTANCE, Condition()]), DYNAMIC)
def test_absorption(a: Mask, b: Mask) -> None:
    assert a | (a & b) == a
    assert a & (a | b) == a
    assert b | Everything() == Everything()
    assert b & Nothing() == Nothing()


@LAW
@given(ANY)
def test_the_text_of_a_mask_is_the_mask(mask: Mask) -> None:
    assert eval(repr(mask), vars(block_mask).copy()) == mask


@LAW
@given(STATIC)
def test_dense_is_the_video_part_and_the_condition_is_seen_by_all_rows_or_by_none(mask: Mask) -> None:
    seen = dense(mask)[0]
    assert torch.equal(mask.dense(GRID, "gilbert", BLOCK), seen[:, :ROWS])
    assert bool(seen[:, ROWS:].all()) == bool(seen[:, ROWS:].any()) == mask.sees_condition


@LAW
@given(ANY, st.integers(0, 2**32 - 1))
def test_a_mask_is_always_or_what_importance_chooses_of_the_allowed(mask: Mask, seed: int) -> None:
    chosen = np.zeros((ROWS, KEYS), np.bool_)
    chosen[:, :ROWS] = np.random.default_rng(seed).random((ROWS, ROWS)) < 0.4
    choice = Fixed.of(torch.from_numpy(chosen))
    parts = split(mask)
    expected = dense(mask.replace_importance(choice))
    assert torch.equal(dense(parts.always) | (dense(choice) & dense(parts.allowed)), expected)
    assert not (dense(parts.always) & ~dense(parts.allowed)).any()
    assert parts.sees_condition == bool(expected[..., ROWS:].all())
    assert parts.importance == (IMPORTANCE if mask.importances else None)


def test_the_paper_s_mask_splits_into_what_the_operator_takes() -> None:
    parts = split(Importance(0.2, 0.3) | Adjacency() | Condition())
    assert parts.importance == Importance(0.2, 0.3)
    assert parts.always == Adjacency() | Condition()
    assert parts.allowed == Everything()
    assert parts.sees_condition
    assert not split(Importance() & Window(3)).sees_condition
    assert split(Importance() & Window(3)).always == Nothing()
    assert split(Importance() & Window(3)).allowed == Window(3)


def test_two_importances_are_refused_and_one_given_twice_is_not() -> None:
    one, other = Importance(0.2, 0.3), Importance(0.2, 0.0)
    for mask in (one | other, one & other | Own(), PerHead((one, other | Own()))):
        with pytest.raises(ImportancesDiffer, match=r"keep=0.2, cutoff=0.0.*keep=0.2, cutoff=0.3"):
            split(mask)
    assert split((one & Window(2)) | (one & Spatial())).importance == one
    assert split(PerHead((one, one & Own()))).importance == one


def test_importance_is_no_matrix() -> None:
    for mask in (Importance(), Importance() | Own(), PerHead((Own(), Importance() & Own()))):
        with pytest.raises(MaskNotStatic, match=r"Importance\(keep=0.3, cutoff=0.3\).*split"):
            mask.dense(GRID)
    assert (Importance() | Everything()).dense(GRID).all()


@pytest.mark.parametrize("fields", [{"keep": 0}, {"keep": 1.1}, {"keep": True}, {"cutoff": 1}, {"cutoff": -0.1}])
def test_importance_refuses_what_carving_refuses(fields: dict[str, float]) -> None:
    with pytest.raises(OutOfRange, match=f"Importance.{next(iter(fields))} "):
        Importance(**fields)


def test_heads_take_masks_in_turn() -> None:
    spatial, temporal = Spatial(), Temporal()
    mask = PerHead((spatial, temporal))
    assert [mask.head(h) for h in range(4)] == [spatial, temporal, spatial, temporal]
    assert torch.equal(mask.dense(GRID), torch.stack([spatial.dense(GRID), temporal.dense(GRID)]))
    assert mask | Own() == PerHead((spatial | Own(), temporal | Own()))
    assert (mask & PerHead((Own(), Own(), Window(2)))).heads == 6
    assert PerHead((Own(),)).dense(GRID).shape == (1, 1, 1)


def test_heads_refuse_what_is_no_mask_for_one_head() -> None:
    with pytest.raises(HeadsNested, match="holds PerHead"):
        PerHead((Own(), PerHead((Own(),))))
    for masks in ((), [Own()], (Own(), 1)):
        with pytest.raises(OutOfRange, match=r"PerHead\.masks"):
            PerHead(masks)  # type: ignore[arg-type]


def test_only_masks_compose() -> None:
    for other in (1, None, torch.ones(2, 2).bool()):
        with pytest.raises(TypeError, match="unsupported operand"):
            Own() | other  # type: ignore[operator]
        with pytest.raises(TypeError, match="unsupported operand"):
            Own() & other  # type: ignore[operator]
    assert any_of() == Nothing()
    assert all_of() == Everything()


@LAW
@given(st.integers(0, 2**32 - 1))
def test_a_fixed_mask_is_its_matrix(seed: int) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).random((ROWS, KEYS)) < 0.5)
    mask = Fixed.of(matrix)
    assert torch.equal(dense(mask)[0], matrix)
    assert torch.equal(mask.dense(GRID, block=BLOCK), matrix[:, :ROWS])
    assert mask == Fixed.of(matrix.clone())
    assert hash(mask) == hash(Fixed.of(matrix.clone()))
    matrix[3, 4] ^= True
    assert mask != Fixed.of(matrix)
    assert torch.equal(dense(Fixed.of(matrix[:, :ROWS]))[0], matrix & (torch.arange(KEYS) < ROWS))
    assert Fixed.of(torch.ones(ROWS, KEYS).bool()).sees_condition
    assert not Fixed.of(torch.ones(ROWS, ROWS).bool()).sees_condition


def test_a_fixed_mask_fits_its_grid_only() -> None:
    eye = torch.eye(ROWS).bool()
    with pytest.raises(MaskUnfit, match=r"\(12, 12\), expected \[1, 1\]"):
        Fixed.of(eye).dense(GRID)
    with pytest.raises(MaskUnfit, match=r"\(12, 15\), expected \[12, 14\]"):
        Fixed.of(torch.ones(ROWS, KEYS).bool()).dense_with_text(GRID, text=16, block=BLOCK)
    for matrix in (eye.int(), eye[:, :3], eye[None], eye[:0, :0]):
        with pytest.raises(MaskUnfit):
            Fixed.of(matrix)
    with pytest.raises(OutOfRange, match="text -1"):
        Own().dense_with_text(GRID, text=-1)
