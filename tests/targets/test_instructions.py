"""Ternary products with all that makes codes of their sums: counted, and predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make
from butterflyc.compiler.run.bare_metal import available
from butterflyc.compiler.run.kernel_count import kernel_instructions
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.layout import storage
from butterflyc.kernels.record import Kernel, Spec, Tensor
from butterflyc.kernels.ternary_dot_table import KERNEL, layout_of
from butterflyc.passes.select_kernels import SelectKernels, kernel_of, spec_of
from butterflyc.targets import mcu
from butterflyc.targets.prices import Prices, entry, prices_of
from butterflyc.targets.registry import load_core

# Outputs, columns, and the most instructions a multiplication on each machine.
LIMITS = {
    (1024, 256): {"rv32imc": 0.72, "cortex-m4": 0.53, "esp32": 0.72},
    (256, 64): {"rv32imc": 1.05, "cortex-m4": 0.85, "esp32": 1.05},
}
ROWS = 4  # two tokens by two experts
MACHINES = ("rv32imc", "cortex-m4", "esp32")


def product(outputs: int, depth: int, rows: int = ROWS) -> Node:
    """Codes by ternary weights, one scale, GELU by a table."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("i8", (rows, depth)))
    weights = np.zeros((outputs, depth), np.int8)
    w = constant(store, weights, "w", Type("ternary", weights.shape))
    factor = constant(store, np.array(1, np.int16), "factor")
    table = constant(store, np.zeros(256, np.int8), "table")
    return make("quantized_ternary", x, w, factor, table, drop=0, shift=17, name="y")


def chosen(machine: str, node: Node) -> tuple[Kernel, Spec, Lanes]:
    """The kernel that the machine computes ``node`` with, and what is asked of it."""
    core = load_core("c99" if machine == "none" else machine)
    lanes, kernels = mcu.machine(core).lanes, all_kernels()
    select = SelectKernels(kernels, lanes, price=prices_of(machine).instructions)
    graph = select(Graph("g", node.operands[:1], (node,), {}))
    (made,) = (n for n in graph.nodes if "kernel" in n.notes)
    return kernel_of(made, kernels), spec_of(made), lanes


def need(machine: str, needs_tool: Callable[..., str]) -> None:
    for missing in available(machine):
        needs_tool(missing.tool)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("sizes", LIMITS, ids=str)
def test_ternary_products(
    sizes: tuple[int, int],
    machine: str,
    tmp_path: Path,
    needs_tool: Callable[..., str],
    counted: Callable[[str, str, float], None],
) -> None:
    """As many instructions as ever, and fewer than any library for int8 takes."""
    need(machine, needs_tool)
    outputs, depth = sizes
    kernel, spec, lanes = chosen(machine, product(outputs, depth))
    count = kernel_instructions(machine, kernel, spec, lanes, tmp_path)
    counted(machine, f"ternary {outputs} x {depth}, {ROWS} rows", count)
    assert count / (ROWS * outputs * depth) <= LIMITS[sizes][machine]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("sizes", [(1024, 256, 4), (200, 60, 3), (48, 128, 1)], ids=str)
def test_predictions(
    sizes: tuple[int, int, int], machine: str, tmp_path: Path, needs_tool: Callable[..., str]
) -> None:
    """What the table of prices predicts, for sizes it was not made of, is within 10 %."""
    need(machine, needs_tool)
    kernel, spec, lanes = chosen(machine, product(*sizes))
    predicted = prices_of(machine).instructions(kernel, spec, lanes)
    assert predicted
    count = kernel_instructions(machine, kernel, spec, lanes, tmp_path)
    assert abs(predicted / count - 1) <= 0.1, (predicted, count)


def test_the_cheapest_way_is_chosen() -> None:
    """Larger tables pay where many outputs look up in them, and prices say so."""
    ways = {
        sizes: dict(chosen("rv32imc", product(*sizes))[1].parameters)
        for sizes in ((1024, 256), (64, 64))
    }
    assert ways[1024, 256]["trits"] == 5
    assert ways[64, 64]["trits"] == 4
    _, spec, lanes = chosen("rv32imc", product(256, 64))
    prices = prices_of("rv32imc")
    cheapest = prices.instructions(KERNEL, spec, lanes)
    for parameters in KERNEL.space(spec, lanes):
        way = replace(spec, parameters=tuple(sorted(parameters.items())))
        other = prices.instructions(KERNEL, way, lanes)
        assert other is not None
        assert cheapest is not None
        assert cheapest <= other


def test_what_has_no_price() -> None:
    """A machine that nothing was counted on, and a kernel of floats."""
    _, spec, lanes = chosen("none", product(64, 64))
    assert spec.parameters == ()
    assert prices_of("none").instructions(KERNEL, spec, lanes) is None
    x = Tensor("f32", (4, 8))
    (softmax,) = (kernel for kernel in all_kernels() if kernel.name == "softmax")
    asked = Spec("softmax", (("axis", -1),), (x,), (x,))
    assert prices_of("rv32imc").instructions(softmax, asked, lanes) is None


def test_work_without_a_price() -> None:
    """A class of work that was never counted has none, and so has what does it."""
    _, spec, lanes = chosen("rv32imc", product(64, 64))
    known = prices_of("rv32imc").kernels[entry(KERNEL, spec)]
    less = {name: price for name, price in known.items() if name != "multiply"}
    prices = Prices("some compiler", {entry(KERNEL, spec): less})
    assert prices.instructions(KERNEL, spec, lanes) is None


def test_bytes_of_a_weight() -> None:
    """At 256 columns a ternary weight takes at most 0.21 bytes, padding counted."""
    _, spec, _ = chosen("rv32imc", product(1024, 256))
    stored = storage(Tensor("ternary", (1024, 256), layout_of(spec)))
    size = stored.shape[0] * stored.shape[1] * stored.shape[2]
    assert size / (1024 * 256) <= 0.21
