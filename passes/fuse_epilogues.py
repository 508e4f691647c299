"""Sums of 32 bits are made codes where they are computed, and are never stored.

    %1 = integer_linear(%x, %w, %bias) : i32[T, N]
    %2 = requantize(%1, %m) {drop, shift, dtype = "i16"} : i16[T, N]
    %y = saturating_add(%residual, %2)
    ->
    %y = quantized_linear(%x, %w, %bias, %m, %residual) {drop, shift, dtype = "i16"} : i16[T, N]

So it is with `ternary_dot` and a table behind it (`quantized_ternary`), and with the sum over
experts (`quantized_combine`). Nothing is fused whose sums or codes something else reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node, Type, make
from .base import Walk, rewrite


def codes_of_sums(node: Node, walk: Walk) -> Node | None:
    """requantize(a product) -> the product that gives codes."""
    if node.op != "requantize" or not walk.read_once(node.operands[0]):
        return None
    sums, multiplier = node.operands
    shifts = {"drop": node["drop"], "shift": node["shift"]}
    if sums.op == "integer_linear":
        x, w, *bias = sums.operands
        if not bias:
            zeros = np.zeros(w.type.shape[0], np.int32)
            name = f"{node.name}.zeros"
            bias = [walk.constant(zeros, name, Type("i32", zeros.shape))]
        kept = {"dtype": node["dtype"], "planes": sums["planes"]}
        return _like(node, "quantized_linear", x, w, *bias, multiplier, **shifts, **kept)
    if sums.op == "integer_combine":
        return _like(
            node, "quantized_combine", *sums.operands, multiplier, **shifts, dtype=node["dtype"]
        )
    if sums.op == "ternary_dot" and node["dtype"] == "i8":
        return _like(node, "quantized_ternary", *sums.operands, multiplier, **shifts)
    return None


def table_behind(node: Node, walk: Walk) -> Node | None:
    """lookup(quantized_ternary) -> quantized_ternary with the table."""
    x = node.operands[0] if node.operands else node
    plain = x.op == "quantized_ternary" and len(x.operands) == 3
    if node.op != "lookup" or not plain or not walk.read_once(x):
        return None
    return _like(node, x.op, *x.operands, node.operands[1], **x.attributes)


def added_to(node: Node, walk: Walk) -> Node | None:
    """saturating_add(residual, quantized_linear) -> quantized_linear with the residual."""
    if node.op != "saturating_add":
        return None
    for residual, codes in (node.operands, node.operands[::-1]):
        product, shapes = _behind_reshapes(codes, walk)
        plain = product.op == "quantized_linear" and len(product.operands) == 4
        fits = plain and walk.read_once(product)
        if not fits or residual.type.shape != node.type.shape or codes.types != node.types:
            continue
        if product.type.shape != node.type.shape:
            residual = _reshaped(residual, product.type.shape, f"{residual.name}.rows")
        renamed = replace(product, name=f"{node.name}.rows" if shapes else node.name)
        whole = _like(renamed, product.op, *product.operands, residual, **product.attributes)
        return _reshaped(whole, node.type.shape, node.name) if shapes else whole
    return None


def _behind_reshapes(node: Node, walk: Walk) -> tuple[Node, int]:
    """What ``node`` shows, through this many reshapes that nothing else reads."""
    passed = 0
    while node.op == "reshape" and walk.read_once(node):
        node, passed = node.operands[0], passed + 1
    return node, passed


def _reshaped(node: Node, shape: tuple[int, ...], name: str) -> Node:
    made = make("reshape", node, shape=shape, name=name, source=node.source)
    return replace(made, types=(replace(node.type, shape=shape),))


def _like(node: Node, op: str, *operands: Node, **attributes: Any) -> Node:
    """``op`` in the place of ``node``, whose scale it has."""
    made = make(op, *operands, name=node.name, source=node.source, **attributes)
    return replace(made, types=(replace(made.type, scale=node.type.scale),))


@dataclass(frozen=True)
class FuseEpilogues:
    """Every product whose sums become codes."""

    name = "fuse_epilogues"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, codes_of_sums, table_behind, added_to)
