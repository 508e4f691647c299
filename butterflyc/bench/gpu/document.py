"""What the benchmark found, as a file that is valid at any time."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...compiler.files import make_folder, write_whole
from ...targets.tuned import file_name
from .device import Device

SCHEMA = "butterflyc.bench-gpu/1"
TOOLS = ("butterflyc", "torch", "triton", "numpy")
NOTES = (
    "Times are of one layer: ours, and a standard mixture of the same d, F, E and top-2, without "
    "biases and without the product that makes a router's logits.",
    "The main ratios are without routing: experts and gates are given, and rows of standard "
    "mixtures are sorted already. 'Both with routing' is from logits: top-k and softmax on both "
    "sides, and the sort, which only standard mixtures need.",
    "graph: calls were captured in a CUDA graph; stream: called from Python. Up to 64 tokens, a "
    "graph's calls are on copies of the weights that are together larger than three times the L2 "
    "cache, as far as memory holds them; from there on L2 is written over before each call.",
    "'butterfly eager' is the module of models/; 'sum-first' adds experts in front of W_down, with "
    "ternary weights and cosines made before.",
    "'standard triton' adds rows in float32 and leaves the result so where it splits K.",
)


def versions() -> dict[str, str]:
    """Of what computes; of what is not installed, none."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


class Document:
    """The file ``path``: written anew, whole, after each change."""

    def __init__(self, folder: Path, device: Device, dtype: str, started: datetime) -> None:
        make_folder(folder)
        stem = file_name(device.name).removesuffix(".json")
        self.path = folder / f"gpu-{stem}-{started:%Y%m%d-%H%M%S}.json"
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "rehearsal": device.rehearsal,
            "device": device.name,
            "capability": device.gpu.capability,
            "cache_bytes": device.cache_bytes,
            "memory_bytes": device.memory_bytes,
            "dtype": dtype,
            "started": started.isoformat(timespec="seconds"),
            "versions": versions(),
            "notes": list(NOTES),
            "complete": False,
            "faults": [],
            "ceilings": {},
            "checks": [],
            "tuning": [],
            "points": [],
            "not_measured": [],
        }
        self.write()

    def write(self) -> None:
        write_whole(self.path, [json.dumps(self.data, indent=1).encode(), b"\n"])

    def put(self, **values: Any) -> None:
        self.data |= values
        self.write()

    def add(self, name: str, *items: Mapping[str, Any] | str) -> None:
        self.data[name] += items
        self.write()


def now() -> datetime:
    return datetime.now(UTC)


def rows_of(data: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of all points."""
    return (row for point in data["points"] for row in point["rows"])
