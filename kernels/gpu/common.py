"""Device functions that all kernels share: groups of four channels, rotations, 2-bit weights.

Only builtins of Triton and functions of ours are called: its standard library (`tl.sum`, `tl.zeros`
and such) cannot be interpreted in a process that also compiles. ``ASM`` says that it is compiled:
the interpreter has no inline assembly, and multiplies the bits of bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_members(x: tl.tensor, M: tl.constexpr, G: tl.constexpr) -> tl.tensor:
    """The four members, each [M, G], of the groups of x [M, 4 G]."""
    even, odd = tl.split(tl.reshape(x, (M, G, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def join_members(
    x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor, M: tl.constexpr, G: tl.constexpr
) -> tl.tensor:
    """x [M, 4 G] of its four members."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (M, 4 * G))


@triton.jit
def cosine(word: tl.tensor) -> tl.tensor:
    """The lower half of a word, which is a pair of halves or of floats."""
    if word.dtype == tl.int64:
        return word.to(tl.int32).to(tl.float32, bitcast=True)
    else:
        return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def sine(word: tl.tensor) -> tl.tensor:
    """The upper half of such a word."""
    if word.dtype == tl.int64:
        return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        return (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def turn_pair(a: tl.tensor, b: tl.tensor, word: tl.tensor) -> tl.tensor:
    """(a, b) rotated by the angle whose cosine and sine are in ``word``."""
    c, s = cosine(word), sine(word)
    return c * a - s * b, s * a + c * b


@triton.jit
def member(
    x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor, WHICH: tl.constexpr
) -> tl.tensor:
    """One of four."""
    if WHICH == 0:
        return x0
    elif WHICH == 1:
        return x1
    elif WHICH == 2:
        return x2
    else:
        return x3


@triton.jit
def turn(
    x0: tl.tensor,
    x1: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    pairs: tl.tensor,
    first: tl.tensor,
    mask: tl.tensor,
    ORDER: tl.constexpr,
    M: tl.constexpr,
    G: tl.constexpr,
) -> tl.tensor:
    """The channels of groups, rotated by the four words at ``pairs + first``.

    ``ORDER`` says in two bits each which channel the members are, then which member each channel
    becomes (`layer.order_bits`): names of registers, so any order costs the same.
    """
    place = first[:, :, None] + tl.arange(0, 4)[None, None, :]
    words = tl.load(pairs + place, mask=mask[:, :, None], other=0)
    even, odd = tl.split(tl.reshape(words, (M, G, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    y0 = member(x0, x1, x2, x3, ORDER & 3)
    y1 = member(x0, x1, x2, x3, (ORDER >> 2) & 3)
    y2 = member(x0, x1, x2, x3, (ORDER >> 4) & 3)
    y3 = member(x0, x1, x2, x3, (ORDER >> 6) & 3)
    y0, y1 = turn_pair(y0, y1, w0)
    y2, y3 = turn_pair(y2, y3, w1)
    y0, y2 = turn_pair(y0, y2, w2)
    y1, y3 = turn_pair(y1, y3, w3)
    z0 = member(y0, y1, y2, y3, (ORDER >> 8) & 3)
    z1 = member(y0, y1, y2, y3, (ORDER >> 10) & 3)
    z2 = member(y0, y1, y2, y3, (ORDER >> 12) & 3)
    z3 = member(y0, y1, y2, y3, (ORDER >> 14) & 3)
    return z0, z1, z2, z3


@triton.jit
def turn_layers(
    x: tl.tensor,
    pairs: tl.tensor,
    partners: tl.tensor,
    place: tl.tensor,
    expert: tl.tensor,
    there: tl.tensor,
    column: tl.tensor,
    D: tl.tensor,
    LAYERS: tl.tensor,
) -> tl.tensor:
    """Rows x [M, N], of which D channels are, rotated by the words [LAYERS, D] of their experts.

    A layer makes cosines times channels, plus sines times ``partners`` [LAYERS, D]; these are read
    at ``place`` [M, 1], where the program's rows are written. Caches hold them: `tl.gather` would
    compare each channel of a row with each other.
    """
    inside = column < D
    here = there[:, None] & inside[None, :]
    word_at = pairs + expert[:, None] * (LAYERS * D) + column[None, :]
    partner_at = partners + column
    for _ in range(0, LAYERS):
        word = tl.load(word_at, mask=here, other=0)
        partner = tl.load(partner_at, mask=inside, other=0)
        tl.store(place + column[None, :], x, mask=here)
        tl.debug_barrier()
        other = tl.load(place + partner[None, :], mask=here, other=0.0)
        # Nothing is written before all is read.
        tl.debug_barrier()
        x = cosine(word) * x + sine(word) * other
        word_at += D
        partner_at += D
    return x


@triton.jit
def row_maximum(x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor) -> tl.tensor:
    """The largest magnitude in each row of four members [M, G]."""
    low = tl.maximum(tl.abs(x0), tl.abs(x1))
    high = tl.maximum(tl.abs(x2), tl.abs(x3))
    return tl.reduce(tl.maximum(low, high), 1, tl.standard._elementwise_max)


@triton.jit
def inverse_of(largest: tl.tensor, M: tl.constexpr) -> tl.tensor:
    """127 / the largest magnitude [M] of each row; 0 for a row of zeros."""
    most = tl.full((M,), 127.0, tl.float32)
    return tl.where(largest > 0, tl.div_rn(most, tl.where(largest > 0, largest, most)), 0.0)


@triton.jit
def code(x: tl.tensor, inverse: tl.tensor) -> tl.tensor:
    """int8 codes of x [M, G] by 127 / the largest of its row, ties to even."""
    # The sum has the whole number in its lowest bits: 1.5 * 2**23 leaves none for a fraction.
    return (x * inverse[:, None] + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def add_product(left: tl.tensor, right: tl.tensor, sums: tl.tensor, ASM: tl.constexpr) -> tl.tensor:
    """sums [M, N] + left [M, K] @ right [K, N], in float32, or int32 of int8."""
    if left.dtype == tl.bfloat16 and not ASM:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee", out_dtype=sums.dtype)


@triton.jit
def crumbs(byte: tl.tensor, P: tl.constexpr, dtype: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """Weights of member P of each group of `layout_crumbs`: +-2 as floats, +-64 as int8."""
    if dtype == tl.int8:
        if ASM:
            return tl.inline_asm_elementwise(
                f"shl.b32 $0, $1, {2 * P}; and.b32 $0, $0, 0xC0C0C0C0;",
                "=r,r", [byte], dtype=tl.int8, is_pure=True, pack=4,
            )  # fmt: skip
        else:
            return ((byte << (2 * P)) & 0xC0).to(tl.int8, bitcast=True)
    elif dtype == tl.float32:
        return ((byte.to(tl.uint32) << (24 + 2 * P)) & 0xC0000000).to(tl.float32, bitcast=True)
    elif ASM:
        # Four bytes become the upper bytes of four halves.
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $2, 0, 0x1404; prmt.b32 $1, $2, 0, 0x3424; "
            f"shl.b32 $0, $0, {2 * P}; shl.b32 $1, $1, {2 * P}; "
            "and.b32 $0, $0, 0xC000C000; and.b32 $1, $1, 0xC000C000;",
            "=&r,=&r,r", [byte], dtype=tl.int16, is_pure=True, pack=4,
        ).to(dtype, bitcast=True)  # fmt: skip
    else:
        return ((byte.to(tl.uint16) << (8 + 2 * P)) & 0xC000).to(dtype, bitcast=True)
