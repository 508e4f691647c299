"""Cycles of machine code on an ARM core as LLVM models it: an estimate, no measurement.

llvm-mca knows the pipeline of a core: what each instruction occupies, and when its result is there.
It takes every load to hit the first-level cache, and every branch to be foretold.
Its model of the Cortex-A53 is coarse: every NEON instruction issues alone and takes the same time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from .machine_code import Block, Function, llvm_tool
from .tools import run_tool

TRIPLE = "aarch64-linux-gnu"
# Steady state is what the iterations between these take: by then queues are full.
FEW, MANY = 100, 300
# Nothing in the pipeline may be lacking: a core's own features are those of its code.
FEATURES = "-mattr=+dotprod,+fullfp16"


@attrs.frozen
class Cycles:
    """Of one execution of a block that repeats: ``steady`` as its instructions stand in order.

    ``bound`` is what the busiest unit of the core needs, in whatever order; ``fill`` is what a
    series of repetitions takes beyond its steady cycles: the pipeline fills, and drains.
    """

    steady: float
    bound: float
    fill: float


@attrs.frozen
class BlockCost:
    """What one block of a call adds: how often it was executed, and its cycles in all."""

    block: Block
    executions: int
    cycles: float


def model_blocks(blocks: Sequence[Block], cpu: str) -> list[Cycles]:
    """The cycles of each of ``blocks`` on ``cpu``, which is LLVM's name of a core.

    Raises ToolMissing, and ToolFailed for a core or an instruction that it does not know.
    """
    if not blocks:
        return []
    return list(
        _modelled(tuple("\n".join(i.assembly for i in block.instructions) for block in blocks), cpu)
    )


def call_costs(function: Function, executions: Mapping[int, int], cpu: str) -> list[BlockCost]:
    """What each block of ``function`` that was executed adds to a call on ``cpu``.

    A block that repeats itself, a loop, takes its steady cycles each time, and once an entry what
    it takes to fill the pipeline and to drain it: nothing overlaps with what stands around it. Any
    other block takes its steady cycles as if it repeated, so it waits for its own results where a
    repetition would use them, and overlaps with its neighbours no better than with itself.
    """
    blocks = [b for b in function.blocks.values() if executions.get(b.address)]
    costs = []
    for block, cycles in zip(blocks, model_blocks(blocks, cpu), strict=True):
        count = executions[block.address]
        taken = count * cycles.steady
        if block.address in block.next:
            taken += _entries(function, block, executions) * cycles.fill
        costs.append(BlockCost(block, count, taken))
    return costs


def _entries(function: Function, loop: Block, executions: Mapping[int, int]) -> int:
    """How often a block that repeats itself is come to from others, at most.

    As often as it is left. Where it may be jumped over, what stands before it and behind it is
    executed more often.
    """
    at = loop.address
    around = function.flow.predecessors(at), function.flow.successors(at)
    counts = [sum(executions.get(a, 0) for a in side if a != at) for side in around]
    return min([executions[at], *(count for count in counts if count)])


@cache
def _modelled(texts: tuple[str, ...], cpu: str) -> tuple[Cycles, ...]:
    regions = [f"# LLVM-MCA-BEGIN {i}\n{text}\n# LLVM-MCA-END\n" for i, text in enumerate(texts)]
    few, many = (_summaries("".join(regions), cpu, n) for n in (FEW, MANY))
    return tuple(_cycles(a, b) for a, b in zip(few, many, strict=True))


def _cycles(few: Mapping[str, Any], many: Mapping[str, Any]) -> Cycles:
    steady = (many["TotalCycles"] - few["TotalCycles"]) / (MANY - FEW)
    fill = max(0.0, few["TotalCycles"] - FEW * steady)
    return Cycles(steady, few["BlockRThroughput"], fill)


def _summaries(assembly: str, cpu: str, iterations: int) -> list[Mapping[str, Any]]:
    """What llvm-mca says of each region of ``assembly``."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "blocks.s").write_text(assembly)
        command = [llvm_tool("llvm-mca"), f"-mtriple={TRIPLE}", f"-mcpu={cpu}", FEATURES]
        views = ["-resource-pressure=false", "-instruction-info=false", "-json"]
        text = run_tool([*command, *views, f"-iterations={iterations}", "blocks.s"], folder)
    return [region["SummaryView"] for region in json.loads(text)["CodeRegions"]]
