"""One product for q, k and v, and attention that reads heads where they lie.

    %1 = linear(%h, %w, %b) : f32[B, T, 768]       %1 = linear(%h, %w, %b) : f32[B, T, 768]
    %2 = reshape(%1) : f32[B, T, 3, 4, 64]         %y = qkv_attention(%1) {heads = 4}
    %3 = transpose(%2) : f32[3, B, 4, T, 64]
    %q, %k, %v = slices of %3                  ->
    %a = attention(%q, %k, %v)
    %4 = transpose(%a) : f32[B, T, 4, 64]
    %y = reshape(%4) : f32[B, T, 256]

q, k and v may be cut out of one product in any layout, or come from three products of one operand:
their rows are gathered in the order (q, k, v), heads, channels. What moves elements in between is
followed by the numbers of the elements, not by its form. Attention written out as products and a
softmax is recognised first. Heads that several queries share stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.ir import Graph, Node, make
from ..compiler.ir.ops import OPS
from . import rules_shape
from .base import Walk, is_constant, rewrite

Array = np.ndarray
MOVES = frozenset({"reshape", "transpose", "slice", "take"})


def moved_from(node: Node, walk: Walk) -> tuple[Node, Array]:
    """(source, numbers): where ``node`` only moves elements of ``source``, which goes where."""
    path = []
    while node.op in MOVES and all(is_constant(operand) for operand in node.operands[1:]):
        path.append(node)
        node = node.operands[0]
    numbers = np.arange(node.type.size).reshape(node.type.shape)
    for move in reversed(path):
        fixed = (walk.value(operand) for operand in move.operands[1:])
        numbers = OPS[move.op].meaning(numbers, *fixed, **move.attributes)
    return node, numbers


def rows_of(numbers: Array, tokens: int, width: int) -> Array | None:
    """Rows [H, c] of a product [tokens, width] that ``numbers`` [B, H, T, c] spread into heads.

    None if heads are cut out in any other way.
    """
    batch, _, length, _ = numbers.shape
    if tokens != batch * length:
        return None
    token = np.arange(tokens).reshape(batch, 1, length, 1)
    rows = numbers[0, :, 0, :] % width
    fits = (numbers == token * width + rows[None, :, None, :]).all()
    return rows if fits else None


def heads_of(node: Node, walk: Walk) -> tuple[Node, Array] | None:
    """(product, its rows [H, c]) of an operand of attention."""
    product, numbers = moved_from(node, walk)
    if product.op != "linear" or product["activation"] != "none":
        return None
    if not all(is_constant(operand) for operand in product.operands[1:]):
        return None
    width = product.type.shape[-1]
    rows = rows_of(numbers, product.type.size // width, width)
    return None if rows is None else (product, rows)


def stacked(parts: list[tuple[Node, Array]], walk: Walk) -> Node:
    """One product that makes the rows of ``parts``, one after the other."""
    products = [product for product, _ in parts]
    first, all_rows = products[0], [rows.ravel() for _, rows in parts]
    width = first.type.shape[-1]
    if all(p is first for p in products) and np.array_equal(
        np.concatenate(all_rows), np.arange(width)
    ):
        return first

    def gathered(index: int, name: str) -> Node:
        arrays = [_operand(product, index, walk) for product in products]
        chosen = [a[rows] for a, rows in zip(arrays, all_rows, strict=True)]
        array = np.concatenate(chosen)
        return walk.constant(array, name, first.operands[1].type.with_shape(*array.shape))

    named = list(dict.fromkeys(product.name for product in products))
    weights = list(dict.fromkeys(product.operands[1].name for product in products))
    operands = [first.operands[0], gathered(1, "+".join(weights))]
    biases = [p.operands[2].name for p in products if len(p.operands) == 3]
    if biases:
        operands.append(gathered(2, "+".join(dict.fromkeys(biases))))
    return make("linear", *operands, name="+".join(named), source=first.source)


def _operand(product: Node, index: int, walk: Walk) -> Array:
    """Operand ``index`` of a product; zeros for the bias that it does not have."""
    if index < len(product.operands):
        return walk.value(product.operands[index])
    return np.zeros(product.type.shape[-1], product.operands[1].type.storage)


def fuse(node: Node, walk: Walk) -> Node | None:
    """attention on heads cut out of products of one operand -> qkv_attention."""
    if node.op != "attention":
        return None
    found = [heads_of(operand, walk) for operand in node.operands]
    parts = [part for part in found if part is not None]
    if len(parts) < 3 or len({rows.shape for _, rows in parts}) > 1:
        return None
    first = parts[0][0]
    if any(p.operands[0] is not first.operands[0] for p, _ in parts):
        return None
    if any(p.operands[1].type.dtype != first.operands[1].type.dtype for p, _ in parts):
        return None
    rows = {(product, int(row)) for product, part in parts for row in part.ravel()}
    if len(rows) != 3 * parts[0][1].size:
        return None  # heads that several queries share would be computed for each
    batch, heads, tokens, size = node.operands[0].type.shape
    if node.operands[1].type.shape[2] != tokens:
        return None
    qkv = stacked(parts, walk)
    shape = batch, tokens, 3 * heads * size
    if qkv.type.shape != shape:
        qkv = make("reshape", qkv, shape=shape, name=f"{qkv.name}.rows", source=qkv.source)
    options = {"scale": node["scale"], "causal": node["causal"]}
    mixed = make("qkv_attention", qkv, heads=heads, name=node.name, source=node.source, **options)
    apart = (batch, tokens, heads, size)
    split = make("reshape", mixed, shape=apart, name=f"{node.name}.heads", source=node.source)
    name = f"{node.name}.by_head"
    return make("transpose", split, order=(0, 2, 1, 3), name=name, source=node.source)


def number_of(node: Node, walk: Walk) -> float | None:
    """The value of a constant with one element."""
    one = is_constant(node) and node.type.size == 1
    return float(walk.value(node).reshape(())) if one else None


def written_out(node: Node, walk: Walk) -> Node | None:
    """matmul(softmax(matmul(q, transpose(k)) * scale), v) -> attention."""
    if node.op != "matmul" or node.operands[0].op != "softmax" or node.type.rank != 4:
        return None
    weights, v = node.operands
    scores, scale = weights.operands[0], 1.0
    if weights["axis"] % 4 != 3:
        return None
    if scores.op in ("mul", "div"):
        number = number_of(scores.operands[1], walk)
        if number is None or scores.operands[0].types != scores.types:
            return None
        scale, scores = number if scores.op == "mul" else 1 / number, scores.operands[0]
    if scores.op != "matmul":
        return None
    q, turned = scores.operands
    order, name = (0, 1, 3, 2), f"{turned.name}.transposed"
    k = make("transpose", turned, order=order, name=name, source=turned.source)
    fits = q.type.shape[:2] == k.type.shape[:2] == v.type.shape[:2]
    if not fits or q.type.shape[3] != k.type.shape[3]:
        return None
    return make("attention", q, k, v, scale=scale, name=node.name, source=node.source)


@dataclass(frozen=True)
class FuseAttention:
    """Every self-attention on products of one operand."""

    name = "fuse_attention"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, written_out, fuse, *rules_shape.RULES)
