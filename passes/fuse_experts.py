"""One op for a mixture of experts: rotate, ternary product, activation, rotate, weighted sum.

    %1 = reshape(%h) : f32[T, 1, d]
    %2 = rotate(%1, %theta, %experts) : f32[T, k, d]
    %3 = ternary_matmul(%2, %w, %scale) : f32[T, k, F]
    %4 = add(%3, %bias)
    %5 = gelu(%4)
    %6 = rotate(%5, %phi, %experts)
    %y = combine(%6, %gates) : f32[T, F]
    ->
    %y = butterfly_experts(%h, %theta, %w, %scale, %bias, %gates, %experts, %phi)
             {activation = "gelu"}

Also with the activation behind the second rotation, without that rotation, without a bias (zeros
stand for it), and on codes of 8 or 7 bits, as `quantize_activations` makes them. Blocks are 2 x 2
or 4 x 4. Anything else between the rotations stays unfused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.ir import Graph, Node, make
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from .base import Walk, is_constant, rewrite
from .rules_shape import compose_reshapes, drop_identity

BLOCKS = (2, 4)


@dataclass
class Chain:
    """Goes up from a weighted sum, op by op, as long as nothing else reads what it passes."""

    at: Node
    walk: Walk

    def step(self, *ops: str) -> Node | None:
        """The op just passed, if it is one of ``ops``; else None, and nothing is passed."""
        node = self.at
        if node.op not in ops or not self.walk.read_once(node):
            return None
        self.at = node.operands[0]
        return node

    def rotation(self) -> Node | None:
        """The rotation just passed, if it has small fixed blocks."""
        node = self.at
        if node.op == "rotate" and is_constant(node.operands[1]):
            return self.step("rotate") if node.operands[1].type.shape[-1] in BLOCKS else None
        return None

    def bias(self) -> Node | None:
        """The constant row that was just added."""
        node = self.at
        if node.op == "add" and self.walk.read_once(node):
            for rows, bias in (node.operands, node.operands[::-1]):
                if is_constant(bias) and bias.type.size == node.type.shape[-1]:
                    self.at = rows
                    return bias
        return None

    def product(self) -> tuple[Node, Node, int] | None:
        """Weights, scale and bits of the ternary product just passed."""
        found = self.step("ternary_matmul")
        if found is not None:
            return found.operands[1], found.operands[2], 0
        if self.at.op != "dequantize" or not self.walk.read_once(self.at):
            return None
        sums, scales, scale = self.at.operands
        if sums.op != "ternary_dot" or not self.walk.read_once(sums):
            return None
        codes, weights = sums.operands
        if not (codes.op == scales.op == "result" and codes.operands == scales.operands):
            return None
        rows = codes.operands[0]
        if rows.op != "quantize_rows" or (codes["index"], scales["index"]) != (0, 1):
            return None
        self.at = rows.operands[0]
        return weights, scale, int(rows["bits"])


def fuse(node: Node, walk: Walk) -> Node | None:
    """`combine` over one rotation in and at most one out as `butterfly_experts`."""
    if node.op != "combine" or node.type.rank != 2:
        return None
    gates, chain = node.operands[1], Chain(node.operands[0], walk)
    last = chain.step(*ACTIVATIONS)
    after = chain.rotation()
    first = None if last else chain.step(*ACTIVATIONS)
    bias, product = chain.bias(), chain.product()
    before = None if product is None else chain.rotation()
    if product is None or before is None:
        return None
    experts = before.operands[2]
    if after is not None and after.operands[2] is not experts:
        return None
    rows = chain.at
    if rows.type.rank != 3 or rows.type.shape[1] != 1 or experts.type.shape != gates.type.shape:
        return None
    weights, scale, bits = product
    width, biased = weights.type.shape[0], bias is not None
    if bias is None or bias.type.shape != (width,):
        values = np.zeros(width, node.type.storage) if bias is None else walk.value(bias)
        name = f"{node.name}.zeros" if bias is None else bias.name
        bias = walk.constant(values.reshape(width), name, node.type.with_shape(width))
    activation = last or first
    operands = [tokens_of(rows), before.operands[1], weights, scale, bias, gates, experts]
    return make(
        "butterfly_experts",
        *operands,
        *(() if after is None else (after.operands[1],)),
        name=node.name,
        source=node.source,
        activation=activation.op if activation else "none",
        activate_last=last is not None and after is not None,
        activation_bits=bits,
        lanes_in=before["lanes"],
        lanes_out=1 if after is None else after["lanes"],
        biased=biased,
    )


def tokens_of(rows: Node) -> Node:
    """``rows``, [T, 1, d], as [T, d]."""
    shape = rows.type.shape[0], rows.type.shape[2]
    if rows.op == "reshape" and rows.operands[0].type.shape == shape:
        return rows.operands[0]
    return make("reshape", rows, shape=shape, name=f"{rows.name}.tokens", source=rows.source)


@dataclass(frozen=True)
class FuseExperts:
    """Every mixture that has the form above."""

    name = "fuse_experts"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        # The rows came as [T, 1, d] out of other views: [T, d] may be there already.
        return rewrite(graph, fuse, compose_reshapes, drop_identity)
