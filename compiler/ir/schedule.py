"""When the ops of a graph are computed: one after another, or several of them a few rows at a time.

Notes on nodes say it: ``step`` is the place in the order, and ops of one step are computed
together, ``tile`` of their ``rows`` at a time. Without notes each op is a step, as the graph has
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .graph import Graph, Node
from .rows import read_by_rows, rows_type
from .types import Type
from .views import VIEWS, root_of


@dataclass(frozen=True)
class Step:
    """Ops that are computed one after another: whole, or for each tile of their rows.

    With ``rows`` = 0 there is one op, and it is computed whole.
    """

    nodes: tuple[Node, ...]
    rows: int = 0
    tile: int = 0

    @property
    def name(self) -> str:
        """What the step is called: its last op."""
        return self.nodes[-1].name

    @property
    def tiles(self) -> tuple[tuple[int, int, int], ...]:
        """(first row, how many tiles, rows of each): first the whole tiles, then what is left."""
        if not self.rows:
            return ((0, 1, 0),)
        whole, rest = divmod(self.rows, self.tile)
        parts = ((0, whole, self.tile), (whole * self.tile, 1, rest))
        return tuple(part for part in parts if part[1] and part[2])


def is_computed(node: Node) -> bool:
    """Whether ``node`` is more than an end, a constant, or a view."""
    return node.op not in VIEWS


def steps_of(graph: Graph) -> tuple[Step, ...]:
    """All computed ops, in the order of their steps."""
    nodes = [node for node in graph.nodes if is_computed(node)]
    places = {node: int(node.notes.get("step", i)) for i, node in enumerate(nodes)}  # type: ignore[arg-type]
    grouped: dict[int, list[Node]] = {}
    for node in sorted(nodes, key=places.__getitem__):  # stable: operands stay first
        grouped.setdefault(places[node], []).append(node)
    return tuple(_step(tuple(group)) for group in grouped.values())


def _step(nodes: tuple[Node, ...]) -> Step:
    rows, tile = (int(nodes[0].notes.get(key, 0)) for key in ("rows", "tile"))  # type: ignore[arg-type]
    return Step(nodes, rows, tile)


def reads(node: Node) -> Iterator[tuple[tuple[Node, int], bool]]:
    """The memory that ``node`` reads (`root_of`), and whether it needs all of it at once."""
    rows = int(node.notes.get("rows", 0))  # type: ignore[arg-type]
    by_rows = read_by_rows(node, rows) if rows else frozenset()
    assert by_rows is not None, f"'{node.name}' is not computed by rows"
    for index, operand in enumerate(node.operands):
        yield root_of(operand), index not in by_rows


def types_of(node: Node, tile: int | None = None) -> tuple[tuple[Type, ...], tuple[Type, ...]]:
    """The types of operands and results of one call that computes ``tile`` rows of ``node``.

    By default as many as a tile of its step has; all of it where it is computed whole.
    """
    operands, results = tuple(x.type for x in node.operands), node.types
    rows = int(node.notes.get("rows", 0))  # type: ignore[arg-type]
    if not rows:
        return operands, results
    some = int(node.notes["tile"]) if tile is None else tile  # type: ignore[arg-type]
    by_rows = read_by_rows(node, rows) or frozenset()
    return (
        tuple(rows_type(x, rows, some) if i in by_rows else x for i, x in enumerate(operands)),
        tuple(rows_type(x, rows, some) for x in results),
    )
