"""Machine code of aarch64, disassembled by LLVM: its basic blocks and its loops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from .llvm import llvm_tool
from .tools import run_tool

LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$", re.M)
# An address that an instruction names, as in "b.ne 0x1234 <name+0x10>".
PLACE = re.compile(r"0x([0-9a-f]+) <")
# What goes on at the place that it names.
JUMPS = re.compile(r"(b|b\.\w+|cbn?z|tbn?z)$")
# What never goes on with the instruction behind it.
LEAVES = ("b", "br", "ret", "udf", "brk")


@attrs.frozen
class Instruction:
    """One instruction: where it is, its text, and the address that it names, if any."""

    address: int
    text: str
    place: int | None = None

    @property
    def mnemonic(self) -> str:
        return self.text.split()[0]

    @property
    def target(self) -> int | None:
        """Where it may jump to, other than by a call."""
        return self.place if JUMPS.match(self.mnemonic) else None

    @property
    def assembly(self) -> str:
        """Its text for an assembler, which need not reach what is far away."""
        return self.text if self.place is None else self.text.replace(f"{self.place:#x}", ".")

    @property
    def ends_block(self) -> bool:
        return self.target is not None or self.mnemonic in LEAVES


@attrs.frozen
class Block:
    """Instructions that are executed one after another, and the addresses that may follow."""

    instructions: tuple[Instruction, ...]
    next: tuple[int, ...]

    @property
    def address(self) -> int:
        return self.instructions[0].address


@attrs.frozen
class Loop:
    """A natural loop: the address of its first block, and those of all its blocks."""

    header: int
    blocks: frozenset[int]


@attrs.frozen(slots=False)
class Function:
    """A function as basic blocks, by their addresses in order."""

    name: str
    blocks: dict[int, Block]

    @cached_property
    def flow(self) -> Any:
        """The graph of its blocks."""
        import networkx

        graph = networkx.DiGraph()
        graph.add_nodes_from(self.blocks)
        graph.add_edges_from((a, b) for a, block in self.blocks.items() for b in block.next)
        return graph

    @cached_property
    def back_edges(self) -> frozenset[tuple[int, int]]:
        """Edges to a block through which every path to their start comes."""
        import networkx

        entry = next(iter(self.blocks))
        above = networkx.immediate_dominators(self.flow, entry)

        def dominates(upper: int, lower: int) -> bool:
            while lower != upper and above.get(lower, lower) not in (lower, None):
                lower = above[lower]
            return lower == upper

        return frozenset((a, b) for a, b in self.flow.edges if a in above and dominates(b, a))

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Its natural loops, those that lie inside others first."""
        inside: dict[int, set[int]] = {}
        for last, header in self.back_edges:
            body = inside.setdefault(header, {header})
            waiting = [last]
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += self.flow.predecessors(block)
        found = [Loop(header, frozenset(blocks)) for header, blocks in inside.items()]
        return tuple(sorted(found, key=lambda loop: (len(loop.blocks), loop.header)))


def disassemble(file: Path, function: str) -> Function:
    """The machine code of a function of an object or program. Raises ToolMissing, ToolFailed."""
    options = ["-d", "--no-show-raw-insn", f"--disassemble-symbols={function}"]
    # All features: an object does not say for which core it was made.
    text = run_tool([llvm_tool("llvm-objdump"), *options, "--mattr=+all", str(file)], file.parent)
    return Function(function, {b.address: b for b in _blocks(list(_instructions(text)))})


def _instructions(text: str) -> Iterator[Instruction]:
    for address, code in LINE.findall(text):
        place = PLACE.search(code)
        # A comment is what the disassembler says of an address, and the name behind a target.
        plain = " ".join(re.sub(r"\s*(//|<).*", "", code).split())
        yield Instruction(int(address, 16), plain, int(place[1], 16) if place else None)


def _blocks(code: list[Instruction]) -> Iterator[Block]:
    inside = {i.address for i in code}
    starts = {i.target for i in code if i.target in inside}
    block: list[Instruction] = []
    for i, instruction in enumerate(code):
        block.append(instruction)
        behind = code[i + 1].address if i + 1 < len(code) else None
        if not (instruction.ends_block or behind in starts or behind is None):
            continue
        follow = [] if instruction.mnemonic in LEAVES else [behind]
        follow.append(instruction.target)
        yield Block(tuple(block), tuple(a for a in dict.fromkeys(follow) if a in inside))
        block = []
