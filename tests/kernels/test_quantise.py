"""Eight-bit copies of q, k and v, made by Triton's interpreter.

The interpreter converts to e4m3 less well than a GPU: it truncates numbers below 2^-6 instead of rounding them, and it
loses a carry, so that what should be rounded up to a power of two becomes half of it. `assert_eight_bits` allows that.
"""

from __future__ import annotations

import pytest
import torch

from jenga_compile.kernels.blocks import BlockLayout
from tests.kernels.interpreter import interpreted

quantise = interpreted("jenga_compile.kernels.block_sparse_attention.quantise")

ORDER = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
"""Which key of 16 is at each place of v."""

SHAPES = {
    "one video block": (1, 0, 128),
    "whole blocks": (256, 128, 64),
    "partial video, no text": (200, 0, 72),
    "partial video and text": (200, 70, 128),
    "more than a chunk": (2100, 5, 64),
}


def qkv(length: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """q, k and v [2, 2, L, D] of three sizes; k has a mean."""
    random = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, length, 2, dim, generator=random) * size for size in (1.0, 2.0, 30.0))
    return [x.to(dtype).transpose(1, 2) for x in (q, k + 3, v)]


def in_blocks(x: torch.Tensor, blocks: BlockLayout, width: int) -> torch.Tensor:
    """x [B, H, L, D] as [B, H, N, 128, D'], zeros where there is nothing."""
    out = torch.zeros(*x.shape[:2], blocks.keys * 128, width, dtype=torch.float64)
    out[:, :, : blocks.video, : x.shape[3]] = x[:, :, : blocks.video]
    text = blocks.rows * 128
    out[:, :, text : text + blocks.text, : x.shape[3]] = x[:, :, blocks.video :]
    return out.unflatten(2, (blocks.keys, 128))


def assert_eight_bits(bytes_: torch.Tensor, scale: torch.Tensor, truth: torch.Tensor) -> None:
    """bytes_ * scale is truth, but for half a unit of e4m3, one for the least; zeros are zeros."""
    eight = bytes_.double()
    exact = truth / scale.double().clamp(min=1e-300)
    half_unit = (exact.abs() / 16).clamp(min=2.0**-9) * (1 + 1e-4)
    nearest = exact.clamp(-448, 448).to(torch.float8_e4m3fn).double()
    carry_lost = (eight == nearest / 2) & (nearest.abs() > exact.abs())
    assert (((eight - exact).abs() <= half_unit) | carry_lost).all()
    assert carry_lost.double().mean() < 0.03
    assert (eight[truth == 0] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_times_scales_are_the_tensors(shape: str, masked: bool) -> None:
    video, text, dim = SHAPES[shape]
    blocks, length = BlockLayout(video + text, video), video + text
    q, k, v = qkv(length, dim)
    mask = torch.ones(2, length, dtype=torch.bool)
    if masked:
        mask[0, length // 2 : length // 2 + 9] = False
        mask[1, -3:] = False
    seen = mask[:, None, :, None]
    k, v = k.where(seen, torch.tensor(6e4).bfloat16()), v.where(seen, torch.tensor(-6e4).bfloat16())
    scale = dim**-0.5
    made = quantise.quantise(q, k, v, blocks, mask if masked else None, scale)
    width = 64 if dim == 64 else 128
    assert made.q.shape == made.k.shape == (2, 2, blocks.keys, 128, width)
    assert made.v.shape == (2, 2, blocks.keys, width, 128)

    octaves = q.double() * (scale * 8 / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    assert_eight_bits(made.q, made.q_scale[..., None, None], in_blocks(octaves, blocks, width))
    smooth = (k.float() - made.k_mean[:, :, None, :dim]).double().where(seen, torch.tensor(0.0, dtype=torch.float64))
    assert_eight_bits(made.k, made.k_scale[..., None, None], in_blocks(smooth, blocks, width))
    in_order = torch.empty_like(made.v).unflatten(-1, (8, 16))
    in_order[..., ORDER] = made.v.unflatten(-1, (8, 16))
    values = v.double().where(seen, torch.tensor(0.0, dtype=torch.float64))
    assert_eight_bits(in_order.flatten(-2).mT, made.v_scale[:, :, None, None], in_blocks(values, blocks, width))
    torch.testing.assert_close(made.v_scale[..., :dim], values.abs().amax(2).float() / 448)


def test_scales_are_powers_of_two_and_products_fit_a_half() -> None:
    blocks = BlockLayout(270, 200)
    q, k, v = qkv(270, 128, torch.float16)
    q[0, 0, :128] = 0
    k[1, 0, 3] *= 1000
    made = quantise.quantise(q * 100, k, v, blocks, None, 0.1)
    for eight, scale in ((made.q, made.q_scale), (made.k, made.k_scale)):
        assert (scale.frexp().mantissa == 0.5).all()
        top = eight.double().abs().amax((-1, -2))
        assert (top <= 22).all()
        assert ((top > 9) | (top == 0)).all(), "no bit is given away"
    assert torch.finfo(torch.float16).max > 22 * 22 * 128


def test_the_mean_is_of_every_eighth_tile_of_what_is_not_masked() -> None:
    length = 2100
    q, k, v = qkv(length, 64)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, 5:40] = False
    made = quantise.quantise(q, k, v, BlockLayout(length, length), mask, 1.0)
    sampled = mask & (torch.arange(length) // 64 % 8 == 0)
    for item in range(2):
        mean = k[item][:, sampled[item]].float().mean(1)
        torch.testing.assert_close(made.k_mean[item], mean)


def test_nothing_to_attend_to_is_zeros() -> None:
    q, k, v = qkv(130, 64)
    made = quantise.quantise(q, k, v, BlockLayout(130, 130), torch.zeros(2, 130, dtype=torch.bool), 1.0)
    assert (made.k.float() == 0).all()
    assert (made.v.float() == 0).all()
    assert (made.k_mean == 0).all()
    assert made.k_scale.isfinite().all()


def test_any_storage() -> None:
    blocks = BlockLayout(270, 200)
    q, k, v = qkv(270, 72)
    mask = torch.rand(270, 2, generator=torch.Generator().manual_seed(0)).T > 0.3
    plain = quantise.quantise(q, k, v, blocks, mask, 0.1)
    other = quantise.quantise(
        q.contiguous(),
        k.mT.contiguous().mT,
        torch.nn.functional.pad(v, (0, 1))[..., :72],
        blocks,
        mask.contiguous(),
        0.1,
    )
    for name, tensor in vars(plain).items():
        assert torch.equal(tensor.float(), getattr(other, name).float()), name
