"""Which ops move no data, and whose memory they show."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from .graph import Node

# Ends, constants, and views of what is there already: ops that no kernel computes.
VIEWS = frozenset({"input", "constant", "result", "reshape"})


def root_of(node: Node) -> tuple[Node, int]:
    """The node, and the number of its result, that hold the memory which ``node`` shows."""
    index = 0
    while node.op in ("reshape", "result"):
        if node.op == "result":
            index = int(node["index"])
        node = node.operands[0]
    return node, index


def is_laid_out(node: Node) -> bool:
    """Whether ``node`` puts its operands one behind the other in memory."""
    return node.op == "concat" and prod(node.type.shape[: node["axis"] % node.type.rank]) == 1


def laid_out(node: Node) -> Iterator[tuple[Node, int]]:
    """The operands of a node that `is_laid_out`, and at which byte of the result they start."""
    offset = 0
    for operand in node.operands:
        yield operand, offset
        offset += operand.type.bytes
