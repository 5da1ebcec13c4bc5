"""The Triton kernels of selection, interpreted on the CPU: against the definition, and by law where fp32 may round."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jenga_compile.kernels import block_select as package
from jenga_compile.kernels.block_select import gathered, reference
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.knobs import make_knobs
from tests.kernels.interpreter import interpreted
from tests.kernels.test_block_select import TEXTS, as_mask, finely_graded, inputs, key_masks

fused = interpreted("jenga_compile.kernels.block_select.fused")
LAW = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that a kernel leaves as it was holds NaN or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def select(q, k, static, knobs, video, mask=None, allowed=None):
    return fused.block_select(q, k, static, knobs, video, mask, False, allowed)


def assert_as_defined(q, k, static, knobs, video, mask=None, allowed=None) -> torch.Tensor:
    """The lists are those of the same numbers in float64; returns them as a mask."""
    indices, counts = select(q, k, static, knobs, video, mask, allowed)
    truth = reference.block_select(q.double(), k.double(), static, knobs, video, mask, False, allowed)
    assert torch.equal(indices, truth[0])
    assert torch.equal(counts, truth[1])
    return as_mask(indices, counts)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("video", "text"),
    [(1, 0), (1, 300), (127, 1), (128, 0), (128, 129), (129, 127), (300, 128), (640, 0), (777, 300), (1100, 129)],
)
def test_lists_are_those_of_the_definition(video: int, text: int, masked: bool) -> None:
    q, k, static = inputs(video, text, batch=2, heads=1, dtype=torch.float32)
    assert_as_defined(q, k, static, make_knobs(0.4, 0.3), video, key_masks(video, text) if masked else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [16, 64, 72, 128])
def test_every_head_dim_and_dtype(dim: int, dtype: torch.dtype) -> None:
    assert_as_defined(*inputs(900, 30, heads=1, dim=dim, dtype=dtype), make_knobs(0.4, 0.3), 900)


@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat((x, x), 1)[:, ::2],
        lambda x: x[:1].expand(2, -1, -1, -1),
    ],
)
def test_every_layout_in_memory(strided) -> None:
    q, k, static = inputs(500, 129, batch=2, dtype=torch.float32)
    assert_as_defined(strided(q), strided(k), static.T.contiguous().T, make_knobs(0.3, 0.5), 500)
    assert_as_defined(strided(q), k, static, make_knobs(0.3, 0.5), 500, key_masks(500, 129).T.contiguous().T)


@pytest.mark.parametrize("keep", [1e-6, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("cutoff", [0.0, 0.3, 0.9, 1 - 2**-24])
def test_every_keep_and_cutoff(keep: float, cutoff: float) -> None:
    q, k, _ = inputs(1280, 30, heads=1, dtype=torch.float32)
    chosen = assert_as_defined(4 * q, k, torch.zeros(10, 10, dtype=torch.bool), make_knobs(keep, cutoff), 1280)
    assert (chosen[..., :10].sum(-1) >= math.ceil(keep * 10 - 1e-3)).all()


@given(st.integers(1, 1500), st.sampled_from(TEXTS), st.sampled_from([0.0, 0.4, 0.95]), st.booleans())
@LAW
def test_ties_go_to_the_lower_block(video: int, text: int, cutoff: float, masked: bool) -> None:
    # Integers: means over 128 tokens and their products are exact, and most scores occur more than once.
    video -= video % 128 if video > 128 else 0
    q, k, static = inputs(video, text, batch=2, heads=1, dtype=torch.float32)
    q, k = (x[:, :, :, :4].sign() * (torch.arange(video + text) % 128 < 2)[:, None] for x in (q, k))
    mask = key_masks(video, text) if masked else None
    if mask is not None:
        mask[:, :video] = mask[:, :video:128].repeat_interleave(128, 1)[:, :video]
    assert_as_defined(q, k, static, make_knobs(0.3, cutoff), video, mask)


@pytest.mark.parametrize(("cutoff", "kept"), [(0.0, 2), (0.25, 2), (0.3, 2), (0.5, 3), (0.75, 4)])
def test_equal_scores_share_the_mass(cutoff: float, kept: int) -> None:
    q = torch.ones(1, 1, 512, 16)
    indices, counts = select(q, q, torch.zeros(4, 4, dtype=torch.bool), make_knobs(0.5, cutoff), 512)
    assert counts.unique().tolist() == [kept]
    assert (indices[..., :kept] == torch.arange(kept)).all()


@pytest.mark.parametrize("size", [1e6, 1e15, 1e30])
def test_large_scores_select_as_small_ones_rank(size: float) -> None:
    q, k, _ = inputs(900, 30, dtype=torch.float32)
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    small, _ = select(q, k, nothing, make_knobs(0.5, 0.0), 900)
    for cutoff in (0.0, 0.9):
        assert torch.equal(select(q * size, k, nothing, make_knobs(0.5, cutoff), 900)[0], small)
    assert_as_defined(q * size, k, nothing, make_knobs(0.01, 0.5), 900)


def test_an_item_without_any_valid_token_keeps_each_row_s_own_block() -> None:
    q, k, static = inputs(300, 20, batch=2, dtype=torch.float32)
    mask = torch.ones(2, 320, dtype=torch.bool)
    mask[0] = False
    listed = assert_as_defined(q, k, static, make_knobs(1.0, 0.5), 300, mask)
    assert torch.equal(listed[0], torch.eye(3, 4, dtype=torch.bool).expand(2, 3, 4))


def test_masked_tokens_are_not_read() -> None:
    q, k, static = inputs(600, 129, batch=2, dtype=torch.float32)
    mask, knobs = key_masks(600, 129), make_knobs(0.4, 0.3)
    garbage = [x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (q, k)]
    assert torch.equal(select(*garbage, static, knobs, 600, mask)[0], select(q, k, static, knobs, 600, mask)[0])


@pytest.mark.parametrize("heads", [None, 1, 2])
def test_static_and_allowed_masks_by_head(heads: int | None) -> None:
    q, k, _ = inputs(700, 129, heads=3, dtype=torch.float32)
    shape = (6, 6) if heads is None else (heads, 6, 6)
    always, allowed = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4 for seed in (1, 2))
    assert_as_defined(q, k, always, make_knobs(0.5, 0.2), 700, None, allowed)
    assert_as_defined(q, k, always[..., :1, :1].expand(shape), make_knobs(0.5, 0.2), 700, None, allowed.mT)
    nothing = torch.zeros(shape, dtype=torch.bool)
    assert_as_defined(q[:, :, :700], k[:, :, :700], nothing, make_knobs(0.5, 0.2), 700, None, nothing)


def test_scores_are_as_exact_as_fp32() -> None:
    q, k, best = finely_graded()
    chosen = as_mask(*select(q, k, torch.zeros(40, 40, dtype=torch.bool), make_knobs(0.5, 0.0), 5120))
    assert (chosen == best).all()


def error_bounds(q: torch.Tensor, k: torch.Tensor, dim: int) -> torch.Tensor:
    """How far an fp32 score may be from the one of fp64; absolute sums of pooled q and k, [..., R, D] -> [..., R, R].

    A sum of n rounds n times, each time by 2^-24 of the sum of absolute values: 128 terms in a mean and D in a product,
    whose factors have 2^-22 on top where tensor cores multiply them in two parts.
    """
    return (128 + 128 + dim + 8) * 2.0**-24 * (q @ k.mT) * dim**-0.5


@pytest.mark.parametrize(("keep", "cutoff"), [(0.2, 0.0), (0.01, 0.3), (0.1, 0.25)])
def test_seventy_blocks_are_chosen_within_the_rounding_of_fp32(keep: float, cutoff: float) -> None:
    rows, dim = 70, 72
    q, k, _ = inputs(128 * rows, 0, heads=1, dim=dim, dtype=torch.bfloat16)
    nothing = torch.zeros(rows, rows, dtype=torch.bool)
    chosen = as_mask(*select(q, k, nothing, make_knobs(keep, cutoff), 128 * rows))[0, 0]

    pooled = [x[0, 0].double().unflatten(0, (rows, 128)).mean(1) for x in (q, k)]
    absolute = [x[0, 0].double().abs().unflatten(0, (rows, 128)).mean(1) for x in (q, k)]
    scores, error = pooled[0] @ pooled[1].mT * dim**-0.5, error_bounds(*absolute, dim)
    worst_in = (scores + error).masked_fill(~chosen, torch.inf).amin(1)
    best_out = (scores - error).masked_fill(chosen, -torch.inf).amax(1)
    assert (worst_in >= best_out).all()

    mass = scores.softmax(1)
    slack = 4 * error.amax(1) + rows * 2.0**-22
    taken = chosen.sum(1)
    prefix = mass.sort(descending=True).values.cumsum(1)
    assert (taken >= math.ceil(keep * rows - 1e-3)).all()
    assert ((mass * chosen).sum(1) > cutoff - slack).all()
    without_last = prefix.gather(1, (taken - 2).clamp(min=0)[:, None])[:, 0].where(taken > 1, 0)
    assert ((taken == math.ceil(keep * rows - 1e-3)) | (without_last <= cutoff + slack)).all()


def test_the_provider_is_chosen_by_device_dtype_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from jenga_compile.kernels.block_select import fused as compiled
    from jenga_compile.kernels.block_select import op

    q, blocks = torch.empty(1, 1, 300, 16), BlockLayout(300, 256)
    assert op._provider(q, blocks, parity=False) is gathered.block_select
    monkeypatch.setattr(op, "runs_triton", lambda device: True)
    monkeypatch.setattr(compiled, "most_blocks", lambda device: blocks.keys)
    assert op._provider(q, blocks, parity=False) is compiled.block_select
    assert op._provider(q, blocks, parity=True) is gathered.block_select
    assert op._provider(q.double(), blocks, parity=False) is gathered.block_select
    assert op._provider(q, BlockLayout(429, 256), parity=False) is gathered.block_select


def test_the_interpreter_leaves_no_trace() -> None:
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    places = (tl, tl.core, tl.math, tl.standard, tl.tensor)
    before = [dict(vars(place)) for place in places]
    select(*inputs(200, 0, dtype=torch.float32), make_knobs(0.5, 0.0), 200)
    for place, names in zip(places, before, strict=True):
        assert all(vars(place)[name] is value for name, value in names.items())

    from jenga_compile.kernels.block_select import fused as compiled

    assert compiled is not fused
    assert package.fused is compiled
    assert isinstance(compiled._select, JITFunction)
