"""Attention over lists: against dense attention, against the reference, and laws for any geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from jenga_compile import kernels
from jenga_compile.errors import BlockListOutOfRange, DtypeMismatch, NotDifferentiable, ShapeMismatch, VideoOutOfRange
from jenga_compile.kernels.block_sparse_attention import gathered
from jenga_compile.kernels.knobs import make_knobs
from tests.tolerance import assert_rounding, eager_attention

attend = torch.ops.jenga.block_sparse_attention
LAW = settings(max_examples=25, deadline=None, derandomize=True)
TEXTS = (0, 1, 127, 128, 129, 300)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PLAIN = make_knobs(1.0, 0.0)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Deterministic mode fills what `empty` returns with NaN, so an output left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def qkv(video: int, text: int, batch: int = 1, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.float32):
    """Seeded q, k, v [B, H, L, D]."""
    generator = torch.Generator().manual_seed(1000 * video + text)
    return torch.randn(3, batch, heads, video + text, dim, generator=generator, dtype=torch.float64).to(dtype).unbind()


def key_masks(video: int, text: int) -> torch.Tensor:
    """Two rows [2, L]: holes and whole blocks missing at both ends; half of the text padding."""
    mask = torch.rand(2, video + text, generator=torch.Generator().manual_seed(video)) < 0.6
    mask[0, : min(video, 130)] = False
    mask[1] = True
    mask[1, video + text // 2 :] = False
    return mask


def random_lists(video: int, text: int, batch: int, heads: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of random lengths, some of them empty, with any subset of the text blocks."""
    rows, texts = math.ceil(video / 128), math.ceil(text / 128)
    listed = torch.rand(batch, heads, rows, rows + texts, generator=torch.Generator().manual_seed(video)) < share
    counts = listed.sum(-1, dtype=torch.int32)
    block = torch.arange(rows + texts, dtype=torch.int32)
    indices = torch.full(listed.shape, -1, dtype=torch.int32)
    return indices.masked_scatter_(block < counts[..., None], block.expand_as(listed)[listed]), counts


def dense_bias(
    indices: torch.Tensor,
    counts: torch.Tensor,
    video: int,
    length: int,
    key_mask: torch.Tensor | None,
    text_bias: float,
) -> torch.Tensor:
    """What the lists, the mask and the amplifier mean to dense attention: a bias [B, H, L, L] in float64."""
    batch, heads, rows, _ = indices.shape
    position = torch.arange(length)
    block_of = torch.where(position < video, position // 128, rows + (position - video) // 128)
    bias = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    bias[:, :, :video, video:] = text_bias
    for b, h, r in torch.cartesian_prod(*(torch.arange(n) for n in (batch, heads, rows))).tolist():
        unlisted = ~torch.isin(block_of, indices[b, h, r, : counts[b, h, r]])
        bias[b, h, 128 * r : min(128 * (r + 1), video), unlisted] = -torch.inf
    if key_mask is not None:
        bias.masked_fill_(~key_mask[:, None, None], -torch.inf)
    return bias


def assert_attends(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lists: tuple[torch.Tensor, torch.Tensor],
    video: int,
    key_mask: torch.Tensor | None = None,
    text_bias: float = 0.0,
    by: Callable[..., torch.Tensor] = attend,
) -> torch.Tensor:
    """The operator, as `by` computes it, equals dense attention under the lists' bias; rows without keys are zeros."""
    knobs = make_knobs(1.0, 0.0, text_bias)
    out = by(q, k, v, *lists, knobs, video, key_mask)
    bias = dense_bias(*lists, video, q.shape[2], key_mask, float(knobs[2]))
    empty = bias.isneginf().all(-1)
    assert (out[empty] == 0).all()
    truth = eager_attention(q.double(), k.double(), v.double(), bias)[~empty]
    if len(truth):
        assert_rounding(out[~empty], truth, eager_attention(q, k, v, bias)[~empty], v)
    return out


def all_blocks(video: int, text: int, batch: int = 1, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return random_lists(video, text, batch, heads, share=1.1)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("video", [1, 127, 128, 129, 640, 1000])
def test_all_blocks_is_dense_attention(video: int, text: int) -> None:
    q, k, v = qkv(video, text)
    out = attend(q, k, v, *all_blocks(video, text), PLAIN, video)
    truth = scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert_rounding(out, truth, eager_attention(q, k, v), v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 24, 64, 72, 128])
def test_every_dtype_and_head_dim(dtype: torch.dtype, dim: int) -> None:
    q, k, v = qkv(700, 129, dim=dim, dtype=dtype)
    assert_attends(q, k, v, random_lists(700, 129, 1, 2, share=0.5), 700, text_bias=0.3)


@given(
    st.integers(1, 1200),
    st.sampled_from(TEXTS),
    st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.7, -2.0]),
)
@example(1, 0, 0.0, False, 0.0)
@example(127, 1, 1.0, True, 0.7)
@example(1025, 300, 0.3, True, 0.7)
@LAW
def test_any_lists_mean_dense_attention_under_their_bias(
    video: int, text: int, share: float, masked: bool, text_bias: float
) -> None:
    q, k, v = qkv(video, text, batch=2)
    lists = random_lists(video, text, 2, 2, share)
    assert_attends(q, k, v, lists, video, key_masks(video, text) if masked else None, text_bias)


@given(st.integers(1, 700), st.sampled_from(TEXTS), st.booleans(), st.sampled_from(DTYPES))
@LAW
def test_fast_path_is_the_reference(video: int, text: int, masked: bool, dtype: torch.dtype) -> None:
    q, k, v = qkv(video, text, batch=2, dtype=dtype)
    mask = key_masks(video, text) if masked else None
    arguments = (*random_lists(video, text, 2, 2, 0.5), make_knobs(1.0, 0.0, 0.4), video, mask)
    fast = attend(q, k, v, *arguments)
    with kernels.use_reference():
        slow = attend(q, k, v, *arguments)
        truth = attend(q.double(), k.double(), v.double(), *arguments)
    assert slow.stride() == fast.stride()
    assert_rounding(fast, truth, slow, v)


def test_chunks_of_one_row_give_the_same_numbers() -> None:
    q, k, v = qkv(1000, 129)
    lists = random_lists(1000, 129, 1, 2, 0.5)
    with mock.patch.object(gathered, "_CHUNK_BYTES", 1):
        assert_attends(q, k, v, lists, 1000)


def test_values_may_have_their_own_width() -> None:
    q, k, _ = qkv(300, 20)
    assert_attends(q, k, torch.randn(1, 2, 320, 40), random_lists(300, 20, 1, 2, 0.7), 300)


def test_scale_replaces_the_default() -> None:
    q, k, v = qkv(300, 20)
    lists = all_blocks(300, 20)
    out = attend(q, k, v, *lists, PLAIN, 300, scale=0.7)
    truth = eager_attention(q.double(), k.double(), v.double(), scale=0.7)
    assert_rounding(out, truth, eager_attention(q, k, v, scale=0.7), v)


def test_text_bias_is_a_softmax_with_that_bias_for_video_rows_only() -> None:
    q, k, v = qkv(500, 130)
    amplifier = -0.5 * math.log(0.55)
    out = attend(q, k, v, *all_blocks(500, 130), make_knobs(1.0, 0.0, amplifier), 500)
    logits = q.double() @ k.double().mT * 16**-0.5
    weights = logits.exp()
    weights[:, :, :500, 500:] *= math.exp(amplifier)
    truth = weights / weights.sum(-1, keepdim=True) @ v.double()
    assert_rounding(out, truth, eager_attention(q, k, v), v)


@given(st.integers(1, 700), st.sampled_from(TEXTS), st.sampled_from([1e6, -1e6, 3e38]))
@LAW
def test_masked_keys_have_no_influence_to_the_last_bit(video: int, text: int, garbage: float) -> None:
    q, k, v = qkv(video, text, batch=2)
    mask = key_masks(video, text)
    lists = random_lists(video, text, 2, 2, 0.6)
    dirty_k, dirty_v = (x.masked_fill(~mask[:, None, :, None], garbage) for x in (k, v))
    clean = attend(q, k, v, *lists, PLAIN, video, mask)
    assert torch.equal(attend(q, dirty_k, dirty_v, *lists, PLAIN, video, mask), clean)


def test_an_item_without_any_key_gives_zeros() -> None:
    q, k, v = qkv(300, 20, batch=2)
    mask = torch.ones(2, 320, dtype=torch.bool)
    mask[1] = False
    out = attend(q, k, v, *all_blocks(300, 20, batch=2), PLAIN, 300, mask)
    assert (out[1] == 0).all()
    assert torch.equal(out[:1], attend(q[:1], k[:1], v[:1], *all_blocks(300, 20), PLAIN, 300))


@given(st.integers(1, 700), st.sampled_from(TEXTS))
@LAW
def test_heads_are_attended_one_by_one(video: int, text: int) -> None:
    q, k, v = qkv(video, text, heads=3)
    indices, counts = random_lists(video, text, 1, 3, 0.5)
    order = torch.tensor([2, 0, 1])
    assert_attends(q[:, order], k[:, order], v[:, order], (indices[:, order], counts[:, order]), video)


@pytest.mark.parametrize("size", [1e4, 1e15])
def test_large_logits_stay_finite(size: float) -> None:
    q, k, v = qkv(400, 130)
    lists = random_lists(400, 130, 1, 2, 0.7)
    assert_attends(q * size, k, v, lists, 400, text_bias=0.3)
    k[:, :, ::3] = -size * q.mean(2, keepdim=True)
    assert_attends(q, k, v, lists, 400)


def test_what_is_past_the_count_is_not_read() -> None:
    q, k, v = qkv(500, 20)
    indices, counts = random_lists(500, 20, 1, 2, 0.5)
    poisoned = indices.masked_fill(indices == -1, 12345)
    assert torch.equal(attend(q, k, v, poisoned, counts, PLAIN, 500), attend(q, k, v, indices, counts, PLAIN, 500))


def test_the_output_is_stored_as_the_next_projection_reads_it() -> None:
    q, k, v = qkv(300, 20, batch=2)
    out = attend(q, k, v, *all_blocks(300, 20, batch=2), PLAIN, 300)
    assert out.shape == (2, 2, 320, 16)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("video", "text", "masked"), [(300, 20, False), (256, 0, False), (300, 129, True)])
def test_the_registration_is_sound(video: int, text: int, masked: bool) -> None:
    q, k, v = qkv(video, text, batch=2)
    q, k, v = q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT, v[..., ::2]
    mask = key_masks(video, text) if masked else None
    torch.library.opcheck(attend, (q, k, v, *random_lists(video, text, 2, 2, 0.5), PLAIN, video, mask))


def test_inputs_of_any_strides_give_the_same_numbers() -> None:
    q, k, v = qkv(300, 129, batch=2)
    lists = random_lists(300, 129, 2, 2, 0.5)
    strided = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    assert_attends(*strided, lists, 300)


def test_use_reference_bypasses_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(300, 20)
    monkeypatch.setattr(gathered, "block_sparse_attention", lambda *_: pytest.fail("the fast path ran"))
    with kernels.use_reference():
        attend(q, k, v, *all_blocks(300, 20), PLAIN, 300)


def test_a_backward_is_refused() -> None:
    q, k, v = qkv(300, 20)
    out = attend(q.requires_grad_(), k, v, *all_blocks(300, 20), PLAIN, 300)
    with pytest.raises(NotDifferentiable, match="jenga::block_sparse_attention has no backward"):
        out.sum().backward()


Q = torch.randn(1, 2, 300, 16)
INDICES, COUNTS = all_blocks(300, 0)


@pytest.mark.parametrize(
    ("misuse", "error", "text"),
    [
        (lambda: attend(Q[0], Q, Q, INDICES, COUNTS, PLAIN, 300), ShapeMismatch, r"q has shape \(2, 300, 16\)"),
        (lambda: attend(Q, Q, Q[:, :1], INDICES, COUNTS, PLAIN, 300), ShapeMismatch, r"v has shape \(1, 1"),
        (lambda: attend(Q, Q, Q[0], INDICES, COUNTS, PLAIN, 300), ShapeMismatch, r"v has shape \(2, 300"),
        (lambda: attend(Q, Q, Q, INDICES, COUNTS, PLAIN, 200), ShapeMismatch, r"indices has shape .* \(1, 2, 2, 3\)"),
        (lambda: attend(Q, Q, Q, INDICES, COUNTS[:, :1], PLAIN, 300), ShapeMismatch, "counts has shape"),
        (lambda: attend(Q, Q, Q.half(), INDICES, COUNTS, PLAIN, 300), DtypeMismatch, "v is torch.float16"),
        (lambda: attend(Q, Q, Q, INDICES.long(), COUNTS, PLAIN, 300), DtypeMismatch, "indices is torch.int64"),
        (lambda: attend(Q, Q, Q, INDICES, COUNTS, PLAIN.half(), 300), DtypeMismatch, "knobs is torch.float16"),
        (lambda: attend(Q, Q, Q, INDICES, COUNTS, PLAIN, 500), VideoOutOfRange, r"video=500 is outside \[1, 300\]"),
        (
            lambda: attend(Q, Q, Q, INDICES + 1, COUNTS, PLAIN, 300),
            BlockListOutOfRange,
            r"indices .*\[1, 3\].*\[0, 2\]",
        ),
        (lambda: attend(Q, Q, Q, INDICES - 1, COUNTS, PLAIN, 300), BlockListOutOfRange, r"indices .*\[-1, 1\]"),
        (lambda: attend(Q, Q, Q, INDICES, COUNTS + 1, PLAIN, 300), BlockListOutOfRange, r"counts .*\[4, 4\].*\[0, 3\]"),
    ],
)
def test_misuse_is_named(misuse: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        misuse()


def test_inductor_takes_a_call_that_leaves_arguments_to_their_defaults() -> None:
    q, k, v = (torch.randn(1, 2, 320, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    knobs = make_knobs(0.3, 0.3)
    lists = torch.ops.jenga.block_select(q, k, torch.eye(3, dtype=torch.bool), knobs, 300)

    def attended(q: torch.Tensor) -> torch.Tensor:
        return torch.ops.jenga.block_sparse_attention(q, k, v, *lists, knobs, 300)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(attended, fullgraph=True)(q), attended(q))
