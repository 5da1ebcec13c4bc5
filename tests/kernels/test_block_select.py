"""Selection: the reference builder's golden counts, the rule on float64 inputs, and laws for any geometry."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jenga_compile import kernels
from jenga_compile.block_mask import adjacency
from jenga_compile.errors import DeviceMismatch, DtypeMismatch, NotDifferentiable, ShapeMismatch, VideoOutOfRange
from jenga_compile.grid import TokenGrid
from jenga_compile.kernels.block_select import gathered
from jenga_compile.kernels.knobs import make_knobs

select = torch.ops.jenga.block_select
LAW = settings(max_examples=25, deadline=None, derandomize=True)
TEXTS = (0, 1, 127, 128, 129, 300)


def inputs(video: int, text: int, batch: int = 1, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.float64):
    """Seeded q and k [B, H, L, D], and a static mask [R, R] that holds the diagonal and a few more."""
    generator = torch.Generator().manual_seed(1000 * video + text)
    q, k = torch.randn(2, batch, heads, video + text, dim, generator=generator, dtype=torch.float64)
    rows = -(-video // 128)
    static = torch.eye(rows, dtype=torch.bool) | (torch.rand(rows, rows, generator=generator) < 0.1)
    return q.to(dtype), k.to(dtype), static


def key_masks(video: int, text: int) -> torch.Tensor:
    """Two rows [2, L]: one with holes and whole blocks missing at both ends, one with half of the text padding."""
    mask = torch.rand(2, video + text, generator=torch.Generator().manual_seed(video)) < 0.6
    mask[0, : min(video, 130)] = False
    mask[0, video + text // 2 :] = False
    mask[1, :video] = True
    return mask


def as_mask(indices: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Lists as bool [B, H, R, N]; checks on the way that they are ascending, unique and padded with -1."""
    keys = indices.shape[-1]
    used = torch.arange(keys) < counts[..., None]
    assert (indices[~used] == -1).all()
    assert (indices[used] >= 0).all()
    assert (indices[used] < keys).all()
    assert (indices.diff(dim=-1)[used[..., 1:]] > 0).all()
    mask = torch.zeros(*indices.shape[:3], keys + 1, dtype=torch.bool)
    return mask.scatter_(-1, indices.where(used, keys).long(), True)[..., :keys]


def finely_graded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fp32 q and k of 40 blocks, and the best 20 of them for every row, bool [40].

    Scores lie 2^-11 apart, before the scale. Two of them in fp32 err by less, each by D * 2^-24 times the sum of |q k|,
    which is below 2^-12; with 11 bits of q or of k they err by more.
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(64, generator=generator).double()
    k = torch.randn(40, 64, generator=generator).double()
    rank = torch.randperm(40, generator=generator)
    k += (1 + rank * 2.0**-11 - k @ q)[:, None] * q / q.square().sum()
    tokens = torch.zeros(2, 1, 1, 40, 128, 64)
    tokens[0, ..., 0, :], tokens[1, ..., 0, :] = 128 * q, 128 * k
    return *tokens.flatten(3, 4).unbind(), rank >= 20


@pytest.mark.parametrize(
    ("top_k", "cutoff", "alone", "with_adjacency"),
    [
        (1, 0.0, [16, 16, 16, 16], [128, 126, 125, 124]),
        (1, 0.3, [18, 18, 17, 19], [128, 127, 125, 126]),
        (1, 0.9, [48, 46, 49, 50], [145, 143, 149, 149]),
        (8, 0.3, [128, 128, 128, 128], [189, 191, 188, 188]),
    ],
)
@pytest.mark.parametrize("forced", [False, True])
def test_the_release_s_mask_builder_gives_the_same_counts(
    top_k: int, cutoff: float, alone: list[int], with_adjacency: list[int], forced: bool
) -> None:
    b, h, d = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (18, 4, 32)), indexing="ij")
    q = (2 * torch.sin(1.3 * b + 0.7 * h + 0.11 * d)).permute(1, 0, 2).repeat_interleave(128, 1)[None].float()
    k = (2 * torch.cos(0.9 * b - 0.4 * h + 0.17 * d)).permute(1, 0, 2).repeat_interleave(128, 1)[None].float()
    for static, golden in (
        (torch.zeros(16, 16, dtype=torch.bool), alone),
        (adjacency(TokenGrid(8, 16, 16)), with_adjacency),
    ):
        if forced:
            with kernels.use_reference():
                indices, counts = select(q, k, static, make_knobs(top_k / 16, cutoff), 2048)
        else:
            indices, counts = select(q, k, static, make_knobs(top_k / 16, cutoff), 2048)
        assert as_mask(indices, counts)[..., :16].sum((0, 2, 3)).tolist() == golden
        assert (counts - 2).sum((0, 2)).tolist() == golden


DROPS = (0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TABLE_10_2 = {
    900: (450, 270, 225, 179, 135, 89, 45),
    884: (442, 265, 221, 176, 132, 88, 44),
    495: (247, 148, 123, 98, 74, 49, 24),
    220: (110, 66, 55, 43, 33, 21, 11),
    591: (295, 177, 147, 118, 88, 59, 29),
    325: (162, 97, 81, 64, 48, 32, 16),
    256: (128, 76, 64, 51, 38, 25, 12),
    141: (70, 42, 35, 28, 21, 14, 7),
}


@pytest.mark.parametrize("blocks", TABLE_10_2)
def test_parity_counts_as_the_release_does(blocks: int) -> None:
    q = torch.randn(1, 1, 128 * blocks, 2)
    static = torch.zeros(blocks, blocks, dtype=torch.bool)
    found = [
        select(q, q, static, make_knobs(1 - drop, 0.0), 128 * blocks, parity=True)[1].unique().item() for drop in DROPS
    ]
    assert tuple(found) == TABLE_10_2[blocks]


@pytest.mark.parametrize(
    ("keep", "blocks", "kept"), [(0.2, 900, 180), (0.1, 900, 90), (0.7, 10, 7), (0.3, 10, 3), (0.31, 10, 4)]
)
def test_keep_rounds_up_but_not_for_a_float32_s_sake(keep: float, blocks: int, kept: int) -> None:
    q = torch.randn(1, 1, 128 * blocks, 2)
    _, counts = select(q, q, torch.zeros(blocks, blocks, dtype=torch.bool), make_knobs(keep, 0.0), 128 * blocks)
    assert counts.unique().tolist() == [kept]


@given(
    st.integers(1, 1500),
    st.sampled_from(TEXTS),
    st.sampled_from([0.01, 0.2, 0.5, 1.0]),
    st.sampled_from([0.0, 0.4, 0.95]),
    st.booleans(),
    st.booleans(),
)
@example(1, 0, 0.2, 0.0, True, False)
@example(128, 1, 0.2, 0.4, True, False)
@example(129, 129, 0.5, 0.4, True, True)
@LAW
def test_float64_selection_is_the_reference_s(
    video: int, text: int, keep: float, cutoff: float, masked: bool, parity: bool
) -> None:
    q, k, static = inputs(video, text, batch=2)
    mask = key_masks(video, text) if masked else None
    arguments = (q, k, static, make_knobs(keep, cutoff), video, mask, parity)
    fast = select(*arguments)
    with kernels.use_reference():
        slow = select(*arguments)
    assert torch.equal(fast[0], slow[0])
    assert torch.equal(fast[1], slow[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_every_dtype_are_taken_in_float32(dtype: torch.dtype) -> None:
    q, k, static = inputs(1100, 129, dtype=dtype)
    knobs = make_knobs(0.4, 0.3)
    # The inputs are the same numbers in float64, so only a near tie could be decided otherwise; the seed has none.
    same = as_mask(*select(q, k, static, knobs, 1100)) == as_mask(*select(q.double(), k.double(), static, knobs, 1100))
    assert same.all()


def test_scores_are_as_exact_as_fp32() -> None:
    q, k, best = finely_graded()
    chosen = as_mask(*select(q, k, torch.zeros(40, 40, dtype=torch.bool), make_knobs(0.5, 0.0), 5120))
    assert (chosen == best).all()


def test_ties_go_to_the_lower_block() -> None:
    q = torch.ones(1, 1, 128 * 9, 16)
    indices, counts = select(q, q, torch.zeros(9, 9, dtype=torch.bool), make_knobs(0.4, 0.0), 128 * 9)
    assert counts.unique().tolist() == [4]
    assert (indices[..., :4] == torch.arange(4)).all()


@pytest.mark.parametrize(("cutoff", "kept"), [(0.0, 1), (0.25, 2), (0.3, 2), (0.5, 3), (0.75, 4)])
def test_the_mass_must_exceed_the_cutoff_not_only_reach_it(cutoff: float, kept: int) -> None:
    q = torch.ones(1, 1, 128 * 4, 16)
    _, counts = select(q, q, torch.zeros(4, 4, dtype=torch.bool), make_knobs(0.01, cutoff), 128 * 4)
    assert counts.unique().tolist() == [kept]


def test_best_block_is_chosen_by_the_mean_of_its_own_tokens() -> None:
    # Two tokens of 3 make a better partial block than a full block of 2; dividing by 128 would rank it last.
    q, k = torch.ones(1, 1, 130, 16), torch.full((1, 1, 130, 16), 2.0)
    k[:, :, 128:] = 3.0
    indices, _ = select(q, k, torch.zeros(2, 2, dtype=torch.bool), make_knobs(0.5, 0.0), 130)
    assert indices[..., 0].tolist() == [[[1, 1]]]


@given(st.integers(1, 1500), st.sampled_from(TEXTS), st.booleans())
@LAW
def test_lists_grow_with_keep_and_with_cutoff(video: int, text: int, masked: bool) -> None:
    q, k, static = inputs(video, text, batch=2)
    mask = key_masks(video, text) if masked else None
    for ladder in ([(0.01, 0.0), (0.3, 0.0), (0.6, 0.0), (1.0, 0.0)], [(0.01, 0.2), (0.01, 0.6), (0.01, 0.99)]):
        masks = [as_mask(*select(q, k, static, make_knobs(*knobs), video, mask)) for knobs in ladder]
        for fewer, more in pairwise(masks):
            assert (fewer <= more).all()


@given(st.integers(1, 1500), st.sampled_from(TEXTS))
@LAW
def test_every_row_has_its_static_blocks_and_all_text(video: int, text: int) -> None:
    q, k, static = inputs(video, text)
    mask = as_mask(*select(q, k, static, make_knobs(0.1, 0.0), video))
    rows = static.shape[0]
    assert (mask[..., :rows] >= static).all()
    assert mask[..., rows:].all()


@given(st.integers(1, 1500), st.sampled_from(TEXTS))
@LAW
def test_heads_are_selected_for_one_by_one(video: int, text: int) -> None:
    q, k, static = inputs(video, text, heads=4)
    indices, counts = select(q, k, static, make_knobs(0.3, 0.3), video)
    order = torch.tensor([2, 0, 3, 1])
    permuted = select(q[:, order], k[:, order], static, make_knobs(0.3, 0.3), video)
    assert torch.equal(permuted[0], indices[:, order])
    assert torch.equal(permuted[1], counts[:, order])


@given(st.integers(1, 1500), st.sampled_from(TEXTS))
@example(100, 0)
@LAW
def test_masked_tokens_neither_matter_nor_are_listed(video: int, text: int) -> None:
    q, k, static = inputs(video, text, batch=2)
    masks = key_masks(video, text)
    knobs = make_knobs(0.3, 0.3)
    indices, counts = select(q, k, static, knobs, video, masks)
    garbage = [x.masked_fill(~masks[:, None, :, None], 1e6) for x in (q, k)]
    assert torch.equal(select(*garbage, static, knobs, video, masks)[0], indices)
    assert (counts >= 1).all()

    listed = as_mask(indices, counts)
    starts = [*range(0, video, 128), *range(video, video + text, 128)]
    stops = [min(start + 128, video if start < video else video + text) for start in starts]
    for item in range(2):
        dead = [not masks[item, start:stop].any() for start, stop in zip(starts, stops, strict=True)]
        if not all(dead):
            assert not listed[item][..., torch.tensor(dead)].any()


def test_an_item_without_any_valid_token_keeps_each_row_s_own_block() -> None:
    q, k, static = inputs(300, 20)
    indices, counts = select(q, k, static, make_knobs(1.0, 0.0), 300, torch.zeros(1, 320, dtype=torch.bool))
    assert counts.unique().tolist() == [1]
    assert indices[0, 0, :, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [1e6, 1e15, 1e30])
def test_large_scores_select_as_small_ones_rank(size: float) -> None:
    q, k, _ = inputs(900, 30, dtype=torch.float32)
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    indices, counts = select(q * size, k, nothing, make_knobs(0.5, 0.9), 900)
    small, _ = select(q, k, nothing, make_knobs(0.5, 0.0), 900)
    assert counts.unique().tolist() == [5]
    assert torch.equal(indices, small)


@pytest.mark.parametrize(("video", "text", "masked"), [(300, 20, False), (256, 0, False), (300, 129, True)])
def test_the_registration_is_sound(video: int, text: int, masked: bool) -> None:
    q, k, static = inputs(video, text, batch=2, dtype=torch.float32)
    q, k = q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT
    mask = key_masks(video, text) if masked else None
    torch.library.opcheck(select, (q, k, static, make_knobs(0.5, 0.0), video, mask))


def test_use_reference_bypasses_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, static = inputs(300, 20)
    monkeypatch.setattr(gathered, "block_select", lambda *_: pytest.fail("the fast path ran"))
    with kernels.use_reference():
        select(q, k, static, make_knobs(0.5, 0.0), 300)


Q, STATIC = torch.randn(1, 2, 300, 16), torch.eye(3, dtype=torch.bool)
KNOBS = make_knobs(0.5, 0.0)


@pytest.mark.parametrize(
    ("misuse", "error", "text"),
    [
        (lambda: select(Q[0], Q[0], STATIC, KNOBS, 300), ShapeMismatch, r"q has shape \(2, 300, 16\)"),
        (lambda: select(Q, Q[:, :, 1:], STATIC, KNOBS, 300), ShapeMismatch, r"k has shape .*299"),
        (lambda: select(Q, Q, STATIC[1:], KNOBS, 300), ShapeMismatch, r"static_mask has shape \(2, 3\)"),
        (lambda: select(Q, Q, STATIC, KNOBS, 300, STATIC), ShapeMismatch, r"key_mask has shape \(3, 3\)"),
        (lambda: select(Q, Q, STATIC, KNOBS[:2], 300), ShapeMismatch, r"knobs has shape \(2,\)"),
        (lambda: select(Q, Q.double(), STATIC, KNOBS, 300), DtypeMismatch, "k is torch.float64"),
        (lambda: select(Q.int(), Q.int(), STATIC, KNOBS, 300), DtypeMismatch, "q is torch.int32"),
        (lambda: select(Q, Q, STATIC.float(), KNOBS, 300), DtypeMismatch, "static_mask is torch.float32"),
        (lambda: select(Q, Q, STATIC, KNOBS.double(), 300), DtypeMismatch, "knobs is torch.float64"),
        (lambda: select(Q, Q, STATIC, KNOBS, 301), VideoOutOfRange, r"video=301 is outside \[1, 300\]"),
        (lambda: select(Q, Q, STATIC, KNOBS, 0), VideoOutOfRange, "video=0"),
    ],
)
def test_misuse_is_named(misuse: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        misuse()


def test_tensors_of_another_device_are_refused() -> None:
    from jenga_compile.kernels.checks import check_knobs

    with pytest.raises(DeviceMismatch, match=r"knobs is on meta, q is on cpu"):
        check_knobs("block_select", KNOBS.to("meta"), torch.device("cpu"))


def test_nothing_here_is_differentiable() -> None:
    _, counts = select(Q.clone().requires_grad_(), Q, STATIC, KNOBS, 300)
    assert not counts.is_floating_point()
    assert not counts.requires_grad
    from jenga_compile.kernels.checks import refuse_backward

    with pytest.raises(NotDifferentiable, match="block_select has no backward"):
        refuse_backward("block_select")


@pytest.mark.parametrize("heads", [None, 2])
def test_what_is_not_allowed_is_dropped_where_importance_takes_it(heads: int | None) -> None:
    q, k = torch.randn(2, 1, 3, 700, 16, generator=torch.Generator().manual_seed(0)).unbind()
    shape = (6, 6) if heads is None else (heads, 6, 6)
    always, allowed = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5 for seed in (1, 2))
    knobs = make_knobs(0.5, 0.0)
    none = torch.zeros_like(always)
    free = as_mask(*select(q, k, none, knobs, 700))
    bound = as_mask(*select(q, k, always, knobs, 700, allowed_mask=allowed))
    with kernels.use_reference():
        assert torch.equal(as_mask(*select(q, k, always, knobs, 700, allowed_mask=allowed)), bound)
    if heads is not None:
        always, allowed = (mask[torch.arange(3) % heads] for mask in (always, allowed))
    expected = (free & allowed) | always
    own = torch.eye(6, dtype=torch.bool) & ~expected.any(-1, keepdim=True)
    assert torch.equal(bound, (expected | own).expand_as(bound))
