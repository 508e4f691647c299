"""The body of a compiled model's driver: kernels one after another, or in loops over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import Graph, Node, print_node
from ..ir.parts import Split
from ..ir.rows import read_by_rows
from ..ir.schedule import Step
from ..ir.views import laid_out, root_of


@dataclass(frozen=True)
class Called:
    """A kernel's function, and the numbers that a call gives it behind its buffers."""

    symbol: str
    numbers: tuple[int, ...] = ()


# What computes a node, or some of its rows (0: all of it).
Symbols = dict[tuple[Node, int], Called]
Row = str | int  # where a tile starts, in C


class Driver:
    """C statements for the steps of a planned graph; ``weights`` are offsets by digest.

    ``typed``: kernels are declared with the types of their buffers.
    """

    def __init__(
        self, graph: Graph, weights: dict[str, int], symbols: Symbols, *, typed: bool
    ) -> None:
        self._weights = weights
        self._symbols = symbols
        self._typed = typed
        self._inputs = {node: i for i, node in enumerate(graph.inputs)}
        self._outputs: dict[tuple[Node, int], int] = {}
        for i, node in enumerate(graph.outputs):
            self._outputs.setdefault(root_of(node), i)

    def step(self, step: Step) -> str:
        """All calls of one step, each with its op in a comment."""
        if not step.rows:
            return "".join(self._whole(node) for node in step.nodes)
        return "".join(self._tiles(step, *tiles) for tiles in step.tiles)

    def copied_output(self, index: int, node: Node) -> str:
        """A copy for an output that is an input, a constant, or the same as another output."""
        root, _ = root_of(node)
        if self._outputs[root_of(node)] == index and root.op not in ("input", "constant"):
            return ""
        return f"  memcpy(out[{index}], {self._pointer(node)}, {node.type.bytes});\n"

    def part(self, node: Node, split: Split, rows: int) -> str:
        """The call for ``rows`` rows of ``node`` from ``row`` on, with scratch at ``t``."""
        row = None if split.heads else "row"
        buffers = self._buffers(node, split.rows, row, split.by_rows)
        scratch = [f"t + {at}" for at in node.notes.get("part_scratch", ())]  # type: ignore[union-attr]
        called = self._symbols[node, rows]
        # Which heads: the one number that such a kernel takes.
        return self._written(called, *buffers, scratch, ("row",) if split.heads else called.numbers)

    def _whole(self, node: Node) -> str:
        comment = f"  /* {text_of(node)} */\n"
        if (node, 0) not in self._symbols:
            return comment + self._put_together(node)
        return f"{comment}  {self._call(node, 0, None)}\n"

    def _tiles(self, step: Step, first: int, count: int, rows: int) -> str:
        """The calls for ``count`` tiles of ``rows`` rows, from row ``first`` on."""
        if count == 1 and first:
            calls = [f"  {self._call(node, rows, first)}\n" for node in step.nodes]
            return "".join([f"  /* The same from row {first} on. */\n", *calls])
        last = first + (count - 1) * rows
        lines = [f"  for (int row = {first}; row <= {last}; row += {rows}) {{"]
        for node in step.nodes:
            lines += [f"    /* {text_of(node)} */", f"    {self._call(node, rows, 'row')}"]
        return "\n".join([*lines, "  }", ""])

    def _call(self, node: Node, rows: int, row: Row | None) -> str:
        total = int(node.notes.get("rows", 0))  # type: ignore[arg-type]
        by_rows = (read_by_rows(node, total) or frozenset()) if row is not None else frozenset()
        buffers = self._buffers(node, total, row, by_rows)
        scratch = [f"a + {at}" for at in node.notes.get("scratch", ())]  # type: ignore[union-attr]
        called = self._symbols[node, rows]
        return self._written(called, *buffers, scratch, called.numbers)

    def _buffers(
        self, node: Node, total: int, row: Row | None, by_rows: frozenset[int]
    ) -> tuple[list[str], list[str]]:
        """What a call reads and writes, from ``row`` on of ``total`` where it goes by rows."""
        reads = [
            self._at(x, 0, total, row if i in by_rows else None)
            for i, x in enumerate(node.operands)
        ]
        return reads, [self._at(node, i, total, row) for i in range(len(node.types))]

    def _written(
        self,
        called: Called,
        reads: list[str],
        writes: list[str],
        scratch: list[str],
        numbers: Sequence[Row],
    ) -> str:
        writes = writes + scratch
        if self._typed:  # bytes must be untyped to pass
            reads = [f"(const void *)({place})" for place in reads]
            writes = [f"(void *)({place})" for place in writes]
        return f"{called.symbol}({', '.join([*reads, *writes, *map(str, numbers)])});"

    def _at(self, node: Node, index: int, rows: int, row: Row | None) -> str:
        """Where a value lies, or its rows from ``row`` on."""
        place = self._pointer(node, index)
        root, number = root_of(node)
        number = number or index
        if row in (None, 0) or number in root.notes.get("tiled", ()):  # type: ignore[operator]
            return place
        size = root.types[number].bytes // rows
        if root.op == "input":
            place = f"(const unsigned char *){place}"
        elif (root, number) in self._outputs:
            place = f"(unsigned char *){place}"
        return f"{place} + {size * row if isinstance(row, int) else f'{row} * {size}'}"

    def _pointer(self, node: Node, index: int = 0) -> str:
        root, at = root_of(node)
        index = at or index
        if root.op == "input":
            return f"in[{self._inputs[root]}]"
        if root.op == "constant":
            return f"w + {self._weights[str(root['digest'])]}"
        if (root, index) in self._outputs:
            return f"out[{self._outputs[root, index]}]"
        return f"a + {root.notes['at'][index]}"  # type: ignore[index]

    def _put_together(self, node: Node) -> str:
        """Operands one behind the other; some lie in their place already."""
        copies = ""
        for operand, offset in laid_out(node):
            target, source = self._byte(node, offset), self._pointer(operand)
            if source != target and operand.type.bytes:
                copies += f"  memcpy({target}, {source}, {operand.type.bytes});\n"
        return copies

    def _byte(self, node: Node, offset: int) -> str:
        """Byte ``offset`` of a result."""
        if (node, 0) in self._outputs:
            return f"(unsigned char *){self._pointer(node)} + {offset}"
        return f"a + {node.notes['at'][0] + offset}"  # type: ignore[index, operator]


def text_of(node: Node) -> str:
    """What ``node`` computes, for a comment in C."""
    return print_node(node).split(" @ ")[0].replace("*/", "* /").replace("/*", "/ *")
