"""Ops that hand rows to one another are computed a few rows at a time, so little is stored.

    %1 = integer_layer_norm(%x, ..) : i8[65, 64]
    %2 = quantized_ternary(%1, %w, ..) : i8[65, 256]
    %y = quantized_linear(%2, %v, .., %x) : i16[65, 64]
    ->
    %1 = integer_layer_norm(%x, ..) : i8[65, 64] @ {step = 3, rows = 65, tile = 2}
    %2 = quantized_ternary(%1, %w, ..) : i8[65, 256] @ {step = 3, rows = 65, tile = 2}
    %y = quantized_linear(%2, %v, .., %x) : i16[65, 64] @ {step = 3, rows = 65, tile = 2}

An op joins the step of those that read it if there is one such step, and no reader needs more than
its row. What adds to a stream does not: it takes the stream's place in memory, so there is nothing
to save. Steps are ordered so that of what one needs, that which took the most steps comes first,
and all else as late as it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..compiler.ir import Graph, Node, rebuild
from ..compiler.ir.rows import read_by_rows
from ..compiler.ir.schedule import is_computed
from ..compiler.ir.views import root_of

TILE = 2


def ends_of(graph: Graph, tile: int) -> dict[Node, Node]:
    """The last op of the step that each op belongs to; only what has more rows is tiled."""
    leaving = {root_of(node)[0] for node in graph.outputs}
    uses: dict[Node, list[tuple[Node, int]]] = {}
    ends: dict[Node, Node] = {}
    for node in reversed(graph.nodes):
        if not is_computed(node):
            continue
        ends[node] = node
        read = uses.get(node, [])
        others = {ends[reader] for reader, _ in read}
        if len(others) == 1 and node not in leaving and not _adds_to_stream(node):
            (end,) = others
            rows = rows_of(end)
            fits = rows > tile and _by_rows(node, rows)
            if fits and all(_by_rows(reader, rows, index) for reader, index in read):
                ends[node] = end
        for index, operand in enumerate(node.operands):
            uses.setdefault(root_of(operand)[0], []).append((node, index))
    return ends


def rows_of(node: Node) -> int:
    """How many rows ``node`` may be computed by; 0 if it is computed whole."""
    shape = node.types[0].shape
    for axes in range(len(shape), 0, -1):
        rows = prod(shape[:axes])
        if rows == max(shape[:axes]) > 1 and _by_rows(node, rows):
            return rows
    return 0


def _by_rows(node: Node, rows: int, operand: int | None = None) -> bool:
    """Whether ``node`` is computed by rows; and needs of an operand, if one is asked for, a row."""
    found = read_by_rows(node, rows)
    return found is not None and (operand is None or operand in found)


def _adds_to_stream(node: Node) -> bool:
    residual = node.op == "quantized_linear" and len(node.operands) == 5
    return residual or node.op == "saturating_add"


def order_of(graph: Graph, ends: dict[Node, Node]) -> list[Node]:
    """The last ops of all steps, in the order in which the steps are computed."""
    needs: dict[Node, dict[Node, None]] = {}
    for node in filter(is_computed, graph.nodes):
        end = ends[node]
        roots = [root_of(operand)[0] for operand in node.operands]
        others = [ends[root] for root in roots if root in ends and ends[root] is not end]
        needs.setdefault(end, {}).update(dict.fromkeys(others))
    depth: dict[Node, int] = {}
    for end in _in_order([*needs], needs):
        depth[end] = 1 + max((depth[need] for need in needs[end]), default=0)
    deepest = {
        end: dict.fromkeys(sorted(found, key=lambda need: -depth[need]))
        for end, found in needs.items()
    }
    last = [root_of(node)[0] for node in graph.outputs]
    return list(_in_order([ends[node] for node in last if node in ends], deepest))


def _in_order(roots: list[Node], needs: dict[Node, dict[Node, None]]) -> Iterator[Node]:
    """Every node that ``roots`` need, after those that it needs itself, these in their order."""
    done: set[Node] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            yield node
        else:
            stack.append((node, True))
            stack += [(need, False) for need in reversed(needs[node])]


@dataclass(frozen=True)
class TileRows:
    """``tile`` rows at a time: what a product's weights are loaded once for."""

    tile: int = TILE

    name = "tile_rows"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        ends = ends_of(graph, self.tile)
        sizes = Counter(ends.values())
        steps = {end: {"step": i} for i, end in enumerate(order_of(graph, ends))}
        for end in steps:
            if sizes[end] > 1:
                steps[end] |= {"rows": rows_of(end), "tile": self.tile}
        notes = {node.name: steps[end] for node, end in ends.items()}
        return rebuild(graph, lambda node: node.with_notes(**notes.get(node.name, {})))
