"""One op for a whole Butterfly layer whose rotations have any number of layers, as GPUs compute it.

A rotation of L layers of n channels is given by ``pairs`` (c, s) [E, L, n, 2] and ``partners``
[L, n]: each layer makes c[i] * x[i] + s[i] * x[partners[i]] of every channel i. Channels keep their
places, so the shuffles between layers are in the partners, and cost nothing. Where n exceeds the
channels of x, the others begin as zeros; of the outputs of W_hat the first ``kept`` are results.

What is rounded, and when, is as in `butterfly_layer`.
"""

from __future__ import annotations

import numpy as np

from ..types import INTEGERS, Type
from .layer import check_layer, layer_meaning
from .table import REQUIRED, op, want

Array = np.ndarray


def turn_layers(x: Array, pairs: Array, partners: Array) -> Array:
    """x [..., n] rotated by pairs [..., L, n, 2] of ``partners`` [L, n]."""
    for layer, partner in enumerate(partners):
        x = pairs[..., layer, :, 0] * x + pairs[..., layer, :, 1] * x[..., partner]
    return x


def butterfly_deep_layer(
    x: Type,
    pairs_in: Type,
    w: Type,
    scale: Type,
    bias: Type,
    gates: Type,
    experts: Type,
    pairs_out: Type,
    partners_in: Type,
    partners_out: Type,
    w_down: Type | None = None,
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    biased: bool,
    kept: int,
) -> Type:
    check_layer(x, w, scale, bias, gates, experts, dtype, activation, activation_bits)
    want(x.shape[1] <= w.shape[1], f"x {x} does not fit w {w}")
    for pairs, partners, width in (
        (pairs_in, partners_in, w.shape[1]),
        (pairs_out, partners_out, w.shape[0]),
    ):
        integers = partners.rank == 2 and partners.dtype in INTEGERS
        want(integers and partners.shape[1] == width, f"partners {partners} for {width} channels")
        fits = pairs.rank == 4 and pairs.shape[1:] == (*partners.shape, 2)
        want(fits, f"pairs {pairs} for partners {partners}, not [E, L, n, 2]")
    want(0 < kept <= w.shape[0], f"the first {kept} outputs of w {w}")
    if w_down is None:
        return Type(x.dtype, (x.shape[0], kept))
    want(w_down.rank == 2 and w_down.shape[1] == kept, f"w_down {w_down} for {kept} outputs")
    return Type(x.dtype, (x.shape[0], w_down.shape[0]))


def butterfly_deep_layer_meaning(
    x: Array,
    pairs_in: Array,
    w: Array,
    scale: Array,
    bias: Array,
    gates: Array,
    experts: Array,
    pairs_out: Array,
    partners_in: Array,
    partners_out: Array,
    w_down: Array | None = None,
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    biased: bool,
    kept: int,
) -> Array:
    def rotated(rows: Array, pairs: Array, partners: Array) -> Array:
        return turn_layers(rows, pairs.astype(rows.dtype)[experts], partners)

    def rotated_in(rows: Array) -> Array:
        zeros = np.zeros((*rows.shape[:-1], w.shape[1] - rows.shape[-1]), rows.dtype)
        return rotated(np.concatenate([rows, zeros], -1), pairs_in, partners_in)

    y = layer_meaning(
        x,
        w,
        scale,
        bias,
        gates,
        w_down,
        rotated_in,
        lambda u: rotated(u, pairs_out, partners_out),
        dtype=dtype,
        activation=activation,
        activate_last=activate_last,
        activation_bits=activation_bits,
        biased=biased,
    )
    return y if w_down is not None else y[:, :kept]


OPS = [
    op(
        "butterfly_deep_layer",
        "x pairs_in w scale bias gates experts pairs_out partners_in partners_out w_down?",
        butterfly_deep_layer,
        butterfly_deep_layer_meaning,
        "butterfly_layer with rotations of any layers: each makes c * x + s * x[partner] of every "
        "channel; kept: how many outputs are results",
        dtype=REQUIRED,
        kept=REQUIRED,
        activation="none",
        activate_last=False,
        activation_bits=0,
        biased=True,
    ),
]
