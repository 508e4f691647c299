"""A counted call of a kernel, modelled: cycles of its main loop, of the call, and of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from .cycles import BlockCost, Cycles, call_costs, model_blocks
from .kernel_call import SYMBOL, CountedCall
from .machine_code import Block, disassemble
from .products import main_products, regions

# What calls the kernel.
HARNESS = "main"
PARTS = ("before", "product", "behind")


@attrs.frozen
class MainLoop:
    """The block with most of the call's products: its code, products and cycles an execution."""

    block: Block
    repeats: bool
    executions: int
    products: int
    cycles: Cycles

    @property
    def achieved(self) -> float:
        """Products a cycle, as the instructions stand."""
        return self.products / self.cycles.steady

    @property
    def bound(self) -> float:
        """Products a cycle that the units of the core allow for these instructions in any order."""
        return self.products / self.cycles.bound


@attrs.frozen
class ModelledCall:
    """A whole call: ``products`` are those that its instructions computed, padding and all.

    ``parts`` are the cycles before the products, of them, and behind; see `products.regions`.
    Functions that the kernel calls are of the part before.
    """

    instructions: int
    products: int
    cycles: float
    parts: dict[str, float]
    loop: MainLoop | None


def modelled(call: CountedCall, cpu: str, floats: bool = False) -> ModelledCall:
    """``call`` on ``cpu`` (LLVM's name), of which the products are those of floats or of integers.

    Raises ToolMissing, ToolFailed.
    """
    counts = call.executions.by_address
    parts = dict.fromkeys(PARTS, 0.0)
    costs: list[BlockCost] = []
    with TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        program.write_bytes(call.program)
        for name in call.executions.executed():
            if name == HARNESS:
                continue
            function = disassemble(program, name)
            where = regions(function, floats) if name == SYMBOL else {}
            for cost in call_costs(function, counts, cpu):
                parts[where.get(cost.block.address, "before")] += cost.cycles
                costs.append(cost)
    instructions = sum(cost.executions * len(cost.block.instructions) for cost in costs)
    products = sum(cost.executions * main_products(cost.block, floats) for cost in costs)
    loop = _main_loop(costs, cpu, floats)
    return ModelledCall(instructions, products, sum(parts.values()), parts, loop)


def _main_loop(costs: Sequence[BlockCost], cpu: str, floats: bool) -> MainLoop | None:
    def work(cost: BlockCost) -> int:
        return cost.executions * main_products(cost.block, floats)

    most = max(costs, key=work, default=None)
    if most is None or not work(most):
        return None
    (cycles,) = model_blocks([most.block], cpu)
    block = most.block
    products = main_products(block, floats)
    return MainLoop(block, block.address in block.next, most.executions, products, cycles)
