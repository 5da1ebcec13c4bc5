"""The Hopper kernels of attention over lists compile for their chip and keep to its registers. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

compiling = pytest.importorskip(
    "tests.kernels.compiling", reason="needs Triton, which has wheels for Linux only", exc_type=ImportError
)

SPILLED = 64
"""Bytes of a thread that may lie in memory, 16 of its registers: outside the loop over keys, where they cost nothing
that can be measured. A loop that does not fit spills hundreds."""

VARIANTS = {
    "bf16": {},
    "computed anew": {"LAZY": True, "REDO": True},
    "head dim 64": {"D": 64},
    "fp16": {"dtype": "fp16", "LAZY": True},
}


FP8_VARIANTS = {
    "bf16": {},
    "fp16": {"dtype": "fp16"},
    "head dim 64": {"width": 64},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_compiles_and_fits_the_registers(variant: str, tmp_path: Path) -> None:
    assert_fits(compiling.hopper_attention(**VARIANTS[variant]), tmp_path)


@pytest.mark.parametrize("variant", FP8_VARIANTS)
def test_fp8_compiles_and_fits_the_registers(variant: str, tmp_path: Path) -> None:
    kernel = compiling.hopper_fp8_attention(**FP8_VARIANTS[variant])
    assert "m64n128k32.f16.e4m3.e4m3" in kernel.asm["ptx"], "logits are f16"
    assert "m64n8k32.f32.e4m3.e4m3" in kernel.asm["ptx"], "row sums are a product with ones"
    assert_fits(kernel, tmp_path)


def assert_fits(kernel: object, tmp_path: Path) -> None:
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    try:
        spilled = compiling.stack_bytes(kernel, tmp_path)
    except FileNotFoundError:
        pytest.skip("compiled; this build of Triton has no cuobjdump to tell what it spills")
    assert spilled <= SPILLED
