"""Where each part of a compiled model goes: its constants, its code, its arena.

Constants and code stay in flash, from where a chip reads them in place. PSRAM could hold constants
only as a copy of what flash holds too, so it takes nothing but the arena, where SRAM is too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..compiler.ir import Graph, Node
from ..kernels import all_kernels
from ..kernels.lanes import Lanes
from ..passes.arena import Buffer, aligned, buffers_of, computed_nodes
from .code_size import Code
from .registry import Core, Memory

MEMORIES = ("flash", "sram", "psram")
# What a call of NAME_run needs below the frame of its caller; tests of all machines keep it.
STACK_BYTES = 1536
KINDS = {
    ("integer_linear", 1): "dense weights",
    ("integer_linear", 2): "biases",
    ("integer_rotate", 1): "rotations",
    ("integer_turn", 1): "rotations",
    ("integer_turn", 3): "tables",
    ("integer_layer_norm", 1): "norms",
    ("integer_layer_norm", 2): "norms",
    ("ternary_dot", 1): "ternary weights",
    ("quantized_linear", 1): "dense weights",
    ("quantized_linear", 2): "biases",
    ("quantized_linear", 3): "multipliers",
    ("quantized_ternary", 1): "ternary weights",
    ("quantized_ternary", 2): "multipliers",
    ("quantized_ternary", 3): "tables",
    ("quantized_combine", 2): "multipliers",
    ("requantize", 1): "multipliers",
    ("lookup", 1): "tables",
    ("integer_softmax", 1): "tables",
    ("integer_attention", 3): "tables",
}


@dataclass(frozen=True)
class Constant:
    """A constant: ``bytes`` of data, and ``place`` bytes in the block of all weights."""

    name: str
    kind: str
    layer: str
    bytes: int

    @property
    def place(self) -> int:
        return aligned(self.bytes)


@dataclass(frozen=True)
class Part:
    """Something that takes ``bytes`` of a memory; ``exact`` if a linker gives the same figure."""

    what: str
    bytes: int
    exact: bool = True


@dataclass(frozen=True)
class Region:
    """A memory and what lies in it; without ``memory`` the board has none, or no limit is known."""

    name: str
    parts: tuple[Part, ...]
    memory: Memory | None = None
    unlimited: bool = False

    @property
    def used(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def usable(self) -> int | None:
        """Bytes there are for the model; None if no limit is known."""
        if self.memory:
            return self.memory.usable
        return None if self.unlimited else 0

    @property
    def excess(self) -> int:
        """By how many bytes it is overfull; 0 if all fits."""
        return 0 if self.usable is None else max(0, self.used - self.usable)


@dataclass(frozen=True)
class Step:
    """One kernel of the run, and the bytes of the arena that are in use meanwhile."""

    index: int
    name: str
    op: str
    source: str
    bytes: int


@dataclass(frozen=True)
class Held:
    """A buffer in the arena, with the bytes it takes there and the line that it comes from."""

    name: str
    bytes: int
    source: str


@dataclass(frozen=True)
class Arena:
    """The arena over a run: all its steps, and what is alive at the first of the fullest."""

    bytes: int
    steps: tuple[Step, ...]
    held: tuple[Held, ...]

    @property
    def peak(self) -> Step | None:
        return max(self.steps, key=lambda step: step.bytes, default=None)


@dataclass(frozen=True)
class Placement:
    """What lies where on a board, whether it fits or not."""

    core: Core
    constants: tuple[Constant, ...]
    code: Code
    arena: Arena
    regions: tuple[Region, ...]

    @property
    def fits(self) -> bool:
        return not any(region.excess for region in self.regions)

    @cached_property
    def weights(self) -> int:
        """Bytes of the block of all weights, as it lies in memory."""
        return sum(constant.place for constant in self.constants)

    def region(self, name: str) -> Region:
        return next(region for region in self.regions if region.name == name)

    @property
    def arena_memory(self) -> str:
        """The memory that the arena goes to."""
        psram = self.region("psram").parts
        return "psram" if psram else "sram"


def place(graph: Graph, core: Core, lanes: Lanes, code: Code) -> Placement:
    """Where the parts of a planned graph go on ``core``; nothing is raised if they do not fit."""
    constants, arena = constants_of(graph), arena_of(graph, lanes)
    weights = sum(constant.place for constant in constants)
    ends = ("inputs", graph.inputs), ("outputs", graph.outputs)
    ports = tuple(Part(what, sum(n.type.bytes for n in nodes)) for what, nodes in ends)
    stack, buffer = Part("stack", STACK_BYTES, exact=False), Part("arena", arena.bytes)
    flash = Part("weights", weights), Part("code", code.bytes, exact=code.measured is not None)
    sram, psram = _with_arena(core, buffer, (*ports, stack))
    contents = {"flash": flash, "sram": sram, "psram": psram}
    regions = (
        Region(name, parts, core.memory(name), unlimited=_unlimited(core, name))
        for name, parts in contents.items()
    )
    return Placement(core, constants, code, arena, tuple(regions))


def place_in_one(graph: Graph, core: Core, arena: int, code: Code, memory: Memory) -> Placement:
    """Where the parts of a graph go on a system that has them all in one ``memory``.

    ``arena`` are its bytes there; nothing is raised if they do not fit.
    """
    constants = constants_of(graph)
    ends = ("inputs", graph.inputs), ("outputs", graph.outputs)
    parts = (
        Part("weights", sum(constant.place for constant in constants)),
        Part("code", code.bytes, exact=code.measured is not None),
        Part("arena", arena),
        *(Part(what, sum(n.type.bytes for n in nodes)) for what, nodes in ends),
    )
    regions = (Region(memory.name, parts, memory),)
    return Placement(core, constants, code, Arena(arena, (), ()), regions)


def _with_arena(
    core: Core, arena: Part, others: tuple[Part, ...]
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """What lies in SRAM and in PSRAM: there the arena, if it is too large here and fits there."""
    psram, inner = core.memory("psram"), Region("sram", (arena, *others), core.memory("sram"))
    if psram and inner.memory and inner.excess and arena.bytes <= psram.usable:
        return others, (arena,)
    return inner.parts, ()


def _unlimited(core: Core, name: str) -> bool:
    """Whether nothing is known of the memory: a core may list none, or only some."""
    return name != "psram" and all(memory.name != name for memory in core.memories)


def constants_of(graph: Graph) -> tuple[Constant, ...]:
    """Every constant once, however many nodes share it, in the order of its first use."""
    found: dict[str, Constant] = {}
    for node in graph.nodes:
        if node.op == "constant" and (digest := str(node["digest"])) not in found:
            layer, size = layer_of(node.name), graph.constants[digest].nbytes
            found[digest] = Constant(node.name, _kind(graph, node), layer, size)
    return tuple(found.values())


def layer_of(name: str) -> str:
    """The part of a model that a name belongs to: up to its first number, else its first word."""
    words = name.split(".")
    number = next((i for i, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[: number + 1])


def _kind(graph: Graph, node: Node) -> str:
    for user in graph.users[node]:
        if kind := KINDS.get((user.op, user.operands.index(node))):
            return kind
    return "others"


def arena_of(graph: Graph, lanes: Lanes) -> Arena:
    """The arena of a planned graph."""
    buffers = buffers_of(graph, all_kernels(), lanes, sharing=True).own
    nodes = computed_nodes(graph)
    sources = {node.name: node.source for node in nodes}
    steps = tuple(
        Step(i, node.name, node.op, node.source, sum(aligned(b.bytes) for b in _at(buffers, i)))
        for i, node in enumerate(nodes)
    )
    arena = Arena(int(graph.notes.get("arena_bytes", 0)), steps, ())  # type: ignore[arg-type]
    if arena.peak is None:
        return arena
    alive = sorted(_at(buffers, arena.peak.index), key=lambda buffer: -buffer.bytes)
    held = (Held(_name(b.key), aligned(b.bytes), sources[b.key[0]]) for b in alive)
    return Arena(arena.bytes, steps, tuple(held))


def _at(buffers: Sequence[Buffer], step: int) -> list[Buffer]:
    return [buffer for buffer in buffers if buffer.first <= step <= buffer.last]


def _name(key: tuple[str, int]) -> str:
    """What a buffer is called: its node, which result of it, or that it is scratch of it."""
    name, index = key
    if index < 0:
        return f"{name} scratch {-index}"
    return f"{name}.{index}" if index else name
