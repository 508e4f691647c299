"""A counted call of a kernel, modelled: cycles of its main loop, of the call, and of its parts."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from .cycles import BlockCost, call_costs
from .kernel_call import SYMBOL, CountedCall
from .machine_code import disassemble
from .products import main_products, regions

# What calls the kernel.
HARNESS = "main"
PARTS = ("before", "product", "behind")


@attrs.frozen
class MainLoop:
    """The block with most of the call's products: what it costs, and its products each time."""

    cost: BlockCost
    products: int

    @property
    def repeats(self) -> bool:
        """Whether it is a loop by itself."""
        return self.cost.block.address in self.cost.block.next

    @property
    def achieved(self) -> float:
        """Products a cycle, as the instructions stand."""
        return self.products / self.cost.each.steady

    @property
    def bound(self) -> float:
        """Products a cycle that the units of the core allow for these instructions in any order."""
        return self.products / self.cost.each.bound


@attrs.frozen
class ModelledCall:
    """A whole call, block by block, each with its part: before the products, of them, or behind.

    See `products.regions`. Functions that the kernel calls are of the part before.
    """

    blocks: tuple[tuple[str, BlockCost], ...]
    floats: bool

    @property
    def instructions(self) -> int:
        return sum(cost.executions * len(cost.block.instructions) for _, cost in self.blocks)

    @property
    def products(self) -> int:
        """Products that the instructions computed, padding and all."""
        return sum(self._work(cost) for _, cost in self.blocks)

    @property
    def cycles(self) -> float:
        """Where blocks do not overlap: see `cycles.call_costs`."""
        return sum(cost.cycles for _, cost in self.blocks)

    @property
    def overlapping_cycles(self) -> float:
        """Where each block overlaps with what stands around it as it would with itself."""
        return sum(cost.executions * cost.each.steady for _, cost in self.blocks)

    @property
    def parts(self) -> dict[str, float]:
        """The cycles of each part."""
        found = dict.fromkeys(PARTS, 0.0)
        for part, cost in self.blocks:
            found[part] += cost.cycles
        return found

    @property
    def loop(self) -> MainLoop | None:
        """The block with most of the products; None if there are none."""
        most = max((cost for _, cost in self.blocks), key=self._work, default=None)
        if most is None or not self._work(most):
            return None
        return MainLoop(most, main_products(most.block, self.floats))

    def _work(self, cost: BlockCost) -> int:
        return cost.executions * main_products(cost.block, self.floats)


def modelled(call: CountedCall, cpu: str, floats: bool = False) -> ModelledCall:
    """``call`` on ``cpu`` (LLVM's name), of which the products are those of floats or of integers.

    Raises ToolMissing, ToolFailed.
    """
    counts = call.executions.by_address
    blocks: list[tuple[str, BlockCost]] = []
    with TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        program.write_bytes(call.program)
        for name in call.executions.executed():
            if name == HARNESS:
                continue
            function = disassemble(program, name)
            where = regions(function, floats) if name == SYMBOL else {}
            for cost in call_costs(function, counts, cpu):
                blocks.append((where.get(cost.block.address, "before"), cost))
    return ModelledCall(tuple(blocks), floats)
