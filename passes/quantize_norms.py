"""Integer forms of norms, softmax and attention."""

from __future__ import annotations

import math

import numpy as np

from ..compiler.ir import Node, make
from ..kernels.integer_numbers import (
    EPS_BITS,
    LEAST_EPS_SHIFT,
    LIMITS,
    UNIT_BITS,
    exp2_table,
)
from .quantize_codes import Quantizer, decay_of, scaled, shift_for


def layer_norm(q: Quantizer, node: Node) -> Node:
    x, weight, bias = node.operands
    codes, width = q.own(x), x.type.shape[-1]
    scale = q.scale(node, "i8")
    eps, eps_shift, share = eps_of(float(node["eps"]), width, q.scale_of(codes), codes.type.dtype)
    gain = q.value(weight).astype(np.float64) * share * math.sqrt(width) / scale / 2**UNIT_BITS
    added = q.value(bias).astype(np.float64) / scale
    largest = (float(np.abs(numbers).max(initial=0)) for numbers in (gain, added))
    shift = min(map(shift_for, largest, (LIMITS["i16"], 2**29)))
    operands = (
        codes,
        q.constant(np.rint(gain * 2.0**shift), "i16", weight.name),
        q.constant(np.rint(added * 2.0**shift), "i32", bias.name, most=2**29),
    )
    made = make(
        "integer_layer_norm", *operands, name=node.name, source=node.source,
        shift=shift, eps=eps, eps_shift=eps_shift,
    )  # fmt: skip
    return q.settled(node, scaled(made, scale))


def eps_of(eps: float, width: int, scale: float, dtype: str) -> tuple[int, int, float]:
    """The length that ``eps`` adds to rows of codes, as root * 2**shift, and a share of the gain.

    A norm's deviations are ``width`` times those of the codes, so the square of its length is
    width**3 * var / scale**2, to which eps adds width**3 * eps / scale**2. An eps beyond all
    variances that codes can have is cut to where lengths add nothing to it, which leaves more bits
    to the deviations; the gain is what makes up for it.
    """
    length = width**1.5 * math.sqrt(eps) / scale
    share = min(1.0, 4 * width**1.5 * LIMITS[dtype] / length) if length > 0 else 1.0
    length *= share
    shift = max(LEAST_EPS_SHIFT, math.frexp(length)[1] - EPS_BITS)
    return min(round(length / 2.0**shift), (1 << EPS_BITS) - 1), shift, share


def softmax(q: Quantizer, node: Node) -> Node:
    codes = q.own(node.operands[0])
    decay = decay_of(q.scale_of(codes), 2 * LIMITS[codes.type.dtype])
    operands = codes, q.constant(exp2_table(), "i16", "octave")
    made = make("integer_softmax", *operands, name=node.name, source=node.source, **decay)
    return scaled(made, 2.0**-UNIT_BITS)


def attention(q: Quantizer, node: Node) -> Node:
    queries, keys, values = (q.codes(operand) for operand in node.operands)
    unit = q.scale_of(queries) * q.scale_of(keys) * node["scale"]
    most = 2 * queries.type.shape[-1] * LIMITS["i8"] ** 2
    operands = queries, keys, values, q.constant(exp2_table(), "i16", "octave")
    made = make(
        "integer_attention", *operands, name=node.name, source=node.source,
        causal=node["causal"], **decay_of(unit, most),
    )  # fmt: skip
    return q.settled(node, scaled(made, q.scale_of(values)))
