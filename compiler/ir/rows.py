"""Ops that compute each row (token) of a result from the same row of what they read.

Such an op may be computed a few rows at a time. The rows of a tensor [.., N, ..., c] are what its
first axes of N elements together count; behind them lies what belongs to one row.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from .graph import Node
from .types import Type

# For each op the operands that are read by rows, each with the axes at its end that lie within a
# row because the op goes along them; all other operands are read whole for each row.
BY_ROWS: dict[str, dict[int, int]] = {
    "integer_attention": {0: 1},
    "integer_combine": {0: 2, 1: 1},
    "integer_layer_norm": {0: 1},
    "integer_linear": {0: 1},
    "integer_rotate": {0: 1, 2: 0},
    "integer_softmax": {0: 1},
    "integer_turn": {0: 1, 2: 0},
    "lookup": {0: 0},
    "quantized_combine": {0: 2, 1: 1},
    "quantized_linear": {0: 1, 4: 1},
    "quantized_ternary": {0: 1},
    "requantize": {0: 1},
    "ternary_dot": {0: 1},
    "top_k": {0: 1},
}
ELEMENTWISE = frozenset({"saturating_add", "integer_mul"})


def row_axes(type: Type, rows: int, within: int) -> int | None:
    """How many axes of ``type`` count its ``rows``, with ``within`` axes or more behind them.

    None if there are no such axes, or more than one of them is longer than 1.
    """
    for axes in range(type.rank - within, 0, -1):
        shape = type.shape[:axes]
        if prod(shape) == rows == max(shape):
            return axes
    return None


def rows_type(type: Type, rows: int, some: int) -> Type:
    """The type of ``some`` of the ``rows`` of a tensor."""
    axes = row_axes(type, rows, 0)
    assert axes is not None, f"{type} has no {rows} rows"
    last = max(i for i in range(axes) if type.shape[i] == rows)
    return replace(type, shape=(*type.shape[:last], some, *type.shape[last + 1 :]))


def read_by_rows(node: Node, rows: int) -> frozenset[int] | None:
    """The operands of which ``node`` needs a row for each of its ``rows``; None if it needs more.

    All others are needed whole, whatever the row.
    """
    if node.op in ELEMENTWISE:
        alike = [x.type.shape == node.type.shape for x in node.operands]
        within = {i: 0 for i, same in enumerate(alike) if same}
        others = [x.type.rank for x, same in zip(node.operands, alike, strict=True) if not same]
        across = max(others, default=0)  # axes along which another operand repeats
    else:
        within = {i: n for i, n in BY_ROWS.get(node.op, {}).items() if i < len(node.operands)}
        across = 0
    if not within or (node.op == "integer_attention" and not _one_head(node)):
        return None
    parts = [(node.operands[i].type, max(n, across)) for i, n in within.items()]
    parts += [(type, across) for type in node.types]
    if any(row_axes(type, rows, n) is None for type, n in parts):
        return None
    return frozenset(within)


def _one_head(node: Node) -> bool:
    """Whether every query meets the same keys."""
    return not node["causal"] and node.operands[1].type.shape[:2] == (1, 1)
