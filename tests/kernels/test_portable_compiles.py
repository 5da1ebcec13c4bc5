"""The portable kernels of attention over lists compile, and Hopper's variant gets warps of its own. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

compiling = pytest.importorskip(
    "tests.kernels.compiling", reason="needs Triton, which has wheels for Linux only", exc_type=ImportError
)
portable = compiling.portable

VARIANTS = {
    "bf16": {},
    "fp16": {"dtype": "fp16"},
    "head dim 64": {"dim": 64, "value_dim": 64},
    "head dim 80": {"dim": 80, "value_dim": 80},
    "narrow values": {"value_dim": 64},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_specialized_loop_has_warps_for_copies_and_spills_nothing(variant: str, tmp_path: Path) -> None:
    """Four warps copy and two times four multiply: silently left undone if the kernel has more than this one loop."""
    kernel = compiling.portable_attention("attend_plain", portable._SPECIALIZED, **VARIANTS[variant])
    assert kernel.metadata.num_warps == 12
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert "cp.async.bulk.tensor" in kernel.asm["ptx"]
    try:
        spilled = compiling.stack_bytes(kernel, tmp_path)
    except FileNotFoundError:
        pytest.skip("compiled; this build of Triton has no cuobjdump to tell what it spills")
    assert spilled == 0


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("config", [*portable._POINTERS, portable._SAFE], ids=str)
def test_pointers_compile_for_any_chip(config: object, capability: int) -> None:
    assert compiling.portable_attention("attend_plain", config, capability=capability).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_second_launch_compiles_for_any_chip(capability: int) -> None:
    assert compiling.portable_attention("attend_special", portable._SPECIAL, capability=capability).asm["cubin"]
    assert compiling.portable_attention("attend_special", portable._SAFE, dtype="fp32", capability=capability).asm[
        "cubin"
    ]
