"""Ternary products on activations of 8 bits, or 7, one scale a row (mode a8).

    %y = ternary_matmul(%x, %w, %scale)
    ->
    %1 = quantize_rows(%x) : i8[T, k, K] x f32[T, k, 1]
    %2 = result(%1) {index = 0}
    %3 = ternary_dot(%2, %w) : i32[T, k, N]
    %4 = result(%1) {index = 1}
    %y = dequantize(%3, %4, %scale)

GELU of such products, also behind a bias or a rotation, is taken by a polynomial (`gelu_poly`).

Lossy. A code is off by half a step at most, a step is the row's largest magnitude / 127, so an
output is off by at most scale * (its nonzero weights) * largest / 254. Over a whole product the
error is, in the root mean square, at most (largest / rms of the row) / 440 of the result where the
weights are as good as random: 1 % for a row whose largest element is 4.4 times its rms. GELU is
off by 3e-5 at most beside that.

With ``bits`` of 7, which both ops then say, steps are 127 / 63 as large, and so are the errors.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.ir import Graph, Node, make, result
from .base import Rule, Walk, is_constant, walk_once

# Of codes, where nobody says otherwise; and what they may have.
ACT_BITS = 8
KNOWN_BITS = (7, 8)


def quantizer(bits: int) -> Rule:
    """The rule; products of one operand share its codes."""
    codes_of: dict[Node, tuple[Node, Node]] = {}

    def quantize(node: Node, walk: Walk) -> Node | None:
        if node.op != "ternary_matmul":
            return None
        x, w, scale = node.operands
        if x not in codes_of:
            name = f"{x.name}.quantized"
            rows = make("quantize_rows", x, bits=bits, name=name, source=node.source)
            names = f"{x.name}.codes", f"{x.name}.scales"
            codes_of[x] = result(rows, 0, names[0]), result(rows, 1, names[1])
        codes, scales = codes_of[x]
        name = f"{node.name}.sums"
        sums = make("ternary_dot", codes, w, bits=bits, name=name, source=node.source)
        return make("dequantize", sums, scales, scale, name=node.name, source=node.source)

    return quantize


# What may stand between a product and its activation.
BETWEEN = ("add", "rotate", "shuffle", "reshape")


def gelu_by_polynomial(node: Node, walk: Walk) -> Node | None:
    """gelu of a quantised product -> gelu_poly."""
    if node.op != "gelu":
        return None
    at = node.operands[0]
    while at.op in BETWEEN:
        at = next((x for x in at.operands if not is_constant(x)), at.operands[0])
    if at.op != "dequantize":
        return None
    return make("gelu_poly", node.operands[0], name=node.name, source=node.source)


@dataclass(frozen=True)
class QuantizeActivations:
    """Every ternary product, on codes of ``bits`` bits: -127..127 of 8, -63..63 of 7."""

    bits: int = ACT_BITS

    name = "quantize_activations"
    exact = False

    def __call__(self, graph: Graph) -> Graph:
        quantized = walk_once(graph, quantizer(self.bits), gelu_by_polynomial)
        return graph if quantized is None else quantized
