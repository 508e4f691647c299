"""What each part of a kernel's work costs on a machine, in instructions: tables made by counting.

`benchmarks/count_kernels.py` makes the tables in ``prices/``, in QEMU; nothing is counted when a
model is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..kernels.lanes import Lanes
from ..kernels.record import Kernel, Spec

TABLES = Path(__file__).parent / "prices"


@dataclass(frozen=True)
class Prices:
    """Instructions by kernel and part of its work (`Kernel.work`), for one ``compiler``."""

    compiler: str
    kernels: Mapping[str, Mapping[str, float]]

    def instructions(self, kernel: Kernel, spec: Spec, lanes: Lanes) -> float | None:
        """What a call of ``kernel`` is predicted to take; None where a price is not known."""
        work, known = kernel.work(spec, lanes), self.kernels.get(kernel.name, {})
        if not work or any(part not in known for part in work):
            return None
        return sum(known[part] * count for part, count in work.items())


@cache
def prices_of(machine: str) -> Prices:
    """The table of ``machine``; an empty one if nothing was counted there."""
    path = TABLES / f"{machine}.json"
    if not path.is_file():
        return Prices("", {})
    data = json.loads(path.read_text(encoding="utf-8"))
    return Prices(data["compiler"], data["kernels"])
