"""Which buffers a graph needs in its arena, of what size, and from when to when.

Time goes on by one with every op that is computed, in the order of steps (`schedule`). What is made
and read within one step that goes by tiles of rows is as large as a tile. What such a step shares
with others is needed from its first op to its last, since these come in turn again and again.

Where memory is shared, a result may take the place of an operand that nothing reads any more, and
what is put together along the first axis is made where it is to lie.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..compiler.ir import Graph, Node, Type
from ..compiler.ir.schedule import Step, reads, steps_of, types_of
from ..compiler.ir.views import is_laid_out, laid_out, root_of
from ..kernels.lanes import Lanes
from ..kernels.layout import storage
from ..kernels.record import Kernel, Tensor
from .select_kernels import kernel_of, spec_of

ALIGNMENT = 64  # bytes: a cache line, and more than any vector load wants

# A result (the name of its node, its number); below 0 are the scratch buffers of the node.
Key = tuple[str, int]

# Operands whose place the result may take: element by element, each is read before it is stored.
IN_PLACE = {
    "lookup": (0,),
    "quantized_linear": (4,),
    "requantize": (0,),
    "saturating_add": (0, 1),
}


@dataclass(frozen=True)
class Buffer:
    """``bytes`` that are needed from time ``first`` to time ``last``, both included."""

    key: Key
    bytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Buffers:
    """What needs a place; and what lies within another buffer, ``shared``: its key, the offset.

    ``in_place`` are results that lie where an operand does, ``tiled`` are those of which there is
    never more than a tile.
    """

    own: tuple[Buffer, ...]
    shared: dict[Key, tuple[Key, int]] = field(default_factory=dict)
    in_place: frozenset[Key] = frozenset()
    tiled: frozenset[Key] = frozenset()

    def offsets(self, places: dict[Key, int]) -> dict[Key, int]:
        """``places`` of buffers, with those of what lies within them."""
        inner = {key: places[whole] + at for key, (whole, at) in self.shared.items()}
        return places | inner


def aligned(count: int) -> int:
    """``count`` bytes, and those up to where the next buffer may start."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def computed_nodes(graph: Graph) -> tuple[Node, ...]:
    """All computed ops by their time."""
    return tuple(node for step in steps_of(graph) for node in step.nodes)


def buffers_of(
    graph: Graph,
    kernels: tuple[Kernel, ...],
    lanes: Lanes,
    keep_routing: bool = False,
    sharing: bool = False,
) -> Buffers:
    """Every buffer that needs a place: results that do not leave, and scratch."""
    lives = _Lives(graph, keep_routing)
    buffers = {(node.name, i): lives.buffer(node, i) for node, i in lives.results}
    shared = _Sharing(lives, buffers, sharing)
    scratch = [
        Buffer((node.name, -1 - i), tensor_bytes(tensor), time, time)
        for time, node in enumerate(lives.nodes)
        if "kernel" in node.notes
        for i, tensor in enumerate(kernel_of(node, kernels).scratch(spec_of(node), lanes))
    ]
    tiled = frozenset((node.name, i) for node, i in lives.results if lives.tiled(node, i))
    own = (*buffers.values(), *scratch)
    return Buffers(own, shared.places, frozenset(shared.in_place), tiled)


class _Lives:
    """From when to when each result is needed."""

    def __init__(self, graph: Graph, keep_routing: bool) -> None:
        steps = steps_of(graph)
        self.nodes = tuple(node for step in steps for node in step.nodes)
        self.time = {node: i for i, node in enumerate(self.nodes)}
        self.step: dict[Node, Step] = {node: step for step in steps for node in step.nodes}
        self.leaving = {root_of(node) for node in graph.outputs}
        self.readers: dict[tuple[Node, int], list[tuple[Node, bool]]] = {}
        for node in self.nodes:
            for root, whole in reads(node):
                self.readers.setdefault(root, []).append((node, whole))
        routed = [node for node in self.nodes if node.op == "top_k" and keep_routing]
        self.kept = {(node, 1) for node in routed}
        self.results = [
            (node, i)
            for node in self.nodes
            for i in range(len(node.types))
            if (node, i) not in self.leaving
        ]

    def span(self, node: Node) -> tuple[int, int]:
        """The first and the last time of the step of ``node``."""
        nodes = self.step[node].nodes
        return self.time[nodes[0]], self.time[nodes[-1]]

    def tiled(self, node: Node, index: int) -> bool:
        """Whether a result is made and read by rows within one step, so that a tile is enough."""
        step = self.step[node]
        uses = self.readers.get((node, index), [])
        inside = all(self.step[reader] is step and not whole for reader, whole in uses)
        return bool(step.rows) and inside and (node, index) not in self.kept

    def buffer(self, node: Node, index: int) -> Buffer:
        key, uses = (node.name, index), self.readers.get((node, index), [])
        if self.tiled(node, index):
            last = max([self.time[node], *(self.time[reader] for reader, _ in uses)])
            return Buffer(key, type_bytes(types_of(node)[1][index]), self.time[node], last)
        first, last = self.span(node)
        last = max([last, *(self.span(reader)[1] for reader, _ in uses)])
        if (node, index) in self.kept:
            last = len(self.nodes)
        return Buffer(key, type_bytes(node.types[index]), first, last)


class _Sharing:
    """Results that lie within the buffers of others."""

    def __init__(self, lives: _Lives, buffers: dict[Key, Buffer], wanted: bool) -> None:
        self.lives = lives
        self.buffers = buffers
        self.in_place: set[Key] = set()
        self.sizes = {key: buffer.bytes for key, buffer in buffers.items()}
        self.places: dict[Key, tuple[Key, int]] = {}
        if not wanted:
            return
        for node in lives.nodes:
            self._take_a_place(node)
        for node in lives.nodes:
            if is_laid_out(node):
                self._lay_out(node)

    def _whole(self, key: Key) -> tuple[Key, int]:
        """The buffer that ``key`` lies in, and where."""
        return self.places.get(key, (key, 0))

    def _put(self, inner: Key, outer: Key, offset: int) -> None:
        """The buffer ``inner``, and what lies in it, to ``offset`` of the buffer ``outer``."""
        for key, (whole, at) in list(self.places.items()):
            if whole == inner:
                self.places[key] = outer, at + offset
        self.places[inner] = outer, offset
        gone, whole_buffer = self.buffers.pop(inner), self.buffers[outer]
        first, last = min(whole_buffer.first, gone.first), max(whole_buffer.last, gone.last)
        self.buffers[outer] = replace(whole_buffer, first=first, last=last)

    def _take_a_place(self, node: Node) -> None:
        """The result goes where an operand lies that is as large, and is not read any more."""
        places = [i for i in IN_PLACE.get(node.op, ()) if i < len(node.operands)]
        for index in places:
            root = root_of(node.operands[index])
            key, result = (root[0].name, root[1]), (node.name, 0)
            alike = self.sizes.get(key) == self.sizes.get(result) is not None
            others = [i for i, x in enumerate(node.operands) if root_of(x) == root]
            if alike and set(others) <= set(places) and self._ends_at(root, node):
                outer, offset = self._whole(key)
                self._put(result, outer, offset)
                self.in_place.add(result)
                return

    def _ends_at(self, root: tuple[Node, int], node: Node) -> bool:
        """Whether ``node`` may write to the place of ``root``, element by element."""
        lives = self.lives
        if root in lives.kept or (lives.tiled(*root) != lives.tiled(node, 0)):
            return False
        for reader, whole in lives.readers[root]:
            later = lives.time[reader] > lives.time[node]
            again = lives.step[reader] is lives.step[node] and bool(lives.step[node].rows)
            if later or (again and whole):
                return False
        return True

    def _lay_out(self, node: Node) -> None:
        """Operands that nothing else reads are made in their place in the result."""
        if (node, 0) in self.lives.leaving:
            return
        for operand, offset in laid_out(node):
            root = root_of(operand)
            key = root[0].name, root[1]
            alone = all(reader is node for reader, _ in self.lives.readers.get(root, []))
            once = sum(root_of(x) == root for x in node.operands) == 1
            inside, at = self._whole(key)
            same = at == 0 and self.sizes.get(inside) == self.sizes.get(key) is not None
            if alone and once and same and root not in self.lives.kept:
                outer, start = self._whole((node.name, 0))
                self._put(inside, outer, start + offset)


def type_bytes(type: Type) -> int:
    """Bytes of a tensor as it is stored."""
    return tensor_bytes(Tensor(type.dtype, type.shape, type.layout))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a kernel's tensor as it is stored."""
    stored = storage(tensor)
    return Type(stored.dtype, stored.shape).bytes
