"""What of a graph belongs to its experts: constants with a part for each of them, and scores.

An op that has an operand ``experts`` takes a row's own part of others, whose names are in `OWNED`.
The choice goes by scores, which are a product of the router with softmax, biases and the like.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.ir import Graph, Node
from ..compiler.ir.ops import OPS, STRUCTURAL

OWNED = frozenset({"blocks", "blocks_in", "blocks_out", "pairs_in", "pairs_out", "angles"})
# Operands that are read element by element or by index, so that none is an expert's.
TABLES = frozenset({"octave", "table"})


@dataclass(frozen=True)
class Routed:
    """A layer whose ``choice`` is a `top_k` over ``count`` experts.

    ``rotations`` are constants [count, ...]. ``router`` are the constants of the ``scores``: with
    ``count`` rows, or as many numbers in their last axis as all nodes of ``scores`` have.
    """

    choice: Node
    rotations: tuple[Node, ...]
    router: tuple[Node, ...]
    scores: tuple[Node, ...]

    @property
    def count(self) -> int:
        return int(self.choice.operands[0].type.shape[-1])

    @property
    def chosen(self) -> int:
        """Experts that a row goes to."""
        return int(self.choice["k"])


def routed_layers(graph: Graph) -> tuple[Routed, ...]:
    """The layers of ``graph`` that choose an expert's constants for each row, in its order."""
    owned: dict[Node, dict[Node, None]] = {}
    for node in graph.nodes:
        operands = dict(_named(node))
        if "experts" not in operands or (choice := choice_of(operands["experts"])) is None:
            continue
        rotations = (x for name, x in operands.items() if name in OWNED and x.op == "constant")
        owned.setdefault(choice, {}).update(dict.fromkeys(rotations))
    return tuple(_routed(choice, tuple(found)) for choice, found in owned.items() if found)


def choice_of(experts: Node) -> Node | None:
    """The `top_k` that expert numbers come from; None if they come from elsewhere."""
    node = experts
    while node.operands and node.op != "top_k":
        node = node.operands[0]
    return node if node.op == "top_k" else None


def _routed(choice: Node, rotations: tuple[Node, ...]) -> Routed:
    count, node = choice.operands[0].type.shape[-1], choice.operands[0]
    scores: list[Node] = []
    router: list[Node] = []
    while node.operands and node.type.shape[-1] == count:
        scores.append(node)
        beside = _constants(node)
        rows = [x for x in beside if x.type.rank == 2 and x.type.shape[0] == count]
        router += [x for x in beside if x in rows or x.type.shape[-1:] == (count,)]
        if rows:  # the router's product
            break
        node = node.operands[0]
    return Routed(choice, rotations, tuple(router), tuple(scores))


def _constants(node: Node) -> list[Node]:
    """The constants that a node reads beside its first operand, without tables."""
    beside = [x for name, x in _named(node)[1:] if name not in TABLES]
    return [x for x in beside if x.op == "constant"]


def _named(node: Node) -> list[tuple[str, Node]]:
    """The operands of a node with the names that its op has for them."""
    return (
        [] if node.op in STRUCTURAL else list(zip(OPS[node.op].names, node.operands, strict=False))
    )
