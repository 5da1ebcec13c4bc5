"""Compiles GPU kernels on a machine without one, down to the binary."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from jenga_compile.kernels.block_sparse_attention import hopper, hopper_kernel

HOPPER = GPUTarget("cuda", 90, 32)


def hopper_attention(dtype: str = "bf16", **constants: object) -> object:
    """`hopper_kernel.attend` compiled as `hopper.py` launches it, but for the constants given."""
    constants = {
        "D": 128,
        "ST": hopper._STAGES,
        "LAZY": False,
        "REDO": False,
        "Q_IN_REGISTERS": hopper._Q_IN_REGISTERS,
        "CONSUMER_REGISTERS": hopper._CONSUMER_REGISTERS,
        "PRODUCER_REGISTERS": hopper._PRODUCER_REGISTERS,
        **constants,
    }
    layout = repr(gl.NVMMASharedLayout(128, 16, rank=4))
    types = {
        **{
            name: f"tensordesc<{dtype}[1,1,64,{constants['D']}],{layout}>"
            for name in ("q_desc", "video_desc", "text_desc")
        },
        **{name: f"tensordesc<{dtype}[1,1,128,{constants['D']}],{layout}>" for name in ("k_desc", "v_desc")},
        **dict.fromkeys(("indices", "counts", "first_special", "special_counts", "tiles"), "*i32"),
        **{"key_caps": "*fp32", "knobs": "*fp32", "scale": "fp32"},
        **dict.fromkeys(constants, "constexpr"),
    }
    names = hopper_kernel.attend.arg_names
    source = GluonASTSource(
        hopper_kernel.attend,
        {name: types.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {},
    )
    return triton.compile(
        source, target=HOPPER, options={"num_warps": 4, "maxnreg": hopper._REGISTERS, "enable_fp_fusion": True}
    )


def stack_bytes(kernel: object, folder: Path) -> int:
    """Bytes a thread spills, of a compiled kernel."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", said)[1])
