"""Cycles of machine code on an ARM core as LLVM models it: an estimate, no measurement.

llvm-mca knows the pipeline of a core: what each instruction occupies, and when its result is there.
It takes every load to hit the first-level cache, and every branch to be foretold.
Its model of the Cortex-A53 is coarse: every NEON instruction issues alone and takes the same time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from .llvm import llvm_tool
from .machine_code import Block, Function
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
    series of repetitions takes beyond its steady cycles, since the pipeline fills and drains;
    ``once`` is what one execution takes that starts and ends with an empty pipeline.
    """

    steady: float
    bound: float
    fill: float
    once: float


@attrs.frozen
class BlockCost:
    """What one block of a call adds: how often it was executed, and its cycles, in all and each."""

    block: Block
    executions: int
    cycles: float
    each: Cycles


def model_blocks(blocks: Sequence[Block], cpu: str) -> list[Cycles]:
    """The cycles of each of ``blocks`` on ``cpu``, which is LLVM's name of a core.

    Raises ToolMissing, and ToolFailed for a core or an instruction that it does not know.
    """
    if not blocks:
        return []
    return list(_modelled(tuple(map(_text, blocks)), cpu))


def timeline(block: Block, cpu: str, iterations: int = 2) -> str:
    """llvm-mca's own account of a block: what each instruction waits for, cycle by cycle."""
    options = [f"-iterations={iterations}", "-timeline", "-timeline-max-cycles=0"]
    return _mca(_text(block), cpu, options)


def call_costs(function: Function, executions: Mapping[int, int], cpu: str) -> list[BlockCost]:
    """What each block of ``function`` that was executed adds to a call on ``cpu``.

    Blocks do not overlap: each starts with an empty pipeline, and ends when it has drained. A block
    that repeats itself, a loop, takes its steady cycles each time, and its fill once an entry. Any
    other block takes each time what it takes once. A core that reorders does better where blocks
    are short, so the sum is too large rather than too small; but no branch is mispredicted, and no
    load misses the cache.
    """
    blocks = [b for b in function.blocks.values() if executions.get(b.address)]
    costs = []
    for block, cycles in zip(blocks, model_blocks(blocks, cpu), strict=True):
        count = executions[block.address]
        taken = count * cycles.once
        if block.address in block.next:
            entries = _entries(function, block, executions)
            taken = count * cycles.steady + entries * cycles.fill
        costs.append(BlockCost(block, count, taken, cycles))
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
    runs = (_summaries("".join(regions), cpu, n) for n in (1, FEW, MANY))
    return tuple(starmap(_cycles, zip(*runs, strict=True)))


def _cycles(one: Mapping[str, Any], few: Mapping[str, Any], many: Mapping[str, Any]) -> Cycles:
    steady = (many["TotalCycles"] - few["TotalCycles"]) / (MANY - FEW)
    fill = max(0.0, few["TotalCycles"] - FEW * steady)
    return Cycles(steady, few["BlockRThroughput"], fill, one["TotalCycles"])


def _summaries(assembly: str, cpu: str, iterations: int) -> list[Mapping[str, Any]]:
    """What llvm-mca says of each region of ``assembly``."""
    views = ["-resource-pressure=false", "-instruction-info=false", "-json"]
    text = _mca(assembly, cpu, [*views, f"-iterations={iterations}"])
    return [region["SummaryView"] for region in json.loads(text)["CodeRegions"]]


def _text(block: Block) -> str:
    return "\n".join(i.assembly for i in block.instructions)


def _mca(assembly: str, cpu: str, options: Sequence[str]) -> str:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "blocks.s").write_text(assembly)
        command = [llvm_tool("llvm-mca"), f"-mtriple={TRIPLE}", f"-mcpu={cpu}", FEATURES]
        return run_tool([*command, *options, "blocks.s"], folder)
