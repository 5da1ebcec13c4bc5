"""Attention over lists by FlashAttention 4: how it is taken apart, what FlashAttention gets, how it is put together.

FlashAttention is a stand-in here that computes in float32, and leaves garbage where it has no keys. The merging kernel
is interpreted, so fp16 stands for bf16 (`test_block_sparse_attention_portable.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which has wheels for Linux only", exc_type=ImportError)

from jenga_compile.kernels.block_sparse_attention import flash4
from jenga_compile.kernels.knobs import make_knobs
from tests.kernels.interpreter import interpreted
from tests.kernels.test_block_sparse_attention import (
    TEXTS,
    all_blocks,
    assert_attends,
    qkv,
    random_lists,
    uninitialised_memory_is_nan,  # noqa: F401  (a fixture of every test here)
)

merging = interpreted("jenga_compile.kernels.block_sparse_attention.flash4_merge")


class Flash:
    """`flash_attn.cute.interface`, as far as it is used; refuses what the package refuses."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, bool]] = []

    def _flash_attn_fwd(self, q, k, v, *, softmax_scale, block_sparse_tensors, out, lse) -> None:
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        assert out.stride()[-2:] == (out.shape[-1], 1)
        self.calls.append((q.shape[1], k.shape[1], block_sparse_tensors is not None))
        logits = q.float().transpose(1, 2) @ k.float().permute(0, 2, 3, 1) * softmax_scale
        if block_sparse_tensors is not None:
            logits = logits.masked_fill(~listed(block_sparse_tensors, *logits.shape), -torch.inf)
        sums = logits.logsumexp(-1)
        weights = (logits - sums[..., None]).exp().nan_to_num(nan=torch.nan)
        out.copy_((weights @ v.float().transpose(1, 2)).transpose(1, 2))
        if lse is not None:
            assert lse.is_contiguous()
            # A row without keys: garbage, as its output is.
            lse.copy_(sums.masked_fill(sums.isneginf(), torch.nan))


def listed(lists: SimpleNamespace, batch: int, heads: int, queries: int, keys: int) -> torch.Tensor:
    """The lists as a mask [B, H, queries, keys]."""
    rows, columns = -(-queries // 128), -(-keys // 128)
    assert lists.block_size == (128, 128)
    for counts, indices in (
        (lists.mask_block_cnt, lists.mask_block_idx),
        (lists.full_block_cnt, lists.full_block_idx),
    ):
        assert counts.dtype == indices.dtype == torch.int32
        assert counts.shape == (batch, heads, rows)
        assert counts.is_contiguous()
        assert indices.shape[:3] == (batch, heads, rows)
        assert 1 <= indices.shape[3] <= columns
        assert indices.stride(3) == 1
    assert not lists.mask_block_cnt.any()
    mask = torch.zeros(batch, heads, queries, keys, dtype=torch.bool)
    for item, head, row in torch.cartesian_prod(*map(torch.arange, (batch, heads, rows))).tolist():
        count = int(lists.full_block_cnt[item, head, row])
        blocks = lists.full_block_idx[item, head, row, :count].tolist()
        # Ascending, so that the block which reaches past the end is last: no other is masked there.
        assert blocks == sorted(set(blocks))
        assert set(blocks) <= set(range(columns))
        for block in blocks:
            mask[item, head, row * 128 : row * 128 + 128, block * 128 : block * 128 + 128] = True
    return mask


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    stand_in = Flash()
    sparsity = SimpleNamespace(BlockSparseTensorsTorch=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "flash_attn.cute", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", stand_in)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.block_sparsity", sparsity)
    monkeypatch.setattr(flash4, "merge", merging.merge)
    return stand_in


def computed(q, k, v, indices, counts, knobs, video, key_mask=None) -> torch.Tensor:
    assert key_mask is None
    return flash4.block_sparse_attention(q, k, v, indices, counts, knobs, video, None, q.shape[-1] ** -0.5)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("video", [1, 127, 128, 129, 300, 1000])
def test_any_length(video: int, text: int, flash: Flash) -> None:
    q, k, v = qkv(video, text, batch=2)
    assert_attends(q, k, v, random_lists(video, text, 2, 2, 0.5), video, text_bias=0.7, by=computed)
    text_calls = [(video, text, True), (text, video + text, False)] if text else []
    assert flash.calls == [(video, video, True), *text_calls]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dim", [16, 24, 64, 72, 128])
def test_every_head_dim(dim: int, dtype: torch.dtype) -> None:
    q, k, v = qkv(300, 129, dim=dim, dtype=dtype)
    assert_attends(q, k, v, random_lists(300, 129, 1, 2, 0.6), 300, text_bias=-0.4, by=computed)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.1])
@pytest.mark.parametrize("text", [0, 129])
def test_rows_without_video_without_text_and_without_any_key(text: int, share: float) -> None:
    q, k, v = qkv(500, text, batch=2, heads=3)
    lists = random_lists(500, text, 2, 3, share)
    assert_attends(q, k, v, lists, 500, text_bias=0.7, by=computed)
    only_video = lists[0], (lists[0] < 4).logical_and(lists[0] >= 0).sum(-1, dtype=torch.int32)
    assert_attends(q, k, v, only_video, 500, text_bias=0.7, by=computed)


@pytest.mark.parametrize("bias", [-300.0, -2.0, 0.0, 0.7, 300.0])
def test_any_bias(bias: float) -> None:
    q, k, v = qkv(300, 20)
    assert_attends(q, k, v, all_blocks(300, 20), 300, text_bias=bias, by=computed)


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_large_logits_stay_finite(size: float) -> None:
    """Through a log-sum-exp in float32, whose unit at 1e4 is 1e-3: as precise as the dtype it is for, fp16."""
    q, k, v = qkv(300, 130, dtype=torch.float16)
    lists = random_lists(300, 130, 1, 2, 0.7)
    assert_attends(q * (size / 4), k, v, lists, 300, text_bias=0.3, by=computed)
    k[:, :, ::3] = -q.mean(2, keepdim=True) * size
    assert_attends(q, k, v, lists, 300, by=computed)


def test_what_is_past_the_count_is_not_read() -> None:
    q, k, v = qkv(500, 300)
    indices, counts = random_lists(500, 300, 1, 2, 0.5)
    rest = (counts, make_knobs(1.0, 0.0), 500)
    expected = computed(q, k, v, indices, *rest)
    for poison in (12345, -12345, 0, 4, 6):
        assert torch.equal(computed(q, k, v, indices.masked_fill(indices == -1, poison), *rest), expected)


@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack((x, x + 1, x - 1), 3).unbind(3)[0],
        lambda x: x.mT.contiguous().mT,
    ],
    ids=["BSHD", "one tensor of q, k and v", "head dim not last"],
)
@pytest.mark.parametrize("text", [0, 129])
def test_any_storage(stored: Callable[[torch.Tensor], torch.Tensor], text: int) -> None:
    q, k, v = qkv(200, text, batch=2)
    lists = [torch.stack((x, x), -1)[..., 0] for x in random_lists(200, text, 2, 2, 0.6)]
    out = assert_attends(*map(stored, (q, k, v)), lists, 200, by=computed)
    assert out.transpose(1, 2).is_contiguous()
