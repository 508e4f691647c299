"""The ops of integer mode: codes in, codes out, every rounding defined here.

A code c stands for c * scale; the scale of a type is said, and enters no computation. Codes of 8
bits are within -127..127, of 16 bits within -32767..32767: never the lowest number, so that sums
of products of bounded length fit 32 bits. Every sum and product below does, or the meaning says
so; nothing needs 64 bits or a float on a chip.
"""

from __future__ import annotations

import numpy as np

from ....kernels.integer_numbers import (
    EPS_BITS,
    INVERSE_BITS,
    LEAST_EPS_SHIFT,
    LENGTH_BITS,
    LIMITS,
    MEAN_BITS,
    MOST_PLANES,
    OCTAVE,
    UNIT_BITS,
    WORD_BITS,
    largest_of,
    norm_bits,
)
from ..types import Type
from .table import REQUIRED, broadcast_shapes, op, want

Array = np.ndarray


def fits(x: Array) -> Array:
    """``x`` if all of it fits 32 bits; what does not is a fault of who chose the numbers."""
    assert np.abs(x).max(initial=0) < 2**31, f"{np.abs(x).max()} does not fit 32 bits"
    return x


def rounded_shift(x: Array, shift: int | Array) -> Array:
    """x / 2**shift to the nearest integer, halves upwards: an addition and an arithmetic shift."""
    return fits(x + ((1 << np.asarray(shift, np.int64)) >> 1)) >> shift


def clipped(x: Array, dtype: str) -> Array:
    limit = LIMITS[dtype]
    return np.clip(x, -limit, limit)


def bit_length(x: Array) -> Array:
    """The bits of integers of at least 0: 0 has none, 2**n has n + 1."""
    return np.frexp(x.astype(np.float64))[1].astype(np.int64)


def square_root(x: Array) -> Array:
    """The largest integer whose square is at most x, for 0 <= x < 2**31."""
    return np.floor(np.sqrt(x.astype(np.float64))).astype(np.int64)


def _codes(x: Type, *dtypes: str) -> None:
    want(x.dtype in dtypes, f"needs {' or '.join(dtypes)}, got {x}")


# --- products ---


def integer_linear(x: Type, w: Type, bias: Type | None = None, planes: int = 0) -> Type:
    want(0 <= planes <= MOST_PLANES, f"{planes} planes, of {MOST_PLANES} at most")
    _codes(x, "i8")
    want(w.dtype == "i8" and w.rank == 2, f"w is {w}, not i8[N, K]")
    want(x.rank >= 1 and x.shape[-1] == w.shape[1], f"x {x} does not fit w {w}")
    fit = bias is None or (bias.dtype == "i32" and bias.shape == w.shape[:1])
    want(fit, f"bias {bias} for {w.shape[0]} outputs")
    return Type("i32", (*x.shape[:-1], w.shape[0]))


def integer_linear_meaning(x: Array, w: Array, bias: Array | None = None, planes: int = 0) -> Array:
    most = np.abs(w.astype(np.int64)).max(initial=0)
    assert not planes or most <= largest_of(planes), f"{most} does not fit {planes} planes"
    y = x.astype(np.int64) @ w.T.astype(np.int64)
    return fits(y if bias is None else y + bias)


def requantize(x: Type, multiplier: Type, drop: int, shift: int, dtype: str) -> Type:
    _codes(x, "i8", "i16", "i32")
    fit = multiplier.dtype == "i16" and multiplier.shape in ((), x.shape[-1:])
    want(fit, f"multiplier {multiplier} for {x}")
    want(dtype in LIMITS, f"codes of {dtype}")
    want(0 <= drop < 31 and 0 <= shift < 31, f"shifts {drop} and {shift}")
    return Type(dtype, x.shape)


def requantize_meaning(x: Array, multiplier: Array, drop: int, shift: int, dtype: str) -> Array:
    scaled = fits(rounded_shift(x.astype(np.int64), drop) * multiplier)
    return clipped(rounded_shift(scaled, shift), dtype)


# --- by element ---


def lookup(x: Type, table: Type) -> Type:
    _codes(x, "i8")
    want(table.dtype == "i8" and table.shape == (256,), f"the table is {table}, not i8[256]")
    return Type("i8", x.shape)


def lookup_meaning(x: Array, table: Array) -> Array:
    return table[x.astype(np.int64) + 128]


def saturating_add(a: Type, b: Type) -> Type:
    want(a.dtype == b.dtype == "i16", f"needs i16, got {a} and {b}")
    return Type("i16", broadcast_shapes(a.shape, b.shape))


def saturating_add_meaning(a: Array, b: Array) -> Array:
    return clipped(a.astype(np.int64) + b, "i16")


def integer_mul(a: Type, b: Type) -> Type:
    want(a.dtype == b.dtype == "i16", f"needs i16, got {a} and {b}")
    return Type("i32", broadcast_shapes(a.shape, b.shape))


# --- rotations and mixtures ---


def integer_rotate(x: Type, blocks: Type, experts: Type, shift: int) -> Type:
    _codes(x, "i8")
    square = blocks.rank == 4 and blocks.shape[2] == blocks.shape[3]
    want(square and blocks.dtype == "i16", f"blocks are {blocks}, not i16[E, G, b, b]")
    want(x.shape[-1] == blocks.shape[1] * blocks.shape[2], f"blocks {blocks} do not fit {x}")
    rows = broadcast_shapes(x.shape[:-1], experts.shape)
    want(rows == experts.shape, f"rows of {x} do not fit experts {experts}")
    return Type("i8", (*experts.shape, x.shape[-1]))


def integer_rotate_meaning(x: Array, blocks: Array, experts: Array, shift: int) -> Array:
    rows = np.broadcast_to(x, (*experts.shape, x.shape[-1])).astype(np.int64)
    parts = rows.reshape(*experts.shape, *blocks.shape[1:3], 1)
    turned = fits(blocks[experts].astype(np.int64) @ parts)
    return clipped(rounded_shift(turned, shift), "i8").reshape(rows.shape)


def integer_combine(values: Type, gates: Type) -> Type:
    _codes(values, "i8")
    want(gates.dtype == "i16" and values.shape[:-1] == gates.shape, f"{values} by gates {gates}")
    return Type("i32", (*values.shape[:-2], values.shape[-1]))


def integer_combine_meaning(values: Array, gates: Array) -> Array:
    return fits((values.astype(np.int64) * gates[..., None]).sum(-2))


# --- norms and exponentials ---


def integer_layer_norm(
    x: Type, gain: Type, bias: Type, shift: int, eps: int, eps_shift: int
) -> Type:
    _codes(x, "i8", "i16")
    want(gain.dtype == "i16" and gain.shape == x.shape[-1:], f"gain {gain} for {x}")
    want(bias.dtype == "i32" and bias.shape == x.shape[-1:], f"bias {bias} for {x}")
    want(x.shape[-1] <= 4096, f"rows of {x.shape[-1]} codes, of 4096 at most")
    want(0 <= eps < 1 << EPS_BITS, f"an eps of {eps}, of {EPS_BITS} bits at most")
    fit = LEAST_EPS_SHIFT <= eps_shift < 31
    want(fit, f"an eps shifted by {eps_shift}, of {LEAST_EPS_SHIFT} to 30")
    return Type("i8", x.shape)


def integer_layer_norm_meaning(
    x: Array, gain: Array, bias: Array, shift: int, eps: int, eps_shift: int
) -> Array:
    width = x.shape[-1]
    x = x.astype(np.int64)
    apart = fits(width * x - x.sum(-1, keepdims=True))  # from the mean, times the width
    drop = bit_length(np.abs(apart).max(-1, keepdims=True)) - norm_bits(width)
    drop = np.maximum(drop, eps_shift)
    lower, higher = np.maximum(drop, 0), np.maximum(-drop, 0)
    rows = rounded_shift(apart, lower) << higher
    # Behind 16 bits nothing is left of it. Its square has 30 bits, as has the sum.
    least = rounded_shift(np.asarray(eps, np.int64), np.minimum(drop - eps_shift, EPS_BITS + 1))
    squares = fits((rows * rows).sum(-1, keepdims=True) + least * least)
    length = np.maximum(square_root(squares), 1)
    unit = rounded_shift(rows * ((1 << LENGTH_BITS) // length), LENGTH_BITS - UNIT_BITS)
    return clipped(rounded_shift(fits(unit * gain + bias), shift), "i8")


def exp2(below: Array, octave: Array, multiplier: int, cap: int, shift: int) -> Array:
    """Powers of two by t = min(below, cap) * multiplier / 2**shift, for below >= 0.

    ``octave`` holds 2**(ONE_BITS - t / OCTAVE) for t < OCTAVE (`exp2_table`).
    """
    steps = rounded_shift(fits(np.minimum(below, cap) * multiplier), shift)
    return octave.astype(np.int64)[steps % OCTAVE] >> (steps // OCTAVE)


def _check_decay(octave: Type, multiplier: int, cap: int, shift: int) -> None:
    """No power is shifted further than a word is wide."""
    want(octave.dtype == "i16" and octave.shape == (OCTAVE,), f"octave {octave}")
    steps = ((cap * multiplier) >> shift) + 1
    want(steps < WORD_BITS * OCTAVE, f"cap {cap} is {steps} steps, of {WORD_BITS * OCTAVE}")


def integer_softmax(x: Type, octave: Type, multiplier: int, cap: int, shift: int) -> Type:
    _codes(x, "i8", "i16", "i32")
    _check_decay(octave, multiplier, cap, shift)
    want(x.rank >= 1 and 0 < x.shape[-1] <= 1024, f"softmax of {x}: 1 to 1024 numbers a row")
    return Type("i16", x.shape)


def integer_softmax_meaning(
    x: Array, octave: Array, multiplier: int, cap: int, shift: int
) -> Array:
    x = x.astype(np.int64)
    e = exp2(x.max(-1, keepdims=True) - x, octave, multiplier, cap, shift)
    total = e.sum(-1, keepdims=True)
    return clipped(fits((e << UNIT_BITS) + total // 2) // total, "i16")


def integer_attention(
    q: Type, k: Type, v: Type, octave: Type, multiplier: int, cap: int, shift: int, causal: bool
) -> Type:
    for x in (q, k, v):
        _codes(x, "i8")
    _check_decay(octave, multiplier, cap, shift)
    alike = q.rank == k.rank == v.rank == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    alike = alike and q.shape[3] == k.shape[3] and k.shape[2] == v.shape[2]
    want(alike, f"needs q, k, v [B, H, T, d], got {q}, {k}, {v}")
    want(0 < k.shape[2] <= 1024, f"attention to {k.shape[2]} tokens, of 1024 at most")
    return Type("i8", (*q.shape[:3], v.shape[3]))


def integer_attention_meaning(
    q: Array,
    k: Array,
    v: Array,
    octave: Array,
    multiplier: int,
    cap: int,
    shift: int,
    causal: bool,
) -> Array:
    scores = fits(q.astype(np.int64) @ np.swapaxes(k, -1, -2).astype(np.int64))
    if causal:
        ahead = np.triu(np.ones(scores.shape[-2:], bool), 1)
        scores = np.where(ahead, scores.min() - cap, scores)
    e = exp2(scores.max(-1, keepdims=True) - scores, octave, multiplier, cap, shift)
    if causal:
        e = np.where(ahead, 0, e)
    total = e.sum(-1, keepdims=True)  # at least 2**14
    drop = bit_length(total) - UNIT_BITS
    inverse = (1 << INVERSE_BITS) // (total >> drop)
    sums = rounded_shift(fits(e @ v.astype(np.int64)), drop + 6)
    return clipped(rounded_shift(fits(sums * inverse), MEAN_BITS), "i8")


OPS = [
    op(
        "integer_linear",
        "x w bias?",
        integer_linear,
        integer_linear_meaning,
        "x @ w.T + bias, exact, of 8-bit codes; where planes are said, a weight has so many "
        "balanced-ternary digits",
        planes=0,
    ),
    op(
        "requantize",
        "x multiplier",
        requantize,
        requantize_meaning,
        "round(round(x / 2**drop) * multiplier / 2**shift), clipped to codes of dtype",
        drop=0,
        shift=REQUIRED,
        dtype="i8",
    ),
    op("lookup", "x table", lookup, lookup_meaning, "table[x + 128]"),
    op(
        "saturating_add",
        "a b",
        saturating_add,
        saturating_add_meaning,
        "a + b, clipped to 16-bit codes",
    ),
    op(
        "integer_mul",
        "a b",
        integer_mul,
        lambda a, b: a.astype(np.int64) * b,
        "a * b, exact",
    ),
    op(
        "integer_rotate",
        "x blocks experts",
        integer_rotate,
        integer_rotate_meaning,
        "round(block @ group / 2**shift) of each group of b codes, by the row's expert",
        shift=REQUIRED,
    ),
    op(
        "integer_combine",
        "values gates",
        integer_combine,
        integer_combine_meaning,
        "sum over the k chosen experts of gate * value, exact",
    ),
    op(
        "integer_layer_norm",
        "x gain bias",
        integer_layer_norm,
        integer_layer_norm_meaning,
        "round((gain * (x - mean) / |x - mean, eps * 2**eps_shift| + bias) / 2**shift), x as often "
        "as a row is wide, a length of 1 being 2**15",
        shift=REQUIRED,
        eps=0,
        eps_shift=LEAST_EPS_SHIFT,
    ),
    op(
        "integer_softmax",
        "x octave",
        integer_softmax,
        integer_softmax_meaning,
        "exp2 of x below its row's largest, over the row's sum, in 1 / 2**15",
        multiplier=REQUIRED,
        cap=REQUIRED,
        shift=REQUIRED,
    ),
    op(
        "integer_attention",
        "q k v octave",
        integer_attention,
        integer_attention_meaning,
        "the mean of v weighed by exp2 of q @ k.T below its row's largest",
        multiplier=REQUIRED,
        cap=REQUIRED,
        shift=REQUIRED,
        causal=False,
    ),
]
