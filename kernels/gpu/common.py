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
def turn(
    x0: Any, x1: Any, x2: Any, x3: Any, pairs: Any, first: Any, mask: Any, FAR: tl.constexpr
) -> Any:
    """The members of groups, rotated by the four words at ``pairs + first``."""
    # Far order is near order with members 1 and 2 exchanged.
    if FAR:
        x1, x2 = x2, x1
    words = pairs + first
    x0, x1 = turn_pair(x0, x1, tl.load(words, mask=mask, other=0))
    x2, x3 = turn_pair(x2, x3, tl.load(words + 1, mask=mask, other=0))
    x0, x2 = turn_pair(x0, x2, tl.load(words + 2, mask=mask, other=0))
    x1, x3 = turn_pair(x1, x3, tl.load(words + 3, mask=mask, other=0))
    if FAR:
        x1, x2 = x2, x1
    return x0, x1, x2, x3


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
