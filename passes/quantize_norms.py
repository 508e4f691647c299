"""Integer forms of norms, softmax and attention."""

from __future__ import annotations

import math

import numpy as np

from ..compiler.ir import Node, make
from ..kernels.integer_numbers import UNIT_BITS, exp2_table
from .quantize_codes import Quantizer, decay_of, scaled, shift_for


def layer_norm(q: Quantizer, node: Node) -> Node:
    x, weight, bias = node.operands
    width = x.type.shape[-1]
    scale = q.scale(node, "i8")
    gain = q.value(weight).astype(np.float64) * math.sqrt(width) / scale / 2**UNIT_BITS
    added = q.value(bias).astype(np.float64) / scale
    shift = min(shift_for(float(np.abs(gain).max())), shift_for(float(np.abs(added).max()), 2**29))
    operands = (
        q.done[x],
        q.constant(np.rint(gain * 2.0**shift), "i16", weight.name),
        q.constant(np.rint(added * 2.0**shift), "i32", bias.name),
    )
    made = make("integer_layer_norm", *operands, name=node.name, source=node.source, shift=shift)
    return q.settled(node, scaled(made, scale))


def softmax(q: Quantizer, node: Node) -> Node:
    (x,) = node.operands
    codes = q.done[x]
    decay = decay_of(q.scale_of(codes))
    operands = codes, q.constant(exp2_table(), "i16", "octave")
    made = make("integer_softmax", *operands, name=node.name, source=node.source, **decay)
    return scaled(made, 2.0**-UNIT_BITS)


def attention(q: Quantizer, node: Node) -> Node:
    queries, keys, values = (q.codes(operand) for operand in node.operands)
    unit = q.scale_of(queries) * q.scale_of(keys) * node["scale"]
    operands = queries, keys, values, q.constant(exp2_table(), "i16", "octave")
    made = make(
        "integer_attention", *operands, name=node.name, source=node.source,
        causal=node["causal"], **decay_of(unit),
    )  # fmt: skip
    return q.settled(node, scaled(made, q.scale_of(values)))
