"""What the Hopper kernels share: where a tile and its key blocks are, logits of special blocks, a lazy rescale."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

# Triton 3.6 has the second name of each, 3.9 the first.
load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


def _rescale_asm(n: int) -> str:
    """PTX: multiply n registers by their row's factor, unless every factor of the warp is 1.

    The registers of an accumulator alternate between two rows every two columns, so the factor of register i is
    operand 2n + 2 * (i // 2 % 2).
    """
    first, second = 2 * n, 2 * n + 2
    one = "0f3F800000"
    test = f"setp.neu.f32 p, ${first}, {one}; setp.neu.or.f32 p, ${second}, {one}, p; vote.sync.any.pred q, p, -1;"
    products = " ".join(f"mul.f32 ${i}, ${i}, ${2 * n + 2 * (i // 2 % 2)};" for i in range(n))
    return f"{{ .reg .pred p, q; {test} @!q bra SKIP; {products} SKIP: }}"


def _rescale_constraints(n: int) -> str:
    """n outputs, each in the register of its input, and n factors."""
    return ",".join(["=f"] * n + [str(i) for i in range(n)] + ["f"] * n)


_RESCALE_64 = gl.constexpr(_rescale_asm(32))
_RESCALE_64_CONSTRAINTS = gl.constexpr(_rescale_constraints(32))
_RESCALE_128 = gl.constexpr(_rescale_asm(64))
_RESCALE_128_CONSTRAINTS = gl.constexpr(_rescale_constraints(64))


@gluon.jit
def lazy_scale(acc, factor, D: gl.constexpr):
    """acc [64, D] * factor [64, 1], skipped by warps in which all factors are 1."""
    if D == 128:
        return gl.inline_asm_elementwise(
            _RESCALE_128, _RESCALE_128_CONSTRAINTS, [acc, factor], dtype=gl.float32, is_pure=True, pack=64
        )
    else:
        return gl.inline_asm_elementwise(
            _RESCALE_64, _RESCALE_64_CONSTRAINTS, [acc, factor], dtype=gl.float32, is_pure=True, pack=32
        )


@gluon.jit
def span(block, R, video, length):
    """First token of a block, and how many tokens follow before its part ends: at least 128 if it is a full one."""
    is_text = block >= R
    start = gl.where(is_text, video + (block - R) * 128, block * 128)
    end = gl.where(is_text, length, video)
    return start, end - start


@gluon.jit
def tile(number, tiles, counts, heads, R, T, N, REDO: gl.constexpr):
    """The tile at a place of the launch: head of all B * H, query block (from R on: text), blocks to visit."""
    if REDO:
        number = gl.load(tiles + 1 + number)
    texts = heads * T
    is_text = number < texts
    head = gl.where(is_text, number // gl.maximum(T, 1), (number - texts) // R)
    row = gl.where(is_text, R + number % gl.maximum(T, 1), (number - texts) % R)
    listed = gl.load(counts + head * R + gl.minimum(row, R - 1))
    return number, head, row, gl.where(is_text, N, listed)


@gluon.jit
def listed(indices, head, row, place, R, N):
    """Key block at a place of a row's list; a text row lists every block."""
    block = gl.load(indices + (head * R + gl.minimum(row, R - 1)).to(gl.int64) * N + place)
    return gl.where(row >= R, place, block)


@gluon.jit
def capped(s, block, caps, row, bias, R, COLUMNS: gl.constexpr):
    """Logits s [64, 128] of one key block, f32 or f16, with the bias of text, and -inf for keys that are not there.

    The caps are read, not compared with the sizes: with 32 comparisons here, ptxas 12.8 schedules the loop over plain
    blocks so that it takes 9 % longer.
    """
    cap = gl.load(caps + block * 128 + gl.arange(0, 128, layout=COLUMNS))
    s = s + gl.where((block >= R) & (row < R), bias, 0.0).to(s.dtype)
    return gl.minimum(s, cap.to(s.dtype)[None, :])
