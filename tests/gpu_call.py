"""Every GPU kernel once, on a small odd shape, for tools that watch memory:

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 python -m tests.gpu_call
"""

from __future__ import annotations

import torch

from jenga_compile.errors import KernelUnavailable
from jenga_compile.kernels.knobs import make_knobs

KERNELS = ("hopper", "portable", "fp8", "flash4")
VIDEO, TEXT, HEADS = 700, 129, 2


def main() -> None:
    random = torch.Generator().manual_seed(0)
    length = VIDEO + TEXT
    q, k, v = torch.randn(3, 2, length, HEADS, 128, generator=random).to("cuda", torch.bfloat16).transpose(2, 3)
    mask = torch.ones(2, length, dtype=torch.bool, device="cuda")
    mask[0, 640:650], mask[1, -30:] = False, False
    rows = -(-VIDEO // 128)
    knobs = make_knobs(0.4, 0.3, 0.5, device="cuda")
    own = torch.eye(rows, dtype=torch.bool, device="cuda")
    for key_mask in (None, mask):
        lists = torch.ops.jenga.block_select(q, k, own, knobs, VIDEO, key_mask)
        for kernel in KERNELS:
            try:
                out = torch.ops.jenga.block_sparse_attention(q, k, v, *lists, knobs, VIDEO, key_mask, None, kernel)
            except KernelUnavailable as why:
                print(f"{kernel}: left out: {why}")
            else:
                assert bool(out.isfinite().all()), f"{kernel} gives what is not finite"
                print(f"{kernel}: ran, all finite")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
