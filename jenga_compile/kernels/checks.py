"""What every operator refuses, said in terms of its contract. Checks read shapes and types, never values on a GPU."""

from __future__ import annotations

from typing import NoReturn

import torch

from jenga_compile.errors import (
    BlockListOutOfRange,
    DeviceMismatch,
    DtypeMismatch,
    NotDifferentiable,
    ShapeMismatch,
    VideoOutOfRange,
)
from jenga_compile.kernels.blocks import BlockLayout

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Dtypes of q, k and v."""


def check_tensor(
    op: str, name: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """`x` has exactly this shape, dtype and device.

    Raises:
        ShapeMismatch, DtypeMismatch, DeviceMismatch: it has not.
    """
    if x.shape != shape:
        raise ShapeMismatch(op=op, name=name, found=tuple(x.shape), expected=shape)
    if x.dtype != dtype:
        raise DtypeMismatch(op=op, name=name, found=x.dtype, expected=dtype)
    if x.device != device:
        raise DeviceMismatch(op=op, name=name, found=x.device, expected=device)


def check_qkv(op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None = None) -> None:
    """q and k are [B, H, L, D] and v is [B, H, L, Dv], of one floating dtype on one device.

    Raises:
        ShapeMismatch, DtypeMismatch, DeviceMismatch: they are not.
    """
    if q.dim() != 4 or 0 in q.shape:
        raise ShapeMismatch(op=op, name="q", found=tuple(q.shape), expected="[B, H, L, D], none of them 0")
    if q.dtype not in FLOATS:
        raise DtypeMismatch(op=op, name="q", found=q.dtype, expected=f"one of {FLOATS}")
    check_tensor(op, "k", k, tuple(q.shape), q.dtype, q.device)
    if v is not None:
        value_dim = v.shape[-1] if v.dim() == 4 else q.shape[-1]
        check_tensor(op, "v", v, (*q.shape[:3], value_dim), q.dtype, q.device)


def check_sequence(op: str, q: torch.Tensor, video: int, key_mask: torch.Tensor | None) -> BlockLayout:
    """The sequence starts with `video` tokens and its mask, if any, is bool [B, L]; returns its blocks.

    Raises:
        VideoOutOfRange: `video` is not in [1, L].
        ShapeMismatch, DtypeMismatch, DeviceMismatch: the mask is not as stated.
    """
    batch, length = q.shape[0], q.shape[2]
    if not 1 <= video <= length:
        raise VideoOutOfRange(op=op, video=video, length=length)
    if key_mask is not None:
        check_tensor(op, "key_mask", key_mask, (batch, length), torch.bool, q.device)
    return BlockLayout(length, video)


def check_lists(op: str, indices: torch.Tensor, counts: torch.Tensor, q: torch.Tensor, blocks: BlockLayout) -> None:
    """indices is int32 [B, H, R, N] and counts int32 [B, H, R]; on a CPU, also that they name existing blocks.

    Raises:
        ShapeMismatch, DtypeMismatch, DeviceMismatch: they are not.
        BlockListOutOfRange: a count is outside [0, N] or a listed block outside [0, N).
    """
    shape = (*q.shape[:2], blocks.rows)
    check_tensor(op, "indices", indices, (*shape, blocks.keys), torch.int32, q.device)
    check_tensor(op, "counts", counts, shape, torch.int32, q.device)
    if q.device.type != "cpu":
        return
    listed = indices.where(torch.arange(blocks.keys) < counts[..., None], 0)
    for name, x, high in (("indices", listed, blocks.keys - 1), ("counts", counts, blocks.keys)):
        least, most = (int(bound) for bound in torch.aminmax(x))
        if least < 0 or most > high:
            raise BlockListOutOfRange(op=op, name=name, least=least, most=most, high=high)


def check_knobs(op: str, knobs: torch.Tensor, device: torch.device) -> None:
    """knobs is float32 [3] beside q.

    Raises:
        ShapeMismatch, DtypeMismatch, DeviceMismatch: it is not.
    """
    check_tensor(op, "knobs", knobs, (3,), torch.float32, device)


def refuse_backward(op: str) -> NoReturn:
    """The backward of every operator here.

    Raises:
        NotDifferentiable: always.
    """
    raise NotDifferentiable(op=op)
