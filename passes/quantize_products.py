"""Integer forms of products: by matrices, rotations, and the sum over experts."""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Node, make
from ..kernels.integer_numbers import LIMITS, TURN_BITS, TURNED_BITS, turn_table
from .givens import turns_of
from .quantize_angles import angles_of, parts_of_a_turn
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
    turned = _turned(q, node, codes, scale, q.angles) if q.angles else None
    if turned is not None:
        return q.settled(node, scaled(turned, scale))
    turns = q.value(blocks).astype(np.float64) * (q.scale_of(codes) / scale)
    shift = shift_for(float(np.abs(turns).max()))
    held = q.constant(np.rint(turns * 2.0**shift), "i16", blocks.name)
    operands = codes, held, q.done.get(experts, experts)
    made = make("integer_rotate", *operands, name=node.name, source=node.source, shift=shift)
    return q.settled(node, scaled(made, scale))


def _turned(q: Quantizer, node: Node, codes: Node, scale: float, dtype: str) -> Node | None:
    """A rotation by angles of that dtype in place of blocks, if Givens rotations make it."""
    _, blocks, experts = node.operands
    found = turns_of(q.value(blocks).astype(np.float64))
    if found is None:
        return None
    pairs, order = found
    # Two layers, or one, of which the later turns are by nothing.
    turns = 4 if np.any(pairs[:, :, 2:] != [1, 0]) else 2
    angles = parts_of_a_turn(angles_of(pairs[:, :, :turns]), dtype)
    table = q.constant(np.array(turn_table(dtype), np.int16), "i16", f"turns_{dtype}")
    name, most = "angles".join(blocks.name.rsplit("blocks", 1)), 1 << (TURN_BITS[dtype] - 1)
    held = q.constant(angles, dtype, name, most)
    factor = q.scale_of(codes) / scale / (1 << TURNED_BITS)
    shift = shift_for(factor)
    return make(
        "integer_turn", codes, held, q.done.get(experts, experts), table, name=node.name,
        source=node.source, order=order, multiplier=max(1, round(factor * 2.0**shift)), shift=shift,
    )  # fmt: skip


def combine(q: Quantizer, node: Node) -> Node:
    values, gates = q.codes(node.operands[0]), q.codes(node.operands[1], "i16")
    sums = make("integer_combine", values, gates, name=f"{node.name}.sums", source=node.source)
    bound = LIMITS["i8"] * LIMITS["i16"] * gates.type.shape[-1]
    return q.finished(node, sums, q.scale_of(values) * q.scale_of(gates), bound)
