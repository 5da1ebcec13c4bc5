"""The token axis as mixed-radix digits, against index tensors that are really viewed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jenga_compile.passes.layout.axis import Axis, Digit, merge_factors, reshaped


def token_of_element(axis: Axis, shape: tuple[int, ...]) -> torch.Tensor:
    """Token index of every element of a tensor of this shape, read off the digits: the definition."""
    token = torch.zeros(shape, dtype=torch.long)
    for digit in axis.digits:
        index = torch.arange(shape[digit.dim]).view([-1 if dim == digit.dim else 1 for dim in range(len(shape))])
        token = token * digit.size + index // digit.stride % digit.size
    return token


def whole(tokens: int, *digits: Digit) -> Axis:
    return Axis(tuple(digits), 0, 0, tokens)


@given(
    batch=st.integers(1, 3),
    factors=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    inner=st.lists(st.integers(1, 4), min_size=0, max_size=2),
)
def test_a_view_keeps_every_elements_token(batch: int, factors: list[int], inner: list[int]) -> None:
    tokens = math.prod(factors)
    flat, split = (batch, tokens, math.prod(inner)), (batch, *factors, *inner)
    axis = whole(tokens, Digit(1, tokens))
    there = reshaped(axis, flat, split)
    assert there is not None
    assert torch.equal(token_of_element(there, split).flatten(), token_of_element(axis, flat).flatten())
    back = reshaped(there, split, flat)
    assert back is not None
    assert torch.equal(token_of_element(back, flat), token_of_element(axis, flat))


@given(old=st.permutations([2, 3, 4, 5]), new=st.permutations([6, 4, 5]))
def test_any_view_is_right_or_refused(old: list[int], new: list[int]) -> None:
    old_shape, new_shape = tuple(old), tuple(new)
    axis = whole(old_shape[1], Digit(1, old_shape[1]))
    there = reshaped(axis, old_shape, new_shape)
    truth = token_of_element(axis, old_shape).flatten()
    if there is not None:
        assert torch.equal(token_of_element(there, new_shape).flatten(), truth)


def test_a_view_splits_the_axis_into_the_grid() -> None:
    there = reshaped(whole(144, Digit(1, 144)), (2, 144, 8), (2, 3, 8, 6, 8))
    assert there is not None
    assert there.factors == (3, 8, 6)


def test_a_dimension_that_holds_batch_and_tokens_is_read_by_stride() -> None:
    merged = reshaped(whole(6, Digit(1, 6)), (2, 6, 4), (12, 4))
    assert merged == whole(6, Digit(0, 6))
    pixels = reshaped(whole(6, Digit(1, 6)), (2, 6, 4), (2, 24))
    assert pixels == whole(6, Digit(1, 6, stride=4))


@pytest.mark.parametrize("new", [(9, 16), (4, 36), (5, 5)])
def test_a_view_that_cuts_the_axis_unevenly_is_refused(new: tuple[int, ...]) -> None:
    assert reshaped(whole(8, Digit(1, 8)), (3, 8, 6), new) is None


def test_resized_keeps_the_sites_coordinates() -> None:
    axis = whole(10, Digit(1, 10))
    sliced_from_larger = axis.resized(30, first=12)
    assert sliced_from_larger == Axis((Digit(1, 30),), -12, 0, 10)
    piece = axis.resized(4, first=-6)
    assert piece == Axis((Digit(1, 4),), 6, 6, 10)
    assert axis.resized(4, first=-10) is None
    frames = whole(24, Digit(1, 2), Digit(2, 12)).resized(5, first=1)
    assert frames == Axis((Digit(1, 5), Digit(2, 12)), -12, 0, 24)


def test_factorisations_merge_to_the_coarsest_that_refines_all() -> None:
    assert merge_factors([(3, 48), (24, 6)]) == (3, 8, 6)
    assert merge_factors([(3, 8, 6), (24, 6)]) == (3, 8, 6)
    assert merge_factors([(3, 48), (16, 9)]) is None
