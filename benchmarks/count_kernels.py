"""Counts kernels on the machines of microcontrollers, and writes what their work costs there.

    python benchmarks/count_kernels.py [MACHINE] ... [--op OP ...]

Each kernel of integer mode is counted for the sizes in counted_specs.py, some in several ways. The
prices of its classes of work are those that come nearest to all counts, by least squares of the
relative errors. The tables are targets/prices/. With ``--op`` only the kernels of those ops are
counted, and the rest of a table stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from counted_specs import OPS, specs_of

from butterflyc.compiler.files import write_whole
from butterflyc.compiler.lower.work import work_of
from butterflyc.compiler.run.bare_metal import compiler_version
from butterflyc.compiler.run.driver_count import driver_instructions
from butterflyc.compiler.run.kernel_count import kernel_instructions
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec
from butterflyc.targets import mcu
from butterflyc.targets.prices import TABLES, entry
from butterflyc.targets.registry import load_core

MACHINES = ("rv32imc", "cortex-m4", "esp32")
# For vector units.
NOT_COUNTED = frozenset({"ternary_dot"})
# Of each spec, drawn at random.
WAYS = 2
ARGUMENTS = (2, 4, 6, 8, 10, 12)
# Copies of a few bytes are made in place; these call memcpy.
COPIED = (96, 200, 500, 1500)


def asked(lanes: Lanes, ops: Iterable[str]) -> Iterator[tuple[Kernel, Spec]]:
    """All calls that are counted."""
    for op in ops:
        for kernel in all_kernels():
            if op not in kernel.ops or kernel.name in NOT_COUNTED:
                continue
            for spec in specs_of(op):
                for way in ways_of(kernel, spec, lanes):
                    yield kernel, way


def ways_of(kernel: Kernel, spec: Spec, lanes: Lanes) -> list[Spec]:
    """Some ways to compute ``spec``; none if the kernel cannot."""
    if not kernel.supports(spec, lanes):
        return []
    ways = [way for way in kernel.space(spec, lanes) if way] or [{}]
    chosen = np.random.default_rng(int(spec.digest, 16)).permutation(len(ways))[:WAYS]
    specs = [spec.with_parameters(ways[i]) for i in chosen]
    return [way for way in specs if kernel.supports(way, lanes)]


def price(machine: str, ops: Iterable[str]) -> dict[str, dict[str, float]]:
    """The prices of all kernels of ``ops``, by `entry`."""
    lanes = mcu.machine(load_core(machine)).lanes
    works: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(list)
    calls = list(asked(lanes, ops))
    for i, (kernel, spec) in enumerate(calls):
        work = work_of(kernel.build(kernel.opened(spec), lanes, "kernel"))
        assert work is not None, f"{kernel.name}: data decide how often loops turn"
        with TemporaryDirectory() as folder:
            count = kernel_instructions(machine, kernel, spec, lanes, Path(folder))
        works[entry(kernel, spec)].append(work)
        counts[entry(kernel, spec)].append(count)
        if i % 50 == 0:
            say(f"{machine}: {i} of {len(calls)} calls counted")
    found = {}
    for name in works:
        found[name], errors = fitted(works[name], np.array(counts[name]))
        largest = f"{np.median(errors):.1%}, at most {errors.max():.1%}"
        say(f"{name}: {len(errors)} calls, error {largest}")
    return found


def fitted(
    works: Sequence[Mapping[str, float]], counts: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """Prices by class of work, none below 0; and the relative errors of what they predict."""
    classes = list(dict.fromkeys(name for work in works for name in work))
    # What is not free takes at least an instruction.
    counts = np.maximum(counts, 1.0)
    shares = np.array([[work.get(name, 0) for name in classes] for work in works])
    shares = shares / counts[:, None]
    scale = shares.max(axis=0)  # classes are done once to millions of times
    prices = nonnegative(shares / scale, np.ones(len(counts))) / scale
    errors = np.abs(shares @ prices - 1)
    return {
        name: float(f"{p:.6g}") for name, p in sorted(zip(classes, prices, strict=True))
    }, errors


def nonnegative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The x >= 0 whose ``a`` x is nearest to ``b``.

    C. L. Lawson, R. J. Hanson: Solving Least Squares Problems, 1974, chapter 23.
    """
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    for _ in range(10 * len(x)):
        slope = np.where(free, -np.inf, a.T @ (b - a @ x))
        if slope.max() <= 1e-9:
            break
        free[slope.argmax()] = True
        while True:
            tried = np.zeros(len(x))
            tried[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (tried <= 0)
            if not below.any():
                break
            step = (x[below] / (x[below] - tried[below])).min()
            x += step * (tried - x)
            free &= x > 1e-12
        x = tried
    return x


def driver(machine: str) -> dict[str, float]:
    """What calls take, without what is called; and copies."""
    with TemporaryDirectory() as folder:
        calls, copies = driver_instructions(machine, ARGUMENTS, COPIED, Path(folder))
    called, _ = fitted([{"call": 1, "argument": n} for n in ARGUMENTS], np.array(calls))
    copied, _ = fitted([{"copy": 1, "byte": n} for n in COPIED], np.array(copies))
    return called | copied


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("machines", nargs="*", default=MACHINES)
    parser.add_argument("--op", nargs="+", choices=tuple(OPS), default=())
    options = parser.parse_args()
    for machine in options.machines:
        path = TABLES / f"{machine}.json"
        if options.op:
            data = json.loads(path.read_text())
            data["kernels"] |= price(machine, options.op)
        else:
            made = {"compiler": compiler_version(machine), "driver": driver(machine)}
            data = {**made, "kernels": price(machine, OPS)}
        TABLES.mkdir(exist_ok=True)
        write_whole(path, [(json.dumps(data, indent=1) + "\n").encode()])


if __name__ == "__main__":
    main()
