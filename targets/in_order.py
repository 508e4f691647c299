"""Straight-line code in an order that suits a core which executes its instructions in order.

Such a core issues an instruction once those before it have issued, its operands are there and its
unit is free; and, as LLVM models it, not before it can write its results no earlier than those
before it do. So a short instruction behind a long one waits, and several had better wait together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Of a kind of instruction: cycles until its results are there, and which unit it takes.

    There are ``units`` of that unit, and one of them is taken for ``cycles``.
    """

    latency: int
    unit: str
    cycles: int = 1
    units: int = 1


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text, its kind, and the registers that it reads and writes.

    It may be of a ``group``, and stays behind all of the group ``behind`` that stand before it.
    """

    text: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    group: str | None = None
    behind: str | None = None


# Of LLVM's model of the Cortex-A53. Its loads of several vectors take about as long as arithmetic,
# so they do not wait for it; one of a single vector, of 4 cycles, would.
CORTEX_A53: Mapping[str, Timing] = {
    "neon": Timing(6, "neon"),
    "load 2": Timing(5, "memory", 2),
    "load 4": Timing(7, "memory", 4),
    "address": Timing(3, "integer", units=2),
}
# Of the Cortex-A55, where next to nothing issues beside arithmetic on whole registers.
CORTEX_A55: Mapping[str, Timing] = {
    "neon": Timing(4, "all"),
    "mask": Timing(1, "all"),
    "shift": Timing(2, "all"),
    "load": Timing(3, "all"),
}
# Instructions that issue in a cycle, at most.
WIDTH = 2
# How many of those that wait, from the first, are looked at for one that can issue.
WINDOW = 80
# What all others wait for once its operands are there. It is short: as long as anything else
# issues, it would never.
AT_ONCE = "address"


def ordered(code: Sequence[Instruction], timing: Mapping[str, Timing]) -> list[Instruction]:
    """``code`` in another order, which computes the same, for a core of that ``timing``.

    Of what can issue in a cycle, what stands first in ``code`` does.
    """
    behind = _dependences(code)
    waiting = list(range(len(code)))
    issued: dict[int, int] = {}
    busy = {t.unit: [0] * t.units for t in timing.values()}
    cycle = last_result = 0

    def of(i: int) -> Timing:
        return timing[code[i].kind]

    def ready(i: int) -> bool:
        """Whether all that ``i`` depends on was issued in a cycle before, and gave its results."""
        return all(
            issued.get(j, cycle) + (of(j).latency if needed else 1) <= cycle
            for j, needed in behind[i].items()
        )

    while waiting:
        chosen: list[int] = []
        window = waiting[:WINDOW]
        pressing = [i for i in window if code[i].kind == AT_ONCE and ready(i)]
        for i in pressing or window:
            units = busy[of(i).unit]
            free = min(units) <= cycle and cycle + of(i).latency >= last_result
            if free and ready(i):
                units[units.index(min(units))] = cycle + of(i).cycles
                chosen.append(i)
            if len(chosen) == WIDTH:
                break
        # The shorter one first, or it would wait for the other.
        for i in sorted(chosen, key=lambda i: of(i).latency):
            last_result = max(last_result, cycle + of(i).latency)
            waiting.remove(i)
            issued[i] = cycle
        cycle += 1
    return [code[i] for i in issued]


def _dependences(code: Sequence[Instruction]) -> list[dict[int, bool]]:
    """For each instruction those that it has to stay behind, and whether it needs their results."""
    found = []
    written: dict[str, int] = {}
    read: dict[str, list[int]] = {}
    groups: dict[str | None, list[int]] = {}
    for i, instruction in enumerate(code):
        behind = dict.fromkeys(groups.get(instruction.behind, ()), False)
        for register in instruction.writes:
            behind |= dict.fromkeys(read.get(register, ()), False)
            if register in written:
                behind[written[register]] = False
        behind |= {written[r]: True for r in instruction.reads if r in written}
        found.append(behind)
        for register in instruction.reads:
            read.setdefault(register, []).append(i)
        for register in instruction.writes:
            written[register], read[register] = i, []
        if instruction.group is not None:
            groups.setdefault(instruction.group, []).append(i)
    return found
