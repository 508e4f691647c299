"""One op for a whole Butterfly layer, as GPUs compute it: rotations as angles, halves rounded late.

Groups are four neighbouring channels. A rotation is four Givens rotations a group, given as pairs
(cos, sin) [E, groups, 4, 2]: the first two turn members (0, 1) and (2, 3), the others (0, 2) and
(1, 3) of what those gave. A turn by (c, s) makes (c a - s b, s a + c b) of (a, b). An ``order``
renames members: the first four of its numbers say which channel of a group each member is, the
others which channel each becomes.

Everything is computed in float32, but what a tensor core reads (rotated rows, and what goes into
w_down) is rounded to ``dtype`` first. Pairs and w_down are of the types that they are stored in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..types import FLOATS, INTEGERS, Type
from .butterfly import (
    dequantize_meaning,
    quantize_rows_meaning,
    ternary_dot_meaning,
    ternary_matmul_meaning,
)
from .elementwise import ACTIVATIONS, cast
from .table import REQUIRED, op, want

Array = np.ndarray
# The members that each of the four rotations of a group turns.
TURNED = ((0, 1), (2, 3), (0, 2), (1, 3))
IN_ORDER = (0, 1, 2, 3, 0, 1, 2, 3)


def turn(x: Array, pairs: Array, order: tuple[int, ...]) -> Array:
    """x [..., 4 * groups] rotated by pairs [..., groups, 4, 2]."""
    parts = [x.reshape(*x.shape[:-1], -1, 4)[..., channel] for channel in order[:4]]
    for i, (a, b) in enumerate(TURNED):
        c, s = pairs[..., i, 0], pairs[..., i, 1]
        parts[a], parts[b] = c * parts[a] - s * parts[b], s * parts[a] + c * parts[b]
    renamed = [parts[order[4:].index(channel)] for channel in range(4)]
    turned = np.stack(np.broadcast_arrays(*renamed), -1)
    return turned.reshape(*turned.shape[:-2], -1)


def butterfly_layer(
    x: Type,
    pairs_in: Type,
    w: Type,
    scale: Type,
    bias: Type,
    gates: Type,
    experts: Type,
    pairs_out: Type,
    w_down: Type | None = None,
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    order_in: tuple[int, ...],
    order_out: tuple[int, ...],
    biased: bool,
) -> Type:
    check_layer(x, w, scale, bias, gates, experts, dtype, activation, activation_bits)
    want(x.shape[1] == w.shape[1], f"x {x} does not fit w {w}")
    for pairs, width in ((pairs_in, w.shape[1]), (pairs_out, w.shape[0])):
        want(pairs.rank == 4 and pairs.shape[2:] == (4, 2), f"pairs {pairs}, not [E, groups, 4, 2]")
        want(pairs.shape[1] * 4 == width, f"pairs {pairs} for {width} channels")
    for order in (order_in, order_out):
        halves = sorted(order[:4]), sorted(order[4:])
        want(halves == ([0, 1, 2, 3],) * 2, f"the order {order} is not twice 0, 1, 2, 3")
    if w_down is None:
        return Type(x.dtype, (x.shape[0], w.shape[0]))
    want(w_down.rank == 2 and w_down.shape[1] == w.shape[0], f"w_down {w_down} for w {w}")
    return Type(x.dtype, (x.shape[0], w_down.shape[0]))


def check_layer(
    x: Type,
    w: Type,
    scale: Type,
    bias: Type,
    gates: Type,
    experts: Type,
    dtype: str,
    activation: str,
    activation_bits: int,
) -> None:
    """What layers of any rotations want of their operands. Raises ValueError."""
    want(x.rank == 2 and x.dtype in FLOATS, f"needs float x[T, d], got {x}")
    want(dtype in FLOATS, f"rows of {dtype}")
    want(w.dtype == "ternary" and w.rank == 2, f"w is {w}, not ternary[F, d]")
    want(scale.shape in ((), w.shape[:1]), f"scale {scale} for {w.shape[0]} outputs")
    want(bias.shape == w.shape[:1], f"bias {bias} for w {w}")
    want(gates.rank == 2 and gates.shape[0] == x.shape[0], f"gates {gates} for x {x}")
    want(experts.shape == gates.shape, f"gates {gates}, but experts {experts}")
    want(experts.dtype in INTEGERS, f"the expert numbers are {experts}")
    want(activation in ACTIVATIONS, f"activation '{activation}', known: {sorted(ACTIVATIONS)}")
    want(activation_bits in (0, 8), f"activation_bits is 0 or 8, not {activation_bits}")


def butterfly_layer_meaning(
    x: Array,
    pairs_in: Array,
    w: Array,
    scale: Array,
    bias: Array,
    gates: Array,
    experts: Array,
    pairs_out: Array,
    w_down: Array | None = None,
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    order_in: tuple[int, ...],
    order_out: tuple[int, ...],
    biased: bool,
) -> Array:
    def rotated(rows: Array, pairs: Array, order: tuple[int, ...]) -> Array:
        return turn(rows, pairs.astype(rows.dtype)[experts], order)

    return layer_meaning(
        x,
        w,
        scale,
        bias,
        gates,
        w_down,
        lambda rows: rotated(rows, pairs_in, order_in),
        lambda u: rotated(u, pairs_out, order_out),
        dtype=dtype,
        activation=activation,
        activate_last=activate_last,
        activation_bits=activation_bits,
        biased=biased,
    )


def layer_meaning(
    x: Array,
    w: Array,
    scale: Array,
    bias: Array,
    gates: Array,
    w_down: Array | None,
    rotate_in: Callable[[Array], Array],
    rotate_out: Callable[[Array], Array],
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    biased: bool,
) -> Array:
    """A layer of any rotations: ``rotate_in`` of x [T, 1, d] gives [T, k, d]."""
    wide = np.result_type(x.dtype, np.float32)  # float64 where the interpreter computes in it

    def rounded(values: Array) -> Array:
        return cast(values, dtype).astype(wide) if dtype in ("f16", "bf16") else values

    rows = rotate_in(x.astype(wide)[:, None])
    if activation_bits:
        codes, row_scale = quantize_rows_meaning(rows, activation_bits)
        u = dequantize_meaning(ternary_dot_meaning(codes, w), row_scale, scale)
    else:
        u = ternary_matmul_meaning(rounded(rows), w, scale)
    u = u + bias.astype(wide) if biased else u  # [T, k, F]
    activate = ACTIVATIONS[activation]
    u = u if activate_last else activate(u)
    u = rotate_out(u)
    u = activate(u) if activate_last else u
    y = (u * gates.astype(wide)[..., None]).sum(1, dtype=wide)
    if w_down is not None:
        y = rounded(y)[:, : w_down.shape[1]] @ w_down.astype(wide).T
    return y.astype(x.dtype)


OPS = [
    op(
        "butterfly_layer",
        "x pairs_in w scale bias gates experts pairs_out w_down?",
        butterfly_layer,
        butterfly_layer_meaning,
        "w_down of the sum over chosen experts of gate * rotate(activation(rotate(x) @ w.T * scale "
        "+ bias)), with rows of dtype; not biased: without the bias; activation_bits 8: of rotated "
        "rows as such codes",
        dtype=REQUIRED,
        activation="none",
        activate_last=False,
        activation_bits=0,
        order_in=IN_ORDER,
        order_out=IN_ORDER,
        biased=True,
    ),
]
