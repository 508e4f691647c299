"""Ternary products with all that makes codes of their sums: instructions a multiplication."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.compiler.run.bare_metal import available
from butterflyc.kernels.layout import storage
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot_table import KERNEL, layout_of
from butterflyc.targets import mcu
from butterflyc.targets.registry import load_core

from .counting import instructions

# Outputs, columns, and the most instructions a multiplication on each machine.
LIMITS = {
    (1024, 256): {"rv32imc": 0.72, "cortex-m4": 0.53, "esp32": 0.72},
    (256, 64): {"rv32imc": 1.05, "cortex-m4": 0.85, "esp32": 1.05},
}
ROWS = 4  # two tokens by two experts


def product(outputs: int, depth: int) -> Spec:
    """Codes by ternary weights, one scale, GELU by a table."""
    operands = (
        Tensor("i8", (ROWS, depth)),
        Tensor("ternary", (outputs, depth)),
        Tensor("i16", ()),
        Tensor("i8", (256,)),
    )
    attributes = ("drop", 0), ("shift", 17)
    return Spec("quantized_ternary", attributes, operands, (Tensor("i8", (ROWS, outputs)),))


@pytest.mark.parametrize("machine", ["rv32imc", "cortex-m4", "esp32"])
@pytest.mark.parametrize("sizes", LIMITS, ids=str)
def test_ternary_products(
    sizes: tuple[int, int],
    machine: str,
    tmp_path: Path,
    needs_tool: Callable[..., str],
    counted: Callable[[str, str, float], None],
) -> None:
    """As many instructions as ever, fewer than any library for int8 takes."""
    for missing in available(machine):
        needs_tool(missing.tool)
    outputs, depth = sizes
    lanes = mcu.machine(load_core(machine)).lanes
    count = instructions(machine, KERNEL, product(outputs, depth), lanes, tmp_path)
    counted(machine, f"ternary {outputs} x {depth}, {ROWS} rows", count)
    assert count / (ROWS * outputs * depth) <= LIMITS[sizes][machine]


def test_bytes_of_a_weight() -> None:
    """At 256 columns a ternary weight takes at most 0.21 bytes, padding counted."""
    spec = product(1024, 256)
    stored = storage(Tensor("ternary", (1024, 256), layout_of(spec)))
    size = stored.shape[0] * stored.shape[1] * stored.shape[2]
    assert size / (1024 * 256) <= 0.21
