"""Integer forms of products: by matrices, rotations, and the sum over experts."""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Node, make
from ..kernels.integer_numbers import LIMITS
from .quantize_codes import Quantizer, scaled, shift_for
from .quantize_weights import coded

Array = np.ndarray


def linear(q: Quantizer, node: Node) -> Node:
    x, w, *bias = node.operands
    codes = q.codes(x)
    weights = q.value(w).astype(np.float64)
    added = q.value(bias[0]).astype(np.float64) if bias else np.zeros(len(weights))
    found = coded(weights, added / q.scale_of(codes), q.budget(node))
    unit = q.scale_of(codes) * found.scale
    added = np.rint(added / unit)
    operands = [codes, q.constant(found.rows, "i8", w.name)]
    operands += [q.constant(added, "i32", bias[0].name, most=2**30)] if bias else []
    sums = make(
        "integer_linear", *operands, name=f"{node.name}.sums", source=node.source,
        planes=found.planes,
    )  # fmt: skip
    if np.isfinite(found.snr):
        sums = sums.with_notes(weight_snr=round(found.snr, 2))
    bound = (LIMITS["i8"] * np.abs(found.rows).sum(1) + np.abs(added)).max()
    return q.finished(node, sums, unit, bound)


def ternary_matmul(q: Quantizer, node: Node) -> Node:
    x, w, scale = node.operands
    codes = q.codes(x)
    sums = make("ternary_dot", codes, w, name=f"{node.name}.sums", source=node.source)
    bound = LIMITS["i8"] * max(1, int(np.abs(q.value(w)).sum(1).max()))
    return q.finished(node, sums, q.scale_of(codes) * q.value(scale), bound)


def rotate(q: Quantizer, node: Node) -> Node:
    x, blocks, experts = node.operands
    codes, scale = q.codes(x), q.scale(node, "i8")
    turns = q.value(blocks).astype(np.float64) * (q.scale_of(codes) / scale)
    shift = shift_for(float(np.abs(turns).max()))
    held = q.constant(np.rint(turns * 2.0**shift), "i16", blocks.name)
    operands = codes, held, q.done[experts]
    made = make("integer_rotate", *operands, name=node.name, source=node.source, shift=shift)
    return q.settled(node, scaled(made, scale))


def combine(q: Quantizer, node: Node) -> Node:
    values, gates = q.codes(node.operands[0]), q.codes(node.operands[1], "i16")
    sums = make("integer_combine", values, gates, name=f"{node.name}.sums", source=node.source)
    bound = LIMITS["i8"] * LIMITS["i16"] * gates.type.shape[-1]
    return q.finished(node, sums, q.scale_of(values) * q.scale_of(gates), bound)
