"""How many instructions a model is predicted to take, step by step, by a table made by counting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..compiler.ir import Graph, Node
from ..compiler.ir.schedule import Step, steps_of
from ..compiler.ir.views import laid_out, root_of
from ..kernels import all_kernels
from ..kernels.lanes import Lanes
from ..passes.select_kernels import kernel_of, spec_of
from .prices import Prices, prices_of
from .registry import Core

# Of a step, beside its calls: it tells that it is done.
TICK_ARGUMENTS = 1


@dataclass(frozen=True)
class StepCost:
    """What a step of the driver takes; None where a price is not known."""

    name: str
    ops: tuple[str, ...]
    source: str
    instructions: float | None


@dataclass(frozen=True)
class Prediction:
    """All steps of an inference, in order, on a ``core``."""

    steps: tuple[StepCost, ...]
    clock_hz: int | None
    compiler: str

    @property
    def instructions(self) -> int | None:
        """Of all steps; None where a price of one is not known."""
        costs = [step.instructions for step in self.steps if step.instructions is not None]
        return round(sum(costs)) if len(costs) == len(self.steps) else None

    @property
    def milliseconds(self) -> float | None:
        """At one instruction a cycle of the core's clock, which is a lower bound."""
        total = self.instructions
        return None if total is None or not self.clock_hz else total / self.clock_hz * 1e3


def predicted(graph: Graph, core: Core, lanes: Lanes) -> Prediction:
    """What ``graph``, whose kernels are chosen and whose memory is planned, takes on ``core``."""
    prices = prices_of(core.runner)
    costs = []
    for step in steps_of(graph):
        last = step.nodes[-1]
        ops = tuple(node.op for node in step.nodes)
        costs.append(StepCost(step.name, ops, last.source or "", _step(step, prices, lanes)))
    return Prediction(tuple(costs), core.clock_hz, prices.compiler)


def _step(step: Step, prices: Prices, lanes: Lanes) -> float | None:
    if not prices.driver:
        return None
    total = prices.calling(TICK_ARGUMENTS)
    for _, count, rows in step.tiles:
        for node in step.nodes:
            cost = _call(node, rows, prices, lanes)
            if cost is None:
                return None
            total += count * cost
    return total


def _call(node: Node, rows: int, prices: Prices, lanes: Lanes) -> float | None:
    """Of one call of a node's kernel, or of the copies that put it together."""
    if "kernel" not in node.notes:
        return sum(prices.copying(size) for size in _copies(node))
    kernel, spec = kernel_of(node, all_kernels()), spec_of(node, rows)
    took = prices.instructions(kernel, spec, lanes)
    scratch = len(kernel.scratch(spec, lanes))
    arguments = len(spec.operands) + len(spec.results) + scratch + len(kernel.arguments(spec))
    return None if took is None else took + prices.calling(arguments)


def _copies(node: Node) -> list[int]:
    """Bytes of the operands that do not lie in their place already."""
    start = _place(node)
    return [
        operand.type.bytes
        for operand, offset in laid_out(node)
        if operand.type.bytes and (start is None or _place(operand) != start + offset)
    ]


def _place(node: Node) -> int | None:
    """Where a value lies in the arena, if it lies there."""
    root, index = root_of(node)
    places: Any = root.notes.get("at", ())
    return places[index] if places and places[index] >= 0 else None
