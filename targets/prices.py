"""What a kernel's call costs on a machine, in instructions: predicted by tables made by counting.

`benchmarks/count_kernels.py` makes the tables in ``prices/``, in QEMU; nothing is counted when a
model is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from ..compiler.lower.work import work_of
from ..kernels.lanes import Lanes
from ..kernels.record import Kernel, Spec
from ..passes.arena import tensor_bytes
from ..passes.select_kernels import Price

# More than any call takes: what is divided by it decides between equals alone.
MOST = 2.0**40
TABLES = Path(__file__).parent / "prices"


@dataclass(frozen=True)
class Prices:
    """Instructions by class of work (`work_of`), for one ``compiler``.

    ``kernels`` are by kernel and op. ``driver`` is what calls kernels: a ``call``, each of its
    arguments, and copies.
    """

    compiler: str
    kernels: Mapping[str, Mapping[str, float]]
    driver: Mapping[str, float] = field(default_factory=dict)

    def instructions(self, kernel: Kernel, spec: Spec, lanes: Lanes) -> float | None:
        """What a call of ``kernel`` is predicted to take; None where a price is not known."""
        known = self.kernels.get(entry(kernel, spec))
        return None if known is None else _cost(_work(kernel, kernel.opened(spec), lanes), known)

    def calling(self, arguments: int) -> float:
        """What a call with so many arguments takes in front of the kernel and behind it."""
        return self.driver["call"] + self.driver["argument"] * arguments

    def copying(self, size: int) -> float:
        """What it takes to copy so many bytes to another place."""
        return self.driver["copy"] + self.driver["byte"] * size


def entry(kernel: Kernel, spec: Spec) -> str:
    """Under what name a table has the prices of a call."""
    return f"{kernel.name} {spec.op}"


def smallest(price: Price) -> Price:
    """Bytes of all operands as a kernel wants them; of ways alike the one of least ``price``.

    Where that knows none, it is the modelled cost.
    """

    def by_size(kernel: Kernel, spec: Spec, lanes: Lanes) -> float:
        layouts = kernel.layouts(spec, lanes)
        packed = (replace(t, layout=layouts.get(i, t.layout)) for i, t in enumerate(spec.operands))
        known = price(kernel, spec, lanes)
        took = kernel.cost(spec, lanes) if known is None else known
        return sum(map(tensor_bytes, packed)) + took / MOST

    return by_size


@cache
def prices_of(machine: str) -> Prices:
    """The table of ``machine``; an empty one if nothing was counted there."""
    path = TABLES / f"{machine}.json"
    if not path.is_file():
        return Prices("", {})
    data = json.loads(path.read_text(encoding="utf-8"))
    return Prices(data["compiler"], data["kernels"], data["driver"])


def _cost(work: Mapping[str, float] | None, known: Mapping[str, float]) -> float | None:
    if work is None or any(part not in known for part in work):
        return None
    return sum(known[part] * count for part, count in work.items())


@cache
def _work(kernel: Kernel, opened: Spec, lanes: Lanes) -> Mapping[str, float] | None:
    return work_of(kernel.build(opened, lanes, "kernel"))
