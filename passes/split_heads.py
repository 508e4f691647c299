"""Attention a head at a time, so that one head's queries, keys and values live at once.

    %q, %k, %v = heads cut out of linear(%h, %w, %b)    [B, H, T, c]
    %a = attention(%q, %k, %v)
    %y = linear(heads of %a side by side, %p, %c)
    %z = add(%x, %y)
    ->
    %q0, %k0, %v0 = linear(%h, rows of %w) : f32[B, T, c]     and so for every head
    %a0 = attention(%q0, %k0, %v0)                            [B, 1, T, c]
    %z0 = add(%x, linear(%a0, columns of %p, %c))
    %z1 = add(%z0, linear(%a1, columns of %p)) ...

As many multiplications as before. In integers each head has scales of its own, and the stream that
the heads are added to is rounded once a head. Attention written out as products and a softmax is
recognised first. Heads that several queries share stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.ir import Graph, Node, make
from .base import Walk, is_constant, rewrite
from .fuse_attention import heads_of, moved_from, written_out

Array = np.ndarray


def columns_of(attention: Node, product: Node, walk: Walk) -> Array | None:
    """Columns [H, c] of the weights of ``product`` that meet each head of ``attention``.

    None unless a row of what it multiplies is one token's heads side by side, in any order.
    """
    batch, heads, tokens, size = attention.type.shape
    source, numbers = moved_from(product.operands[0], walk)
    width = heads * size
    if source is not attention or numbers.size != batch * tokens * width:
        return None
    if numbers.shape[-1] != width:
        return None
    # places[b, t, column]: head and channel, as one number, of the element that lies there.
    element = np.arange(attention.type.size).reshape(batch, heads, tokens, size)
    place = np.empty(numbers.size, np.int64)
    place[numbers.ravel()] = np.arange(numbers.size)
    columns = place[element] - np.arange(batch * tokens).reshape(batch, 1, tokens, 1) * width
    first = columns[0, :, 0, :]
    same = (columns == first[None, :, None, :]).all() and ((first >= 0) & (first < width)).all()
    return first if same else None


def split(node: Node, walk: Walk) -> Node | None:
    """linear(attention of several heads) -> a sum of products, one a head."""
    if node.op != "linear" or node["activation"] != "none":
        return None
    if not all(is_constant(operand) for operand in node.operands[1:]):
        return None
    attention, _ = moved_from(node.operands[0], walk)
    if attention.op != "attention" or not walk.read_once(attention):
        return None
    heads = attention.type.shape[1]
    columns = columns_of(attention, node, walk)
    parts = [heads_of(operand, walk) for operand in attention.operands]
    if heads < 2 or columns is None or any(part is None for part in parts):
        return None
    if any(len(np.unique(rows)) < rows.size for _, rows in filter(None, parts)):
        return None
    total: Node | None = None
    for head in range(heads):
        inputs = [
            _head(product, rows[head], f"{which}{head}", attention, walk)
            for which, (product, rows) in zip("qkv", filter(None, parts), strict=True)
        ]
        mixed = _attend(attention, inputs, head)
        part = _projected(node, mixed, columns[head], head, walk)
        if total is None:
            total = part
        else:
            name = node.name if head == heads - 1 else f"{node.name}.sum{head}"
            total = make("add", total, part, name=name, source=node.source)
    return total


def _head(product: Node, rows: Array, which: str, attention: Node, walk: Walk) -> Node:
    """Some rows of a product as one head [B, 1, T, c]."""
    x, weights, *bias = product.operands
    held = [
        walk.constant(walk.value(c)[rows], f"{c.name}.{which}", c.type.with_shape(*shape))
        for c in (weights, *bias)
        for shape in [(len(rows), *c.type.shape[1:])]
    ]
    made = make("linear", x, *held, name=f"{attention.name}.{which}", source=product.source)
    batch = attention.type.shape[0]
    tokens = made.type.size // (batch * len(rows))
    return _shaped(made, (batch, 1, tokens, len(rows)))


def _attend(attention: Node, inputs: list[Node], head: int) -> Node:
    options = {"scale": attention["scale"], "causal": attention["causal"]}
    name = f"{attention.name}.head{head}"
    return make("attention", *inputs, name=name, source=attention.source, **options)


def _projected(node: Node, mixed: Node, columns: Array, head: int, walk: Walk) -> Node:
    """What one head gives of ``node``; the first brings its bias along."""
    weights, *bias = node.operands[1:]
    array = walk.value(weights)[:, columns]
    held = walk.constant(array, f"{weights.name}.{head}", weights.type.with_shape(*array.shape))
    rows = _shaped(mixed, (*node.type.shape[:-1], len(columns)))
    operands = (rows, held, *bias) if head == 0 else (rows, held)
    return make("linear", *operands, name=f"{node.name}.head{head}", source=node.source)


def _shaped(node: Node, shape: tuple[int, ...]) -> Node:
    if node.type.shape == shape:
        return node
    return make("reshape", node, shape=shape, name=f"{node.name}.shaped", source=node.source)


def add_in_turn(node: Node, walk: Walk) -> Node | None:
    """x + ((a + b) + c), the latter products -> ((x + a) + b) + c."""
    if node.op != "add":
        return None
    for x, sum_ in (node.operands, node.operands[::-1]):
        products = _summed(sum_, walk)
        if len(products) < 2 or x.op == "linear" or x.type != node.type:
            continue
        total = x
        for i, product in enumerate(products):
            name = node.name if i == len(products) - 1 else f"{node.name}.{i}"
            shaped = _shaped(product, node.type.shape)
            total = make("add", total, shaped, name=name, source=node.source)
        return total
    return None


def _summed(node: Node, walk: Walk) -> list[Node]:
    """The products that ``node`` is the sum of; empty if it is another sum, or read elsewhere."""
    while node.op == "reshape" and walk.read_once(node):
        node = node.operands[0]
    if not walk.read_once(node) or node.op not in ("add", "linear"):
        return []
    if node.op == "linear":
        return [node]
    parts = [_summed(operand, walk) for operand in node.operands]
    alike = all(operand.type == node.type for operand in node.operands)
    return parts[0] + parts[1] if all(parts) and alike else []


@dataclass(frozen=True)
class SplitHeads:
    """Every self-attention whose heads a product gathers."""

    name = "split_heads"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, written_out, split, add_in_turn)
