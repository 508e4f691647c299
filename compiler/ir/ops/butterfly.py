"""The ops of a Butterfly mixture-of-experts layer.

A rotation of L layers is a chain of `rotate` (orthogonal blocks, one set an expert) and `shuffle`
(a fixed order of channels, the same for all experts). Padding and stripping are shuffles too.

`lanes` says where the b members of a group of channels lie: member i of group g is channel
(g // lanes) * b * lanes + i * lanes + g % lanes. With lanes = 1 they are neighbours; with the width
of a vector unit, members of one group lie in the same lane of b vectors that follow one another.
"""

from __future__ import annotations

import numpy as np

from ..types import FLOATS, INTEGERS, Type
from .elementwise import ACTIVATIONS
from .table import REQUIRED, broadcast_shapes, op, want

Array = np.ndarray


def top_k(x: Type, k: int) -> tuple[Type, Type]:
    want(x.rank >= 1 and 1 <= k <= x.shape[-1], f"top {k} of {x}")
    values = Type(x.dtype, (*x.shape[:-1], k))
    return values, values.with_dtype("i64")


def top_k_meaning(x: Array, k: int) -> tuple[Array, Array]:
    # The least of a type of integers has no negative, nor has anything unsigned.
    keys = x.astype(np.int64) if np.issubdtype(x.dtype, np.integer) else x
    order = np.argsort(-keys, axis=-1, kind="stable")[..., :k].astype(np.int64)
    return np.take_along_axis(x, order, -1), order


def shuffle(x: Type, order: Type) -> Type:
    want(order.dtype == "i32" and order.rank == 1, f"the order is {order}, not i32[n]")
    return Type(x.dtype, (*x.shape[:-1], *order.shape))


def shuffle_meaning(x: Array, order: Array) -> Array:
    moved = np.take(x, np.maximum(order, 0), axis=-1)
    return np.where(order >= 0, moved, x.dtype.type(0))


def rotate(x: Type, blocks: Type, experts: Type, lanes: int = 1) -> Type:
    fits = blocks.rank == 4 and blocks.shape[2] == blocks.shape[3]
    want(fits, f"blocks are [experts, groups, b, b], got {blocks}")
    want(experts.dtype in INTEGERS, f"the expert numbers are {experts}")
    width = blocks.shape[1] * blocks.shape[2]
    want(x.shape[-1] == width, f"x has {x.shape[-1]} channels, the blocks rotate {width}")
    rows = broadcast_shapes(x.shape[:-1], experts.shape)
    want(rows == experts.shape, f"rows of {x} do not fit experts {experts}")
    want(blocks.shape[1] % lanes == 0, f"{blocks.shape[1]} groups are no multiple of {lanes} lanes")
    return Type(x.dtype, (*experts.shape, width))


def rotate_meaning(x: Array, blocks: Array, experts: Array, lanes: int) -> Array:
    _, groups, b, _ = blocks.shape
    rows = np.broadcast_to(x, (*experts.shape, x.shape[-1]))
    parts = rows.reshape(*experts.shape, groups // lanes, b, lanes).swapaxes(-1, -2)
    chosen = blocks[experts].reshape(*parts.shape, b).astype(x.dtype)
    return (chosen @ parts[..., None])[..., 0].swapaxes(-1, -2).reshape(rows.shape)


def _check_scale(scale: Type, outputs: int) -> None:
    want(scale.shape in ((), (outputs,)), f"scale {scale} for {outputs} outputs")


def ternary_matmul(x: Type, w: Type, scale: Type) -> Type:
    want(w.dtype == "ternary" and w.rank == 2, f"w is {w}, not ternary[N, K]")
    want(x.dtype in FLOATS and x.shape[-1] == w.shape[1], f"x {x} does not fit w {w}")
    _check_scale(scale, w.shape[0])
    return Type(x.dtype, (*x.shape[:-1], w.shape[0]))


def ternary_matmul_meaning(x: Array, w: Array, scale: Array) -> Array:
    return (x @ w.T.astype(x.dtype)) * scale.astype(x.dtype)


def _check_bits(name: str, bits: int, known: tuple[int, ...]) -> None:
    want(bits in known, f"{name} is {' or '.join(map(str, known))}, not {bits}")


def quantize_rows(x: Type, bits: int = 8) -> tuple[Type, Type]:
    want(x.dtype in FLOATS and x.rank >= 1, f"needs float rows, got {x}")
    _check_bits("bits", bits, (7, 8))
    return Type("i8", x.shape), Type(x.dtype, (*x.shape[:-1], 1))


def quantize_rows_meaning(x: Array, bits: int) -> tuple[Array, Array]:
    one, most = x.dtype.type(1), 2 ** (bits - 1) - 1
    largest = np.abs(x).max(-1, keepdims=True)
    inverse = np.where(largest > 0, most * one / np.where(largest > 0, largest, one), 0 * one)
    codes = np.clip(np.rint(x * inverse), -most, most).astype(np.int8)
    return codes, largest * (one / most)


def ternary_dot(codes: Type, w: Type, bits: int = 8) -> Type:
    want(codes.dtype == "i8", f"the codes are {codes}, not i8")
    want(w.dtype == "ternary" and w.rank == 2, f"w is {w}, not ternary[N, K]")
    want(codes.shape[-1] == w.shape[1], f"codes {codes} do not fit w {w}")
    _check_bits("bits", bits, (7, 8))
    return Type("i32", (*codes.shape[:-1], w.shape[0]))


def ternary_dot_meaning(codes: Array, w: Array, bits: int = 8) -> Array:
    return codes.astype(np.int32) @ w.T.astype(np.int32)


def dequantize(sums: Type, row_scale: Type, scale: Type) -> Type:
    want(sums.dtype == "i32", f"the sums are {sums}, not i32")
    want(row_scale.shape == (*sums.shape[:-1], 1), f"row scale {row_scale} for {sums}")
    _check_scale(scale, sums.shape[-1])
    return Type(row_scale.dtype, sums.shape)


def dequantize_meaning(sums: Array, row_scale: Array, scale: Array) -> Array:
    return sums.astype(row_scale.dtype) * (row_scale * scale.astype(row_scale.dtype))


def combine(values: Type, gates: Type) -> Type:
    fits = values.rank >= 2 and values.shape[:-1] == gates.shape and values.dtype == gates.dtype
    want(fits, f"needs values [..., k, n] and gates [..., k], got {values} and {gates}")
    return Type(values.dtype, (*values.shape[:-2], values.shape[-1]))


def combine_meaning(values: Array, gates: Array) -> Array:
    return (values * gates[..., None]).sum(-2, dtype=values.dtype)


def butterfly_experts(
    x: Type,
    blocks_in: Type,
    w: Type,
    scale: Type,
    bias: Type,
    gates: Type,
    experts: Type,
    blocks_out: Type | None = None,
    activation: str = "none",
    activate_last: bool = False,
    activation_bits: int = 0,
    lanes_in: int = 1,
    lanes_out: int = 1,
    biased: bool = True,
) -> Type:
    want(x.rank == 2 and gates.rank == 2, f"needs x [T, d] and gates [T, k], got {x}, {gates}")
    want(experts.shape == gates.shape, f"gates {gates}, but experts {experts}")
    want(activation in ACTIVATIONS, f"activation '{activation}', known: {sorted(ACTIVATIONS)}")
    _check_bits("activation_bits", activation_bits, (0, 7, 8))
    want(bias.shape == w.shape[:1], f"bias {bias} for w {w}")
    rows = Type(x.dtype, (x.shape[0], 1, x.shape[1]))
    products = ternary_matmul(rotate(rows, blocks_in, experts, lanes_in), w, scale)
    if blocks_out is not None:
        products = rotate(products, blocks_out, experts, lanes_out)
    return combine(products, gates)


def butterfly_experts_meaning(
    x: Array,
    blocks_in: Array,
    w: Array,
    scale: Array,
    bias: Array,
    gates: Array,
    experts: Array,
    blocks_out: Array | None = None,
    *,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    lanes_in: int,
    lanes_out: int,
    biased: bool,
) -> Array:
    rotated = rotate_meaning(x[:, None, :], blocks_in, experts, lanes_in)  # [T, k, d]
    if activation_bits:
        codes, row_scale = quantize_rows_meaning(rotated, activation_bits)
        u = dequantize_meaning(ternary_dot_meaning(codes, w), row_scale, scale)
    else:
        u = ternary_matmul_meaning(rotated, w, scale)
    u = u + bias.astype(x.dtype) if biased else u  # [T, k, F]
    activate = ACTIVATIONS[activation]
    if not activate_last:
        u = activate(u)
    if blocks_out is not None:
        u = rotate_meaning(u, blocks_out, experts, lanes_out)
    if activate_last:
        u = activate(u)
    return combine_meaning(u, gates)


OPS = [
    op(
        "top_k",
        "x",
        top_k,
        top_k_meaning,
        "the k largest of the last axis, largest first, and where; of equals the first wins",
        k=REQUIRED,
    ),
    op(
        "shuffle",
        "x order",
        shuffle,
        shuffle_meaning,
        "channel i is x[..., order[i]], or 0 where order[i] is -1",
    ),
    op(
        "rotate",
        "x blocks experts",
        rotate,
        rotate_meaning,
        "each group of b channels times the b x b block of the row's expert",
        lanes=1,
    ),
    op(
        "ternary_matmul",
        "x w scale",
        ternary_matmul,
        ternary_matmul_meaning,
        "(x @ w.T) * scale, w ternary[N, K], scale a scalar or [N]",
    ),
    op(
        "quantize_rows",
        "x",
        quantize_rows,
        quantize_rows_meaning,
        "codes of 8 bits, -127..127, or of 7, -63..63, by each row's largest magnitude, ties to "
        "even; and the rows' scales",
        bits=8,
    ),
    op(
        "ternary_dot",
        "codes w",
        ternary_dot,
        ternary_dot_meaning,
        "exact integer codes @ w.T, of codes of so many bits: no larger than 127, or 63",
        bits=8,
    ),
    op(
        "dequantize",
        "sums row_scale scale",
        dequantize,
        dequantize_meaning,
        "sums * (row_scale * scale)",
    ),
    op(
        "combine",
        "values gates",
        combine,
        combine_meaning,
        "sum over the k chosen experts of gate * value",
    ),
    op(
        "butterfly_experts",
        "x blocks_in w scale bias gates experts blocks_out?",
        butterfly_experts,
        butterfly_experts_meaning,
        "sum over chosen experts of gate * rotate(activation(rotate(x) @ w.T * scale + bias)); "
        "not biased: without the bias; activation_bits 7 or 8: of rotated rows as such codes",
        activation="none",
        activate_last=False,
        activation_bits=0,
        lanes_in=1,
        lanes_out=1,
        biased=True,
    ),
]
