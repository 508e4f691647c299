"""Counts kernels on the machines of microcontrollers, and writes what parts of their work cost.

    python benchmarks/count_kernels.py [MACHINE] ...

Each way to compute a kernel is counted for some sizes; the prices of its parts are those that come
nearest to all counts, by least squares of the relative errors. The tables are targets/prices/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from butterflyc.compiler.run.bare_metal import compiler_version
from butterflyc.compiler.run.kernel_count import kernel_instructions
from butterflyc.kernels import all_kernels
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.targets import mcu
from butterflyc.targets.prices import TABLES
from butterflyc.targets.registry import load_core

MACHINES = ("rv32imc", "cortex-m4", "esp32")
SIZES = ((4, 32, 32), (4, 96, 64), (2, 256, 64), (4, 256, 100), (3, 128, 256), (4, 512, 192))


def ternary_products() -> Iterator[Spec]:
    """Codes by ternary weights, as sums, as codes and looked up in a table."""
    for rows, outputs, depth in SIZES:
        x, w = Tensor("i8", (rows, depth)), Tensor("ternary", (outputs, depth))
        shape = rows, outputs
        yield Spec("ternary_dot", (), (x, w), (Tensor("i32", shape),))
        shifts = ("drop", 0), ("shift", 17)
        for table in ((), (Tensor("i8", (256,)),)):
            operands = (x, w, Tensor("i16", ()), *table)
            yield Spec("quantized_ternary", shifts, operands, (Tensor("i8", shape),))


SPECS = {"ternary_dot_table": ternary_products}


def price(machine: str) -> dict[str, dict[str, float]]:
    """The prices of all kernels in SPECS."""
    lanes = mcu.machine(load_core(machine)).lanes
    found: dict[str, dict[str, float]] = {}
    for kernel in all_kernels():
        if kernel.name not in SPECS:
            continue
        rows, counts = [], []
        for spec in SPECS[kernel.name]():
            for parameters in filter(None, kernel.space(spec, lanes)):
                way = replace(spec, parameters=tuple(sorted(parameters.items())))
                with TemporaryDirectory() as folder:
                    counts.append(kernel_instructions(machine, kernel, way, lanes, Path(folder)))
                rows.append(kernel.work(way, lanes))
                print(f"{machine}: {kernel.name} {len(counts)}", file=sys.stderr, flush=True)
        found[kernel.name] = fitted(rows, np.array(counts, float))
    return found


def fitted(rows: list, counts: np.ndarray) -> dict[str, float]:
    """Prices by part of the work."""
    parts = list(dict.fromkeys(part for row in rows for part in row))
    matrix = np.array([[row.get(part, 0) for part in parts] for row in rows]) / counts[:, None]
    prices, *_ = np.linalg.lstsq(matrix, np.ones(len(counts)), rcond=None)
    worst = np.abs(matrix @ prices - 1).max()
    print(f"largest error {worst:.1%}", file=sys.stderr)
    return {part: round(float(p), 3) for part, p in sorted(zip(parts, prices, strict=True))}


def main() -> None:
    for machine in sys.argv[1:] or MACHINES:
        data = {"compiler": compiler_version(machine), "kernels": price(machine)}
        TABLES.mkdir(exist_ok=True)
        (TABLES / f"{machine}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
