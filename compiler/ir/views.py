"""Which ops move no data, and whose memory they show."""

from __future__ import annotations

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
