"""Ops that may be computed in parts at the same time: parts of their rows, images or heads.

A part is some consecutive rows of every result and of the operands that go by rows; other operands
are read whole. Here rows are whatever the first axes of a tensor count: tokens, all tokens of all
images, images, heads. A part writes nothing that another part reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from .graph import Node
from .ops.elementwise import OPS as FLOAT_ELEMENTWISE
from .rows import BY_ROWS
from .rows import ELEMENTWISE as INTEGER_ELEMENTWISE
from .types import Type

# As `rows.BY_ROWS`: operands that go by rows, and how many axes at their end lie within one.
BY_PARTS: dict[str, dict[int, int]] = BY_ROWS | {
    "attention": {0: 2, 1: 2, 2: 2},
    "butterfly_experts": {0: 1, 5: 1, 6: 1},
    "combine": {0: 2, 1: 1},
    "conv2d": {0: 3},
    "dequantize": {0: 1, 1: 0},
    "interpolate": {0: 0},
    "layer_norm": {0: 1},
    "linear": {0: 1},
    "qkv_attention": {0: 2},
    "quantize_rows": {0: 1},
    "rotate": {0: 1, 2: 0},
    "shuffle": {0: 1},
    "ternary_matmul": {0: 1},
}
ELEMENTWISE = INTEGER_ELEMENTWISE | {"integer_divide"} | {entry.name for entry in FLOAT_ELEMENTWISE}
# A float op on fewer elements than a vector has may round otherwise than on a vector: no part is
# so small. It is also what is not worth another thread.
ELEMENTS = 16


@dataclass(frozen=True)
class Split:
    """``rows`` that may be dealt out; ``by_rows`` are the operands of which a part needs its own.

    With ``heads`` the rows are heads, which lie side by side: a part is a call of its own kind that
    gets all memory of every operand and result, and writes what belongs to its heads.
    """

    rows: int
    by_rows: frozenset[int]
    heads: bool = False

    def sizes(self, parts: int) -> tuple[tuple[int, int], ...]:
        """(how many parts, rows of each), the larger ones first; at most ``parts`` of them."""
        small, larger = divmod(self.rows, parts)
        sizes = ((larger, small + 1), (parts - larger, small))
        return tuple(size for size in sizes if size[0] and size[1])

    def spans(self, parts: int) -> list[tuple[int, int]]:
        """(first row, the row behind its last) of each of ``parts`` parts; some may be empty."""
        small, larger = divmod(self.rows, parts)
        ends = [part * small + min(part, larger) for part in range(parts + 1)]
        return list(pairwise(ends))


def split_of(node: Node) -> Split | None:
    """How ``node`` may be computed in parts, in as many rows as there are; None if it is not."""
    if node.op == "qkv_attention" and node["heads"] > node.type.shape[0]:
        return Split(int(node["heads"]), frozenset(), heads=True)
    shape = node.types[0].shape
    for axes in range(len(shape) - 1, 0, -1):
        rows = prod(shape[:axes])
        by_rows = _by_rows(node, axes, rows) if rows > 1 else None
        if by_rows:
            return Split(rows, by_rows)
    return None


def part_types(node: Node, split: Split, some: int) -> tuple[tuple[Type, ...], tuple[Type, ...]]:
    """The types of operands and results of a part of ``some`` rows."""
    operands, results = tuple(x.type for x in node.operands), node.types
    if split.heads:
        return operands, results
    return (
        tuple(
            _part(x, split.rows, some) if i in split.by_rows else x for i, x in enumerate(operands)
        ),
        tuple(_part(x, split.rows, some) for x in results),
    )


def _by_rows(node: Node, axes: int, rows: int) -> frozenset[int] | None:
    """The operands of which a part needs its rows, which the first ``axes`` axes of a result count.

    None if a part needs more of an operand than that.
    """
    if node.op in ELEMENTWISE:
        return _of_elements(node, axes) if node.type.size // rows >= ELEMENTS else None
    within = _within(node)
    types = [(node.operands[i].type, n) for i, n in within.items()]
    types += [(type, 0) for type in node.types]
    counts = ((_row_axes(type, rows), type.rank - n) for type, n in types)
    fits = all(found is not None and found <= most for found, most in counts)
    return frozenset(within) if fits else None


def _of_elements(node: Node, axes: int) -> frozenset[int] | None:
    """`_by_rows` where operands are repeated as in NumPy: along all of the rows, or none."""
    lead, behind = node.type.shape[:axes], node.type.rank - axes
    by_rows = set()
    for i, operand in enumerate(node.operands):
        shape = operand.type.shape
        if len(shape) == node.type.rank and shape[:axes] == lead:
            by_rows.add(i)
        elif len(shape) - _leading_ones(shape) > behind:
            return None
    return frozenset(by_rows)


def _leading_ones(shape: tuple[int, ...]) -> int:
    return next((i for i, size in enumerate(shape) if size != 1), len(shape))


def _within(node: Node) -> dict[int, int]:
    """The operands that go by rows, and how many axes at their end lie within one."""
    if node.op == "softmax":
        return {0: 1} if node["axis"] in (-1, node.type.rank - 1) else {}
    if node.op == "matmul":
        a, b = (x.type for x in node.operands)
        return {0: 1} if b.rank == 2 else {0: 2, 1: 2} if a.shape[:-2] == b.shape[:-2] else {}
    if node.op == "integer_attention" and (node["causal"] or not _one_head(node)):
        return {0: 2, 1: 2, 2: 2}
    return {i: n for i, n in BY_PARTS.get(node.op, {}).items() if i < len(node.operands)}


def _one_head(node: Node) -> bool:
    """Whether every query meets the same keys."""
    return node.operands[1].type.shape[:2] == (1, 1)


def _row_axes(type: Type, rows: int) -> int | None:
    """How many of the first axes of ``type`` count its ``rows``, at least; None if none do."""
    counts = (axes for axes in range(1, type.rank + 1) if prod(type.shape[:axes]) == rows)
    return next(counts, None)


def _part(type: Type, rows: int, some: int) -> Type:
    """The type of ``some`` consecutive rows of a tensor."""
    axes = _row_axes(type, rows)
    assert axes is not None, f"{type} has no {rows} rows"
    return replace(type, shape=(*(1,) * (axes - 1), some, *type.shape[axes:]))
