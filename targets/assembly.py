"""Tiles of products as inline assembly of AArch64, which TVM takes in as functions of LLVM's IR."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..kernels.tir import T, span
from .in_order import Instruction, Timing, ordered

# For pointers of a tile. What is left is for those that it is given, and for what goes around it.
SCRATCH = tuple(f"x{i}" for i in range(3, 18))

# It is put where it is called. Copies of it would be long, so LLVM must not unroll loops around it.
FUNCTION = """
define available_externally i32 @{name}(ptr %sums, {parameters}) alwaysinline nounwind {{
  %all = call {type} asm sideeffect "{code}", "{constraints}"({parameters}) noduplicate
{stores}
  ret i32 0
}}
"""


class Assembly:
    """The code of a tile as a reader would write it, and the ``results``: registers of int32 x 4.

    Vector registers are numbers. The pointers that a tile is given are ``%0``, ``%1`` and so on.
    """

    def __init__(self, pointers: int) -> None:
        self.pointers = pointers
        self.code: list[Instruction] = []
        self.results: list[int] = []
        self._scratch = iter(SCRATCH)

    def neon(
        self, text: str, to: int, *sources: int, adds: bool = False, kind: str = "neon"
    ) -> None:
        """An instruction on vectors; ``{0}`` is ``to``, which it overwrites or ``adds`` to."""
        registers = [f"v{n}" for n in (to, *sources)]
        reads = registers if adds else registers[1:]
        self.code.append(Instruction(text.format(*registers), kind, (*reads,), (registers[0],)))

    def load(self, to: int, count: int, pointer: str, group: str | None = None) -> None:
        """``count`` vectors of 16 bytes, to registers from ``to``."""
        registers = tuple(f"v{to + i}" for i in range(count))
        text = f"ld1 {{{', '.join(f'{r}.16b' for r in registers)}}}, [{pointer}]"
        self.code.append(Instruction(text, f"load {count}", (pointer,), registers, group))

    def load_at(self, to: int, pointer: str, offset: int) -> None:
        """A vector of 16 bytes."""
        text = f"ldr q{to}, [{pointer}, #{offset}]"
        self.code.append(Instruction(text, "load", (pointer,), (f"v{to}",)))

    def pointer(self) -> str:
        """A register for a pointer of the tile's own: those that it is given never change."""
        return next(self._scratch)

    def point(self, pointer: str, source: str, offset: int, behind: str | None = None) -> None:
        """Let ``pointer`` be ``offset`` bytes behind ``source``, after the loads of a group.

        Pointers had better change together: arithmetic pauses each time.
        """
        text = f"add {pointer}, {source}, #{offset}"
        self.code.append(Instruction(text, "address", (source,), (pointer,), behind=behind))

    def products(self, total: int, codes: int, values: int, first: bool) -> None:
        """Sixteen products of int8, added to eight sums of int16, or as those if they are first."""
        long = "smull2" if first else "smlal2"
        operands = total, codes, values
        self.neon(f"{long} {{0}}.8h, {{1}}.16b, {{2}}.16b", *operands, adds=not first)
        self.neon("smlal {0}.8h, {1}.8b, {2}.8b", *operands, adds=True)

    def sums(self, to: int, totals: Sequence[int]) -> None:
        """The sum of the lanes of each of four vectors of int16, as int32 x 4: a result.

        Sums of four lanes are added in int16, and must fit it. The vectors are overwritten.
        """
        a, b, c, d = totals
        for left, right in ((a, b), (c, d), (a, c)):
            self.neon("addp {0}.8h, {1}.8h, {2}.8h", left, left, right)
        self.neon("saddlp {0}.4s, {1}.8h", to, a)
        self.results.append(to)

    def function(self, name: str, timing: Mapping[str, Timing]) -> str:
        """The IR of the function ``name`` of the results' address and the pointers."""
        count = len(self.results)
        vectors = ", ".join(["<4 x i32>"] * count)
        written = {register for i in self.code for register in i.writes}
        kept = [f"v{n}" for n in self.results]
        constraints = [*(f"={{{r}}}" for r in kept), *["r"] * self.pointers]
        constraints += [f"~{{{r}}}" for r in sorted(written - {*kept})]
        return FUNCTION.format(
            name=name,
            parameters=", ".join(f"ptr %p{i}" for i in range(self.pointers)),
            # LLVM gives one result as it is, and several as a structure.
            type=f"{{ {vectors} }}" if count > 1 else vectors,
            code="\\0A".join(self._operands(i.text) for i in ordered(self.code, timing)),
            constraints=",".join([*constraints, "~{memory}"]),
            stores="\n".join(_store(i, count) for i in range(count)),
        )

    def _operands(self, text: str) -> str:
        """With pointers as LLVM numbers them, which counts results first."""
        return re.sub(r"%(\d+)", lambda found: f"${int(found[1]) + len(self.results)}", text)


def _store(i: int, count: int) -> str:
    value = "%all" if count == 1 else f"%result{i}"
    taken = f"  %result{i} = extractvalue {{ {', '.join(['<4 x i32>'] * count)} }} %all, {i}\n"
    return (
        f"{taken if count > 1 else ''}"
        f"  %at{i} = getelementptr inbounds i8, ptr %sums, i64 {16 * i}\n"
        f"  store <4 x i32> {value}, ptr %at{i}, align 4"
    )


def call(name: str, text: str, results: int, pointers: Sequence[Any]) -> list[Any]:
    """The results, int32 x 4 each, of the function ``name`` of which ``text`` is the IR."""
    sums = T.alloc_buffer((4 * results,), "int32")
    with T.attr(T.int32(0), "pragma_import_llvm", text):
        T.evaluate(T.call_extern("int32", name, T.address_of(sums[0]), *pointers))
    return [sums[span(4 * i, 4)] for i in range(results)]


def address(load: Any) -> Any:
    """Where the consecutive elements that an expression loads start."""
    return T.address_of(load.source[(*load.indices[:-1], load.indices[-1].base)])
