"""The Hopper kernel of attention over lists compiles for its chip, and keeps to the chip's registers. Needs no GPU."""

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


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_compiles_and_fits_the_registers(variant: str, tmp_path: Path) -> None:
    kernel = compiling.hopper_attention(**VARIANTS[variant])
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    try:
        spilled = compiling.stack_bytes(kernel, tmp_path)
    except FileNotFoundError:
        pytest.skip("compiled; this build of Triton has no cuobjdump to tell what it spills")
    assert spilled <= SPILLED
