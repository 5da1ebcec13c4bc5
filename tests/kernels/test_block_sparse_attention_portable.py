"""The portable kernel of attention over lists, interpreted on the CPU: against dense attention in float64.

In fp32 and fp16: the interpreter keeps bf16 as bit patterns, and multiplies those.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jenga_compile.grid import BLOCK
from jenga_compile.kernels.blocks import BlockLayout
from jenga_compile.kernels.knobs import make_knobs
from tests.kernels.interpreter import interpreted
from tests.kernels.test_block_sparse_attention import (
    TEXTS,
    all_blocks,
    assert_attends,
    key_masks,
    qkv,
    random_lists,
    uninitialised_memory_is_nan,  # noqa: F401  (a fixture of every test here)
)

portable = interpreted("jenga_compile.kernels.block_sparse_attention.portable")
Config = portable.Config
CONFIGS = tuple(
    Config(queries=queries, keys=keys, warps=4, stages=2, descriptors=descriptors)
    for queries, keys, descriptors in ((64, 32, False), (128, 64, False), (64, 128, True), (128, 128, True))
)
POINTERS, DESCRIPTORS = CONFIGS[1], CONFIGS[3]

# numpy warns of what the kernels then leave out: 1 / 0 and log 0 of a row without keys, logits past fp32.
pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero encountered in (divide|log2):RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in (matmul|multiply):RuntimeWarning"),
]


def computed(config: object = DESCRIPTORS) -> Callable[..., torch.Tensor]:
    """The operator with its default scale, by the kernel cut as in `config`."""

    def by(q, k, v, indices, counts, knobs, video, key_mask=None):
        return portable.block_sparse_attention(
            q, k, v, indices, counts, knobs, video, key_mask, q.shape[-1] ** -0.5, config=config
        )

    return by


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("video", [1, 127, 128, 129, 300])
def test_any_length(video: int, text: int) -> None:
    q, k, v = qkv(video, text, batch=2, heads=1)
    lists = random_lists(video, text, 2, 1, 0.5)
    assert_attends(q, k, v, lists, video, text_bias=0.7, by=computed())
    assert_attends(q, k, v, lists, video, key_masks(video, text), text_bias=-0.5, by=computed())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_cut(config: object, dtype: torch.dtype) -> None:
    q, k, v = qkv(300, 2, batch=2, heads=1, dtype=dtype)
    lists = random_lists(300, 2, 2, 1, 0.6)
    assert_attends(q, k, v, lists, 300, text_bias=0.3, by=computed(config))
    assert_attends(q, k, v, lists, 300, key_masks(300, 2), text_bias=0.3, by=computed(config))


@pytest.mark.parametrize(
    ("config", "dtype"), [(POINTERS, torch.float32), (DESCRIPTORS, torch.float16)], ids=["pointers", "descriptors"]
)
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 16), (64, 64), (72, 72), (128, 128), (16, 40), (72, 16)])
def test_every_head_dim(dim: int, value_dim: int, config: object, dtype: torch.dtype) -> None:
    q, k, _ = qkv(300, 2, heads=1, dim=dim, dtype=dtype)
    v = qkv(300, 2, heads=1, dim=value_dim, dtype=dtype)[2]
    assert_attends(q, k, v, random_lists(300, 2, 1, 1, 0.6), 300, text_bias=0.3, by=computed(config))


@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_rows_without_blocks_are_zeros(config: object, text: int) -> None:
    q, k, v = qkv(200, text, heads=1)
    assert_attends(q, k, v, random_lists(200, text, 1, 1, 0.0), 200, text_bias=0.7, by=computed(config))


def test_an_item_without_any_key_gives_zeros() -> None:
    q, k, v = qkv(200, 20, batch=2)
    mask = torch.tensor([True, False])[:, None].expand(2, 220)
    out = assert_attends(q, k, v, all_blocks(200, 20, batch=2), 200, mask, by=computed())
    assert (out[1] == 0).all()


@pytest.mark.parametrize("size", [1e3, 1e4])
@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS], ids=str)
def test_large_logits_stay_finite(config: object, size: float) -> None:
    q, k, v = qkv(300, 30, heads=1)
    lists = random_lists(300, 30, 1, 1, 0.7)
    assert_attends(size * q, k, v, lists, 300, text_bias=0.3, by=computed(config))
    k[:, :, ::3] = -size * q.mean(2, keepdim=True)
    assert_attends(q, k, v, lists, 300, by=computed(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("token", [0, 290, 329])
def test_one_key_may_outweigh_all_others(token: int, dtype: torch.dtype) -> None:
    """It comes first, in the middle or last of what a row sees: the running maximum rises late, early or never."""
    q, k, v = qkv(300, 30, heads=1, dtype=dtype)
    k[:, :, token] *= 1000
    assert_attends(q, k, v, all_blocks(300, 30, heads=1), 300, by=computed())


@pytest.mark.parametrize("garbage", [1e6, -1e6, 3e38])
def test_masked_keys_have_no_influence_to_the_last_bit(garbage: float) -> None:
    q, k, v = qkv(300, 30, batch=2, heads=1)
    mask = key_masks(300, 30)
    rest = (*random_lists(300, 30, 2, 1, 0.6), make_knobs(1.0, 0.0), 300, mask)
    dirty_k, dirty_v = (x.masked_fill(~mask[:, None, :, None], garbage) for x in (k, v))
    assert torch.equal(computed()(q, dirty_k, dirty_v, *rest), computed()(q, k, v, *rest))


def test_what_is_past_the_count_is_not_read() -> None:
    q, k, v = qkv(300, 20)
    indices, counts = random_lists(300, 20, 1, 2, 0.5)
    rest = (counts, make_knobs(1.0, 0.0), 300)
    poisoned = indices.masked_fill(indices == -1, 12345)
    assert torch.equal(computed()(q, k, v, poisoned, *rest), computed()(q, k, v, indices, *rest))


@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack((x, x + 1, x - 1), 3).unbind(3)[0],
        lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.nn.functional.pad(x, (0, 1))[..., :-1],
    ],
    ids=["BSHD", "one tensor of q, k and v", "half of the heads", "head dim not last", "rows of odd size"],
)
def test_any_storage(stored: Callable[[torch.Tensor], torch.Tensor]) -> None:
    q, k, v = (stored(x) for x in qkv(200, 30, batch=2))
    config = DESCRIPTORS if portable._copyable(k) else POINTERS
    lists = random_lists(200, 30, 2, 2, 0.6)
    out = assert_attends(q, k, v, lists, 200, by=computed(config))
    assert out.transpose(1, 2).is_contiguous()
    apart = [torch.stack((x, x), -1)[..., 0] for x in lists]
    mask = key_masks(200, 30)
    assert_attends(q, k, v, apart, 200, mask.T.contiguous().T, by=computed(config))


def test_a_list_may_be_longer_than_one_read_of_it() -> None:
    """Of the launch that counts special blocks: here all from block 1, the first of the text, on."""
    indices, counts = all_blocks(BLOCK, 1100 * BLOCK, heads=1)
    special = portable.special_blocks(indices, counts, BlockLayout(1101 * BLOCK, BLOCK), None)
    assert special.counts.tolist() == [[[1100]]]


@pytest.mark.parametrize("weight", [-60.0, -3.0, 3.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_plain_and_special_blocks_share_one_softmax(dtype: torch.dtype, weight: float) -> None:
    """Text keys, all of the second launch, weigh less or more than the video's, or all but nothing."""
    q, k, v = qkv(256, 30, heads=1, dtype=dtype)
    v[:, :, 256:] += 4
    assert_attends(q, k, v, all_blocks(256, 30, heads=1), 256, text_bias=weight, by=computed())


def test_without_a_gpu_to_measure_the_safe_cut_is_taken() -> None:
    q, k, v = qkv(129, 20)
    assert portable._tuned(q, k, v) is None
    assert not portable.proven(q, v)
    assert_attends(q, k, v, all_blocks(129, 20), 129, by=computed(config=None))


@pytest.mark.parametrize(
    ("capability", "dtype", "dims", "specialized"),
    [
        ((9, 0), torch.bfloat16, (128, 128), True),
        ((9, 0), torch.float16, (64, 128), True),
        ((9, 0), torch.bfloat16, (72, 72), True),
        ((9, 0), torch.bfloat16, (16, 128), False),
        ((9, 0), torch.bfloat16, (128, 256), False),
        ((9, 0), torch.float32, (64, 64), False),
        ((10, 0), torch.bfloat16, (128, 128), False),
    ],
)
def test_warps_of_its_own_are_for_hopper_and_what_fits_it(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    dims: tuple[int, int],
    specialized: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    offered = portable._candidates(torch.device("cuda"), dtype, *dims, copied=True)
    assert [config.specialize for config in offered] == [specialized] * specialized + [False] * (
        len(offered) - specialized
    )
    assert not any(config.descriptors for config in portable._candidates(torch.device("cuda"), dtype, *dims, False))


@pytest.mark.parametrize(("dim", "most"), [(64, 3), (128, 3), (256, 1)])
def test_fp32_is_offered_what_compiles_in_seconds(dim: int, most: int) -> None:
    """Without tensor cores, two tiles of 128 x 64 at head dim 256 take three minutes."""
    offered = portable._candidates(torch.device("cuda"), torch.float32, dim, dim, copied=True)
    assert len(offered) == most
    assert all(config.queries * config.keys <= 64 * 64 for config in offered)


def test_descriptors_read_what_the_copy_engine_can() -> None:
    x = torch.zeros(2, 3, 40, 24, dtype=torch.float16)
    assert portable._copyable(x)
    assert portable._copyable(x.transpose(1, 2))
    assert portable._copyable(x[..., :17])
    assert not portable._copyable(x[..., :23].contiguous())
    assert not portable._copyable(x[..., 1:])


def test_the_first_block_that_needs_a_mask() -> None:
    """The partial block, the text, or a full block with a hole."""
    mask = torch.ones(4, 500 + 20, dtype=torch.bool)
    mask[1, 300] = False
    mask[2, [383, 128]] = False
    mask[3, 450:] = False
    for video, key_mask, first in (
        (500, mask, [3, 2, 1, 3]),
        (500, mask.T.contiguous().T, [3, 2, 1, 3]),
        (500, None, [3] * 4),
        (512, mask, [4, 2, 1, 3]),
        (100, mask, [0] * 4),
    ):
        indices, counts = all_blocks(video, 520 - video, 4)
        indices[..., 0, :2], counts[..., 0] = indices[..., 0, 1:3].clone(), 1
        blocks = BlockLayout(520, video)
        special = portable.special_blocks(indices, counts, blocks, key_mask)
        assert special.first.tolist() == first
        used = torch.arange(blocks.keys) < counts[..., None]
        listed = (indices >= special.first[:, None, None, None]) & used
        assert torch.equal(special.counts, listed.sum(-1, dtype=torch.int32))
        tokens = [min(128, video - start) for start in range(0, video, 128)]
        tokens += [min(128, 520 - start) for start in range(video, 520, 128)]
        there = torch.arange(128) < torch.tensor([*tokens, 0])[:, None]
        valid = there.expand(4, -1, -1).clone()
        valid[:, there] = torch.ones(4, 520, dtype=torch.bool) if key_mask is None else key_mask
        assert torch.equal(special.caps, torch.where(valid, torch.inf, -torch.inf))
