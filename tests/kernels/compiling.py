"""Compiles GPU kernels on a machine without one, down to the binary."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from jenga_compile.kernels.block_sparse_attention import (
    hopper,
    hopper_fp8,
    hopper_fp8_kernel,
    hopper_kernel,
    portable,
    portable_kernel,
)

HOPPER = GPUTarget("cuda", 90, 32)

_POINTERS = {
    **dict.fromkeys(("indices", "counts", "first_special", "specials"), "*i32"),
    **dict.fromkeys(("key_caps", "knobs", "lse"), "*fp32"),
}
_ALIGNED = ["q", "k", "v", "out", *_POINTERS, *(f"{x}_{axis}" for x in "qkvo" for axis in "bhl")]


def hopper_attention(dtype: str = "bf16", **constants: object) -> object:
    """`hopper_kernel.attend` compiled as `hopper.py` launches it, but for the constants given."""
    constants = {
        "D": 128,
        "ST": hopper._STAGES,
        "LAZY": False,
        "REDO": False,
        "Q_IN_REGISTERS": hopper._Q_IN_REGISTERS,
        "CONSUMER_REGISTERS": hopper.ROLES["CONSUMER_REGISTERS"],
        "PRODUCER_REGISTERS": hopper.ROLES["PRODUCER_REGISTERS"],
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
    return _compiled(hopper_kernel.attend, types, constants, hopper.ROLES["maxnreg"])


def hopper_fp8_attention(dtype: str = "bf16", width: int = 128) -> object:
    """`hopper_fp8_kernel.attend` compiled as `hopper_fp8.py` launches it."""
    constants = {
        "D": width,
        "ST": hopper_fp8._STAGES,
        "CONSUMER_REGISTERS": hopper.ROLES["CONSUMER_REGISTERS"],
        "PRODUCER_REGISTERS": hopper.ROLES["PRODUCER_REGISTERS"],
    }
    of_q_and_k, of_v = (repr(gl.NVMMASharedLayout(row, 8, rank=2)) for row in (width, 128))
    out = f"tensordesc<{dtype}[1,1,64,{width}],{gl.NVMMASharedLayout(128, 16, rank=4)!r}>"
    types = {
        "q_desc": f"tensordesc<fp8e4nv[64,{width}],{of_q_and_k}>",
        "k_desc": f"tensordesc<fp8e4nv[128,{width}],{of_q_and_k}>",
        "v_desc": f"tensordesc<fp8e4nv[{width},128],{of_v}>",
        **dict.fromkeys(("video_desc", "text_desc"), out),
        **dict.fromkeys(("indices", "counts", "first_special", "special_counts"), "*i32"),
        **dict.fromkeys(("q_scale", "k_scale", "v_scale", "key_caps", "knobs"), "*fp32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    return _compiled(hopper_fp8_kernel.attend, types, constants, hopper.ROLES["maxnreg"])


def _compiled(kernel: object, types: dict[str, str], constants: dict[str, object], registers: int) -> object:
    """A kernel for these types of its arguments, int32 where none is given."""
    names = kernel.arg_names
    source = GluonASTSource(
        kernel,
        {name: types.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {},
    )
    return triton.compile(
        source, target=HOPPER, options={"num_warps": 4, "maxnreg": registers, "enable_fp_fusion": True}
    )


def portable_attention(
    name: str, config: portable.Config, dtype: str = "bf16", dim: int = 128, value_dim: int = 128, capability: int = 90
) -> object:
    """A kernel of `portable_kernel` compiled as `portable.py` launches it on tensors that descriptors can read."""
    kernel = getattr(portable_kernel, name)
    constants = {
        **{"D": dim, "DV": value_dim, "WIDTH": portable._width(dim), "WIDTH_V": portable._width(value_dim)},
        **{"BM": config.queries, "BN": config.keys},
        **{"DESCRIPTORS": config.descriptors, "SPECIALIZE": config.specialize},
    }
    names = kernel.arg_names
    types = {
        **dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}"),
        **_POINTERS,
        "scale": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    source = ASTSource(
        kernel,
        {name: types.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items() if name in names},
        {(names.index(name),): [["tt.divisibility", 16]] for name in _ALIGNED if name in names},
    )
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(kernel: object, folder: Path) -> int:
    """Bytes a thread spills, of a compiled kernel."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", said)[1])
