"""FlexAttention with a converted mask is dense attention with the mask of tokens; and back again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from jenga_compile.block_mask import (
    Adjacency,
    Condition,
    Fixed,
    Importance,
    Mask,
    Own,
    PerHead,
    Spatial,
    Temporal,
    Tile,
    Window,
    from_flex,
    to_flex,
)
from jenga_compile.errors import FlexMaskUnfit, MaskNotStatic, OutOfRange
from jenga_compile.grid import TokenGrid
from tests.block_mask.strategies import ANY_STATIC, KINDS
from tests.tolerance import assert_rounding, eager_attention

ALIGNED = TokenGrid(3, 8, 16)
GRIDS = st.sampled_from([ALIGNED, TokenGrid(2, 8, 8), TokenGrid(3, 10, 11), TokenGrid(1, 7, 9), TokenGrid(5, 7, 9)])
TEXTS = st.sampled_from([0, 1, 20, 128, 150, 300])
HEADS = PerHead((Spatial(0) | Condition(), Temporal() | Own()))
LAW = settings(max_examples=25, deadline=None, derandomize=True)


def token_mask(mask: Mask, grid: TokenGrid, kind: str, text: int, heads: int) -> torch.Tensor:
    """The mask of blocks stretched to every token, [H, L, L]; queries of the condition see everything."""
    seen = mask.dense_with_text(grid, kind, text)  # type: ignore[arg-type]
    seen = seen.reshape(-1, *seen.shape[-2:])
    video = torch.arange(grid.tokens) // 128
    keys = torch.cat([video, grid.blocks() + torch.arange(text) // 128])
    rows = seen[:, video][:, :, keys]
    every = torch.cat([rows, torch.ones(len(seen), text, grid.tokens + text, dtype=torch.bool)], dim=1)
    return every[torch.arange(heads) % len(every)]


def tokens_of(block_mask: BlockMask, heads: int) -> torch.Tensor:
    """What a kernel makes of it, [H, L, L]: lists first, `mask_mod` in those listed as partial."""
    length = block_mask.seq_lengths[0]
    said = create_mask(block_mask.mask_mod, 1, heads, length, length, device="cpu")[0]
    listed = [
        BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=block_mask.BLOCK_SIZE).to_dense()[0]
        for counts, indices in (
            (block_mask.kv_num_blocks, block_mask.kv_indices),
            (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
        )
    ]
    partial, full = (x.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :length, :length].bool() for x in listed)
    assert not (partial & full).any()
    return partial & said | full


@LAW
@given(ANY_STATIC, GRIDS, KINDS, TEXTS)
def test_the_lists_and_the_function_say_what_the_mask_says(mask: Mask, grid: TokenGrid, kind: str, text: int) -> None:
    expected = token_mask(mask, grid, kind, text, mask.heads)
    assert torch.equal(tokens_of(to_flex(mask, grid, kind, text), mask.heads), expected)  # type: ignore[arg-type]


@LAW
@given(ANY_STATIC, GRIDS, KINDS, TEXTS)
def test_back_again(mask: Mask, grid: TokenGrid, kind: str, text: int) -> None:
    back = from_flex(to_flex(mask, grid, kind, text), text)  # type: ignore[arg-type]
    dense = mask.dense_with_text(grid, kind, text)  # type: ignore[arg-type]
    fixed = tuple(Fixed.of(matrix) for matrix in dense.reshape(-1, *dense.shape[-2:]))
    assert back == (fixed[0] if len(fixed) == 1 else PerHead(fixed))
    again = to_flex(back, grid, kind, text)  # type: ignore[arg-type]
    assert torch.equal(again.to_dense(), to_flex(mask, grid, kind, text).to_dense())  # type: ignore[arg-type]


def assert_attends(attend: Callable[..., torch.Tensor], mask: Mask, grid: TokenGrid, text: int) -> None:
    """The numbers of four heads are those of dense attention under the mask of tokens."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, grid.tokens + text, 16, generator=generator)
    bias = torch.zeros(4, q.shape[2], q.shape[2]).masked_fill(~token_mask(mask, grid, "gilbert", text, 4), -torch.inf)
    out = attend(q, k, v, block_mask=to_flex(mask, grid, text=text, heads=4))
    truth = eager_attention(q.double(), k.double(), v.double(), bias)
    assert_rounding(out, truth, eager_attention(q, k, v, bias), v)


MASKS = pytest.mark.parametrize("mask", [Adjacency() | Condition(), Tile((1, 4, 4), (1, 1, 3)), HEADS], ids=repr)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@MASKS
@pytest.mark.parametrize(
    ("grid", "text"), [(ALIGNED, 0), (ALIGNED, 150), (TokenGrid(3, 10, 11), 20), (TokenGrid(5, 7, 9), 300)]
)
def test_flex_attention_gives_the_numbers_of_dense_attention(mask: Mask, grid: TokenGrid, text: int) -> None:
    assert_attends(flex_attention, mask, grid, text)


@MASKS
def test_compiled_flex_attention_does_too(mask: Mask) -> None:
    # Inductor's CPU kernel for a table of dynamic size does not compile.
    assert_attends(torch.compile(flex_attention, dynamic=False), mask, TokenGrid(3, 10, 11), 20)


def test_aligned_blocks_are_visible_whole_or_not_at_all() -> None:
    """No block then asks the function, which is what makes FlexAttention fast."""
    assert not to_flex(HEADS, ALIGNED, text=256).kv_num_blocks.any()
    assert to_flex(HEADS, ALIGNED, text=20).kv_num_blocks.any()


def test_heads_are_repeated_in_turn() -> None:
    two, five = to_flex(HEADS, ALIGNED), to_flex(HEADS, ALIGNED, heads=5)
    assert torch.equal(five.to_dense(), two.to_dense()[:, [0, 1, 0, 1, 0]])
    assert to_flex(Own(), ALIGNED, heads=5).to_dense().shape[:2] == (1, 1)


@pytest.mark.parametrize("size", [64, 128, (128, 256), 384])
def test_a_mask_of_blocks_is_read_off_any_block_size(size: int | tuple[int, int]) -> None:
    wanted = Window(4).dense(ALIGNED)
    tokens = wanted.repeat_interleave(128, 0).repeat_interleave(128, 1)
    flex = create_block_mask(lambda b, h, q, k: tokens[q, k], None, None, 384, 384, device="cpu", BLOCK_SIZE=size)
    assert from_flex(flex) == Fixed.of(wanted)


def test_what_is_no_mask_of_blocks_is_refused() -> None:
    causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, 384, 384, device="cpu")
    with pytest.raises(FlexMaskUnfit, match=r"block \(0, 0\) of 128x128 tokens is visible in part"):
        from_flex(causal)
    halves = create_block_mask(lambda b, h, q, k: q // 64 == k // 64, None, None, 384, 384, "cpu", BLOCK_SIZE=64)
    with pytest.raises(FlexMaskUnfit, match="visible in part"):
        from_flex(halves)
    cross = create_block_mask(lambda b, h, q, k: q >= 0, None, None, 128, 256, device="cpu")
    with pytest.raises(FlexMaskUnfit, match="128 queries on 256 keys"):
        from_flex(cross)
    samples = create_block_mask(lambda b, h, q, k: (q // 128 == k // 128) | (b > 0), 2, None, 256, 256, device="cpu")
    with pytest.raises(FlexMaskUnfit, match="samples of the batch"):
        from_flex(samples)
    video_alone = to_flex(Own(), ALIGNED)
    with pytest.raises(FlexMaskUnfit, match="not all of the last 128 queries"):
        from_flex(video_alone, text=128)
    with pytest.raises(FlexMaskUnfit, match="visible in part"):
        from_flex(to_flex(Own(), TokenGrid(3, 10, 11), text=20))


def test_bad_sizes_and_masks_are_refused() -> None:
    with pytest.raises(OutOfRange, match="text 384"):
        from_flex(to_flex(Own(), ALIGNED), text=384)
    with pytest.raises(OutOfRange, match="text -1"):
        to_flex(Own(), ALIGNED, text=-1)
    with pytest.raises(OutOfRange, match="heads 0"):
        to_flex(HEADS, ALIGNED, heads=0)
    with pytest.raises(MaskNotStatic, match="Importance"):
        to_flex(Importance() | Own(), ALIGNED)
