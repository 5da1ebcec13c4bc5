"""What the fp8 Hopper kernel makes of logits: bytes of e4m3 without exponentials, and their place in registers.

A thread of a warpgroup holds of [64, C] rows r and r + 8 and, of each group of 8 columns, two neighbours. Seen as
[64, C / 8, 4, 2] (row, group, lane of four, pair), the same registers serve inline PTX (`frag`, `unfrag`).

The byte c of a normal e4m3 number means about 2^(c / 8 - 7): exact at whole octaves, a straight line between them. So a
logit in eighths of an octave, rounded to an integer, is its exponential (Schraudolph), at most 6 % above it, which
cancels in the division by the sum. Bytes below 8, the subnormal numbers, follow a second line of an eighth the slope.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def frag_layout(C):
    registers = [[0, 0, 0, 1], [8, 0, 0, 0], *([0, 1 << i, 0, 0] for i in range((C // 8).bit_length() - 1))]
    lanes = [[0, 0, 1, 0], [0, 0, 2, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0, 0, 0], [32, 0, 0, 0]], [], [64, C // 8, 4, 2])


@gluon.constexpr_function
def row_layout():
    """Of [64, 4]: a value for each row and lane of four."""
    lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([[8, 0]], lanes, [[16, 0], [32, 0]], [], [64, 4])


def _max_asm() -> str:
    """PTX: $0 and $1 the maxima of two rows over four lanes, each in both halves, of the f16 pairs $32 to $63."""
    lines = []
    for half, top in enumerate("ab"):
        lines.append(f"max.f16x2 {top}, ${32 + half}, ${34 + half};")
        lines.extend(f"max.f16x2 {top}, {top}, ${32 + 2 * i + half};" for i in range(2, 16))
    lines.append("prmt.b32 x, a, b, 0x5410; prmt.b32 y, a, b, 0x7632; max.f16x2 x, x, y;")
    lines.extend(f"shfl.sync.bfly.b32 y, x, {lane}, 0x1f, -1; max.f16x2 x, x, y;" for lane in (1, 2))
    lines.append("prmt.b32 $0, x, x, 0x1010; prmt.b32 $1, x, x, 0x3232;")
    return f"{{ .reg .b32 a, b, x, y; {' '.join(lines)} }}"


def _codes_asm() -> str:
    """PTX: $0 to $15 four bytes each, of the f16 pairs $16 to $47.

    From $48, $80, $112 and $144 on: the factor of the first line, its offset + 1536, and those of the second line. A
    f16 number in [1024, 2048) is a whole one, and at 1536 its low byte is 0, so the sum's low byte is the code. The
    second line's offset is 4 for one key of a pair and 3 for the other: 3.5 has no place among integers.
    """
    lines = ["mov.b32 zero, 0x66006600; mov.b32 t0, 0xBC000000;"]
    lines += [f"add.rn.f16x2 w{half}, ${144 + half}, t0;" for half in (0, 1)]
    for i in range(32):
        half = i % 2
        lines.append(f"fma.rn.f16x2 t{i}, ${16 + i}, ${48 + half}, ${80 + half};")
        lines.append(f"fma.rn.f16x2 z, ${16 + i}, ${112 + half}, w{half}; max.f16x2 t{i}, t{i}, z;")
        lines.append(f"max.f16x2 t{i}, t{i}, zero;")
    for j in range(16):
        i = j % 2 + 4 * (j // 2)
        lines.append(f"prmt.b32 o{j}, t{i}, t{i + 2}, 0x6420;")
    lines += [f"mov.b32 ${j}, o{j};" for j in range(16)]
    return f"{{ .reg .b32 t<32>; .reg .b32 w<2>; .reg .b32 o<16>; .reg .b32 z, zero; {' '.join(lines)} }}"


def _constraints(outputs: int, inputs: int) -> str:
    return ",".join(["=r"] * outputs + ["r"] * inputs)


_MAX = gl.constexpr(_max_asm())
_MAX_CONSTRAINTS = gl.constexpr(_constraints(32, 32))
_CODES = gl.constexpr(_codes_asm())
_CODES_CONSTRAINTS = gl.constexpr(_constraints(16, 160))
_MOVE = gl.constexpr("{ " + " ".join(f"mov.b32 ${i}, ${4 + i};" for i in range(4)) + " }")
_MOVE_CONSTRAINTS = gl.constexpr(_constraints(4, 4))


@gluon.jit
def frag(x, C: gl.constexpr):
    return gl.convert_layout(gl.reshape(x, [64, C // 8, 4, 2]), frag_layout(C), assert_trivial=True)


@gluon.jit
def unfrag(x, C: gl.constexpr, LAYOUT: gl.constexpr):
    return gl.convert_layout(gl.reshape(x, [64, C]), LAYOUT, assert_trivial=True)


@gluon.jit
def spread(x, C: gl.constexpr):
    """[64, 4], a value for each row, as [64, C / 8, 4, 2]."""
    PAIRS: gl.constexpr = gl.SliceLayout(3, frag_layout(C))
    x = gl.convert_layout(x, gl.SliceLayout(1, PAIRS), assert_trivial=True)
    return gl.expand_dims(gl.expand_dims(x, 1), 3).broadcast_to([64, C // 8, 4, 2])


@gluon.jit
def _row_max(s):
    """Largest of each row of s, f16 [64, 16, 4, 2], as f32 [64, 4]."""
    top = gl.inline_asm_elementwise(_MAX, _MAX_CONSTRAINTS, [s], dtype=gl.float16, is_pure=True, pack=64)
    # What stands at group 0, pair 0.
    x, _ = gl.split(top)
    x = gl.permute(x, (0, 2, 1))
    x, _ = gl.split(gl.reshape(x, [64, 4, 8, 2]))
    x, _ = gl.split(gl.reshape(x, [64, 4, 4, 2]))
    x, _ = gl.split(gl.reshape(x, [64, 4, 2, 2]))
    x, _ = gl.split(x)
    return gl.convert_layout(x, row_layout(), assert_trivial=True).to(gl.float32)


@gluon.jit
def softmax(s, scale, offset):
    """Bytes of s [64, 128], the new offset of each row, and the factor on what was summed up with the old one.

    s * scale is in eighths of an octave; offset [64, 4] brings the row's largest so far to a byte of 119 to 126. It
    moves by whole octaves, so factors are powers of two.
    """
    s = frag(s, 128)
    top = _row_max(s) * scale
    lower = gl.minimum(offset, gl.floor((126.0 - top) * 0.125) * 8.0)
    factor = gl.exp2((lower - offset) * 0.125)
    one = gl.full([64, 4], 1.0, gl.float32, row_layout())
    lines = [
        s,
        spread((one * scale).to(gl.float16), 128),
        spread((lower + 1536.0).to(gl.float16), 128),
        spread((one * (scale * 0.125)).to(gl.float16), 128),
        spread((lower * 0.125 + 1540.0).to(gl.float16), 128),
    ]
    codes = gl.inline_asm_elementwise(_CODES, _CODES_CONSTRAINTS, lines, dtype=gl.int8, is_pure=False, pack=64)
    return _packed(codes), lower, factor


@gluon.jit
def _packed(codes):
    """int8 [64, 16, 4, 2] in the same registers as int32 [64, 4, 4, 2]: a loop carries these, not 64 single bytes."""
    x = gl.permute(gl.reshape(codes, [64, 4, 2, 2, 4, 2]), (0, 1, 4, 5, 2, 3))
    even, odd = gl.split(x)
    a, b = gl.split(even)
    c, d = gl.split(odd)
    return gl.inline_asm_elementwise(_MOVE, _MOVE_CONSTRAINTS, [a, b, c, d], dtype=gl.int32, is_pure=True, pack=4)


@gluon.jit
def operand(packed, LAYOUT: gl.constexpr):
    """The bytes as left operand [64, 128] of a product, in the registers where they are.

    An operand of 8 bits has four neighbouring columns in a register, a result two pairs of neighbouring groups. So the
    product's column 4 t + 2 g + e of each 16 is key 8 g + 2 t + e: V comes in this order (`quantise.py`).
    """
    a, b, c, d = gl.inline_asm_elementwise(
        _MOVE, _MOVE_CONSTRAINTS, [packed], dtype=(gl.int8, gl.int8, gl.int8, gl.int8), is_pure=True, pack=4
    )
    x = gl.join(gl.join(a, b), gl.join(c, d))
    x = gl.reshape(gl.permute(x, (0, 1, 4, 5, 2, 3)), [4, 2, 8, 8, 2, 4, 2])
    x = gl.reshape(gl.permute(x, (0, 4, 2, 3, 5, 1, 6)), [64, 128]).to(gl.float8e4nv, bitcast=True)
    return gl.convert_layout(x, LAYOUT, assert_trivial=True)


@gluon.jit
def first_column(x):
    """[64, 8] of equal columns as [64, 4]."""
    x, _ = gl.split(gl.reshape(x, [64, 4, 2]))
    return gl.convert_layout(x, row_layout(), assert_trivial=True)
