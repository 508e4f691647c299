"""Device functions that all kernels share: groups of four channels, rotations, 2-bit weights.

Only builtins of Triton and functions of ours are called: its standard library (`tl.sum`, `tl.zeros`
and such) cannot be interpreted in a process that also compiles.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def split_members(x: Any, M: tl.constexpr, G: tl.constexpr) -> Any:
    """The four members, each [M, G], of the groups of x [M, 4 G]."""
    even, odd = tl.split(tl.reshape(x, (M, G, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def join_members(x0: Any, x1: Any, x2: Any, x3: Any, M: tl.constexpr, G: tl.constexpr) -> Any:
    """x [M, 4 G] of its four members."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (M, 4 * G))


@triton.jit
def cosine(word: Any) -> Any:
    """The lower half of a word, which is a pair of halves or of floats."""
    if word.dtype == tl.int64:
        return word.to(tl.int32).to(tl.float32, bitcast=True)
    else:
        return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def sine(word: Any) -> Any:
    """The upper half of such a word."""
    if word.dtype == tl.int64:
        return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        return (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def turn_pair(a: Any, b: Any, word: Any) -> Any:
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
) -> tl.tensor:
    """The channels of groups, rotated by the four words at ``pairs + first``.

    ``ORDER`` says in two bits each which channel the members are, then which member each channel
    becomes (`layer.order_bits`): names of registers, so any order costs the same.
    """
    words = pairs + first
    y0 = member(x0, x1, x2, x3, ORDER & 3)
    y1 = member(x0, x1, x2, x3, (ORDER >> 2) & 3)
    y2 = member(x0, x1, x2, x3, (ORDER >> 4) & 3)
    y3 = member(x0, x1, x2, x3, (ORDER >> 6) & 3)
    y0, y1 = turn_pair(y0, y1, tl.load(words, mask=mask, other=0))
    y2, y3 = turn_pair(y2, y3, tl.load(words + 1, mask=mask, other=0))
    y0, y2 = turn_pair(y0, y2, tl.load(words + 2, mask=mask, other=0))
    y1, y3 = turn_pair(y1, y3, tl.load(words + 3, mask=mask, other=0))
    z0 = member(y0, y1, y2, y3, (ORDER >> 8) & 3)
    z1 = member(y0, y1, y2, y3, (ORDER >> 10) & 3)
    z2 = member(y0, y1, y2, y3, (ORDER >> 12) & 3)
    z3 = member(y0, y1, y2, y3, (ORDER >> 14) & 3)
    return z0, z1, z2, z3


@triton.jit
def row_maximum(x0: Any, x1: Any, x2: Any, x3: Any) -> Any:
    """The largest magnitude in each row of four members [M, G]."""
    low = tl.maximum(tl.abs(x0), tl.abs(x1))
    high = tl.maximum(tl.abs(x2), tl.abs(x3))
    return tl.reduce(tl.maximum(low, high), 1, tl.standard._elementwise_max)


@triton.jit
def code(x: Any, inverse: Any) -> Any:
    """int8 codes of x [M, G] by 127 / the largest of its row, ties to even."""
    # The sum has the whole number in its lowest bits: 1.5 * 2**23 leaves none for a fraction.
    return (x * inverse[:, None] + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
