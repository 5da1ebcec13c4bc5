"""The composite on tokens in the model's order, and the knobs it looks up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jenga_compile import kernels
from jenga_compile.block_mask import Adjacency, Own, PerHead, Window
from jenga_compile.curve import curve_order
from jenga_compile.errors import (
    DtypeMismatch,
    InvalidGrid,
    NotDifferentiable,
    OptionOfWrongType,
    OptionOutOfRange,
    ShapeMismatch,
    UnknownKnob,
    UnknownKnobs,
    UnknownMask,
    VideoSpanOutOfRange,
)
from jenga_compile.grid import CurveKind, TokenGrid
from jenga_compile.kernels import static_masks
from jenga_compile.kernels.knobs import CUTOFF, KEEP, TEXT_BIAS, Knobs, lookup, make_knobs, register
from tests.tolerance import assert_rounding, eager_attention

carve = torch.ops.jenga.carved_attention
LAW = settings(max_examples=20, deadline=None, derandomize=True)
KINDS = get_args(CurveKind)
ALL = register(Knobs(keep=1.0, cutoff=0.0))
SOME = register(Knobs(keep=0.3, cutoff=0.2, text_bias=0.4))
ADJACENT = static_masks.register(static_masks.StaticMasks(Adjacency()))
PATTERNS = static_masks.register(static_masks.StaticMasks(PerHead((Own(), Adjacency())), PerHead((Window(4.0), Own()))))
OWN = static_masks.register(static_masks.StaticMasks(Own()))
SIZES = st.integers(1, 9)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Deterministic mode fills what `empty` returns with NaN, so an output left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def qkv(length: int, batch: int = 1, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.float32):
    """Seeded q, k, v [B, H, L, D]."""
    generator = torch.Generator().manual_seed(length)
    return torch.randn(3, batch, heads, length, dim, generator=generator, dtype=torch.float64).to(dtype).unbind()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (20, 0), (0, 20), (130, 7)])
@pytest.mark.parametrize("adjacency", [False, True])
def test_keeping_all_is_dense_attention(kind: CurveKind, before: int, after: int, adjacency: bool) -> None:
    q, k, v = qkv(5 * 7 * 11 + before + after)
    out = carve(q, k, v, None, 5, 7, 11, before, kind, [], ADJACENT if adjacency else OWN, ALL)
    assert_rounding(out, eager_attention(q.double(), k.double(), v.double()), eager_attention(q, k, v), v)


@given(
    SIZES,
    SIZES,
    SIZES,
    st.sampled_from([0, 1, 150]),
    st.sampled_from([0, 1, 129]),
    st.sampled_from(KINDS),
    st.booleans(),
)
@example(9, 9, 9, 150, 129, "gilbert", True)
@example(9, 9, 9, 0, 0, "sliced", False)
@LAW
def test_float64_is_the_reference_s(
    t: int, h: int, w: int, before: int, after: int, kind: CurveKind, masked: bool
) -> None:
    length = t * h * w + before + after
    q, k, v = qkv(length, batch=2, dtype=torch.float64)
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) < 0.7 if masked else None
    cuts = [1, 3] if masked else []
    arguments = (q, k, v, mask, t, h, w, before, kind, cuts, ADJACENT if masked else PATTERNS, SOME)
    fast = carve(*arguments)
    with kernels.use_reference():
        slow = carve(*arguments)
    assert fast.stride() == slow.stride()
    assert_rounding(fast, slow, slow, v)


@given(SIZES, SIZES, SIZES, st.sampled_from(KINDS))
@LAW
def test_text_means_the_same_before_and_after_the_video(t: int, h: int, w: int, kind: CurveKind) -> None:
    video, text = t * h * w, 140
    q, k, v = qkv(video + text)
    mask = torch.rand(1, video + text, generator=torch.Generator().manual_seed(video)) < 0.7
    last = carve(q, k, v, mask, t, h, w, 0, kind, [], ADJACENT, SOME)
    q, k, v = (x.roll(text, 2) for x in (q, k, v))
    first = carve(q, k, v, mask.roll(text, 1), t, h, w, text, kind, [], ADJACENT, SOME)
    assert torch.equal(first, last.roll(text, 2))


@given(SIZES, SIZES, SIZES, st.sampled_from([0, 1, 150]), st.sampled_from([0, 3]), st.sampled_from(KINDS))
@LAW
def test_tokens_that_come_in_order_need_no_reordering(
    t: int, h: int, w: int, before: int, after: int, kind: CurveKind
) -> None:
    q, k, v = qkv(t * h * w + before + after)
    mask = torch.rand(1, q.shape[2], generator=torch.Generator().manual_seed(t)) < 0.7
    to, back = (
        torch.ops.jenga.curve_index(t, h, w, kind, inverse, before, after, [2], device=q.device)
        for inverse in (False, True)
    )
    rest = (t, h, w, before, kind, [2], ADJACENT, SOME, None)
    inside = carve(q, k, v, mask, *rest, False)
    outside = carve(*(x[:, :, to] for x in (q, k, v)), mask[:, to], *rest, True)
    assert torch.equal(outside[:, :, back], inside)


def test_one_mask_serves_the_batch() -> None:
    q, k, v = qkv(160, batch=2)
    mask = torch.arange(160)[None] < 130
    rest = (3, 5, 10, 10, "gilbert", [], ADJACENT, SOME)
    assert torch.equal(carve(q, k, v, mask, *rest), carve(q, k, v, mask.expand(2, -1), *rest))


@pytest.mark.parametrize("kind", KINDS)
def test_carving_is_done_on_the_curve(kind: CurveKind) -> None:
    # With own blocks alone, a query's output is the mean of the values its block of the curve holds.
    video = 8 * 8 * 10
    q = torch.zeros(1, 1, video, 4)
    v = torch.randn(1, 1, video, 4)
    first = torch.zeros(1, 1, video, 4)
    order = curve_order(TokenGrid(8, 8, 10), kind)
    own = register(Knobs(keep=1 / 5, cutoff=0.0))
    out = carve(q, first, v, None, 8, 8, 10, 0, kind, [], OWN, own)
    # All scores tie, so importance takes block 0; the own block joins.
    for block in range(1, 5):
        seen = torch.cat((order[:128], order[128 * block : 128 * (block + 1)]))
        expected = v[0, 0, seen].mean(0)
        torch.testing.assert_close(out[0, 0, order[128 * block]], expected)


def test_adjacency_only_adds_blocks() -> None:
    grid = (8, 16, 16)
    q, k, v = qkv(2048, dtype=torch.float64)
    few = register(Knobs(keep=0.01, cutoff=0.0))
    with_neighbours, alone = (carve(q, k, v, None, *grid, 0, "gilbert", [], masks, few) for masks in (ADJACENT, OWN))
    dense = eager_attention(q, k, v)
    assert (with_neighbours - dense).abs().mean() < (alone - dense).abs().mean()


def test_the_output_is_stored_as_the_next_projection_reads_it() -> None:
    q, k, v = qkv(160, batch=2)
    out = carve(q, k, v, None, 3, 5, 10, 10, "gilbert", [], ADJACENT, SOME)
    assert out.shape == (2, 2, 160, 16)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("masked", [False, True])
def test_the_registration_is_sound(masked: bool) -> None:
    q, k, v = qkv(320, batch=2)
    q, k, v = q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT, v[..., ::2]
    mask = torch.rand(2, 320) < 0.8 if masked else None
    torch.library.opcheck(carve, (q, k, v, mask, 3, 10, 10, 15, "gilbert", [], ADJACENT, SOME))


def test_knobs_turn_without_recompiling() -> None:
    knobs = Knobs(keep=0.1, cutoff=0.0)
    handle, compiled = register(knobs), []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True)
    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return carve(q, k, v, None, 8, 8, 10, 0, "gilbert", [], OWN, handle)

    q, k, v = qkv(640)
    carved = model(q, k, v)
    knobs.keep = 1.0
    dense = model(q, k, v)
    assert len(compiled) == 1
    assert_rounding(dense, eager_attention(q.double(), k.double(), v.double()), eager_attention(q, k, v), v)
    assert not torch.allclose(carved, dense)


def test_a_knob_writes_the_tensors_it_has_handed_out() -> None:
    knobs = Knobs(keep=0.5, cutoff=0.25)
    with torch.inference_mode():
        tensor = lookup(register(knobs), torch.device("cpu"))
    assert tensor.tolist() == [0.5, 0.25, 0.0]
    knobs.keep, knobs.cutoff, knobs.text_bias = 0.75, 0.0, -1.5
    assert (tensor[KEEP], tensor[CUTOFF], tensor[TEXT_BIAS]) == (0.75, 0.0, -1.5)
    assert (knobs.keep, knobs.cutoff, knobs.text_bias) == (0.75, 0.0, -1.5)
    assert lookup(register(knobs), torch.device("cpu")) is tensor
    assert repr(knobs) == "Knobs(keep=0.75, cutoff=0.0, text_bias=-1.5)"


def test_a_refused_value_leaves_the_knobs_as_they_were() -> None:
    knobs = Knobs(keep=0.5, cutoff=0.25)
    for name, value in (("keep", 0.0), ("keep", 1.1), ("cutoff", 1.0), ("cutoff", -0.1), ("text_bias", float("inf"))):
        with pytest.raises(OptionOutOfRange, match=f"{name}={value}"):
            setattr(knobs, name, value)
    assert repr(knobs) == "Knobs(keep=0.5, cutoff=0.25, text_bias=0.0)"
    with pytest.raises(OptionOutOfRange, match="keep=0"):
        make_knobs(0, 0.0)


@pytest.mark.parametrize("name", ["keep", "cutoff", "text_bias"])
def test_a_knob_is_a_number(name: str) -> None:
    knobs = Knobs()
    for value in ("a", True, None):
        for misuse in (lambda value: Knobs(**{name: value}), lambda value: setattr(knobs, name, value)):
            with pytest.raises(OptionOfWrongType, match=f"{name}={value!r}"):
                misuse(value)
    setattr(knobs, name, np.float32(0.5))
    assert type(getattr(knobs, name)) is float


@pytest.mark.parametrize(("name", "hint"), [("kep", "; did you mean 'keep'[?] Knobs"), ("wibble", "wibble' to set[.]")])
def test_no_other_knob_is_set(name: str, hint: str) -> None:
    with pytest.raises(UnknownKnob, match=hint) as caught:
        setattr(Knobs(), name, 0.1)
    assert isinstance(caught.value, AttributeError)


def test_handles_belong_to_one_object_each() -> None:
    one, other = Knobs(), Knobs()
    assert register(one) == register(one)
    assert register(one) != register(other)


def test_a_backward_is_refused() -> None:
    q, k, v = qkv(160)
    out = carve(q.requires_grad_(), k, v, None, 3, 5, 10, 10, "gilbert", [], ADJACENT, SOME)
    with pytest.raises(NotDifferentiable, match="jenga::carved_attention has no backward"):
        out.sum().backward()


Q = torch.randn(1, 2, 160, 16)
REST = ("gilbert", [], ADJACENT, SOME)


@pytest.mark.parametrize(
    ("misuse", "error", "text"),
    [
        (lambda: carve(Q[0], Q, Q, None, 3, 5, 10, 10, *REST), ShapeMismatch, r"q has shape \(2, 160, 16\)"),
        (lambda: carve(Q, Q, Q.half(), None, 3, 5, 10, 10, *REST), DtypeMismatch, "v is torch.float16"),
        (lambda: carve(Q, Q, Q, Q[:, 0, :, 0], 3, 5, 10, 10, *REST), DtypeMismatch, "key_mask is torch.float32"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 10, 11, *REST), VideoSpanOutOfRange, "150 tokens from position 11 .* 160"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 10, -1, *REST), VideoSpanOutOfRange, "from position -1"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 11, 0, *REST), VideoSpanOutOfRange, "165 tokens"),
        (lambda: carve(Q, Q, Q, None, 3, 0, 10, 0, *REST), InvalidGrid, r"\(3, 0, 10\)"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 10, 0, "peano", [], ADJACENT, SOME), OptionOutOfRange, "curve='peano'"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 10, 0, "gilbert", [], ADJACENT, 10**6), UnknownKnobs, "handle 1000000"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 10, 0, "gilbert", [], 10**6, SOME), UnknownMask, "handle 1000000"),
        (lambda: carve(Q, Q, Q, None, 3, 5, 10, 0, "gilbert", [2, 1], OWN, SOME), OptionOutOfRange, "ascending frames"),
    ],
)
def test_misuse_is_named(misuse: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        misuse()
