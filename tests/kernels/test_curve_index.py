"""The index operator: the curve's own orders, safe to write to, sound under compilation."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from jenga_compile.curve import CutCurve, curve_order, inverse_order
from jenga_compile.errors import InvalidGrid, OptionOutOfRange
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.kernels.curve_index.op import cached_index
from jenga_compile.kernels.dispatch import use_order

curve_index = torch.ops.jenga.curve_index
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", get_args(CurveKind))
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (8, 16, 16)])
def test_it_is_the_curve_s_order_and_its_inverse(kind: CurveKind, shape: tuple[int, int, int]) -> None:
    order = curve_index(*shape, kind, False, 0, 0, [], device=CPU)
    inverse = curve_index(*shape, kind, True, 0, 0, [], device=CPU)
    assert torch.equal(order, curve_order(TokenGrid(*shape), kind))
    assert torch.equal(inverse, inverse_order(TokenGrid(*shape), kind))
    assert torch.equal(order[inverse], torch.arange(order.numel()))


@pytest.mark.parametrize("inverse", [False, True])
def test_text_around_the_video_stays_in_place(inverse: bool) -> None:
    alone = curve_index(3, 5, 7, "gilbert", inverse, 0, 0, [1], device=CPU)
    index = curve_index(3, 5, 7, "gilbert", inverse, 4, 2, [1], device=CPU)
    assert torch.equal(index, torch.cat([torch.arange(4), alone + 4, torch.arange(109, 111)]))


def test_a_curve_that_starts_anew_keeps_its_parts_together() -> None:
    index = curve_index(3, 5, 7, "gilbert", False, 0, 0, [1], device=CPU)
    assert torch.equal(index[:35], curve_order(TokenGrid(1, 5, 7)))
    assert torch.equal(index[35:], 35 + curve_order(TokenGrid(2, 5, 7)))


def test_another_order_may_stand_in() -> None:
    with use_order(lambda tokens: torch.arange(tokens).flip(0)):
        order, inverse = (curve_index(2, 3, 4, "gilbert", way, 1, 0, [], device=CPU) for way in (False, True))
    assert order.tolist() == [0, *range(24, 0, -1)]
    assert torch.equal(order[inverse], torch.arange(25))
    assert torch.equal(curve_index(2, 3, 4, "gilbert", False, 0, 0, [], device=CPU), curve_order(TokenGrid(2, 3, 4)))


def test_writing_to_a_result_changes_no_later_one() -> None:
    first = curve_index(2, 3, 4, "gilbert", False, 0, 0, [], device=CPU)
    kept = first.clone()
    first.zero_()
    assert torch.equal(curve_index(2, 3, 4, "gilbert", False, 0, 0, [], device=CPU), kept)
    assert torch.equal(cached_index(TokenGrid(2, 3, 4), CutCurve("gilbert", ()), False, 0, 0, CPU), kept)


def test_a_compiled_graph_may_write_to_the_result() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def shifted() -> torch.Tensor:
        return curve_index(2, 3, 4, "gilbert", False, 0, 0, [], device=CPU).add_(1)

    assert torch.equal(shifted(), shifted())


def test_an_index_first_made_in_inference_mode_serves_outside_it() -> None:
    with torch.inference_mode():
        index = cached_index(TokenGrid(3, 3, 7), CutCurve("sliced", ()), True, 0, 0, CPU)
    assert not index.is_inference()


@pytest.mark.parametrize("inverse", [False, True])
def test_the_registration_is_sound(inverse: bool) -> None:
    torch.library.opcheck(curve_index, (3, 5, 7, "gilbert", inverse, 4, 2, [1]), {"device": CPU})


def test_a_fake_index_needs_no_device() -> None:
    with FakeTensorMode():
        index = curve_index(32, 45, 80, "gilbert", False, 0, 0, [], device=torch.device("cuda", 0))
    assert index.shape == (115200,)
    assert index.dtype == torch.int64
    assert index.device.type == "cuda"


def test_misuse_is_named() -> None:
    with pytest.raises(InvalidGrid, match=r"\(0, 5, 7\)"):
        curve_index(0, 5, 7, "gilbert", False, 0, 0, [], device=CPU)
    with pytest.raises(OptionOutOfRange, match="curve='hilbert'"):
        curve_index(3, 5, 7, "hilbert", False, 0, 0, [], device=CPU)
