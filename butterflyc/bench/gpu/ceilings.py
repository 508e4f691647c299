"""What this device does at most, measured in the same process as all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .device import Call, Device

# Bytes that a copy reads and writes, rows and columns of a product, rounds of each.
COPIED, SQUARE, ROUNDS = 4 * 10**9, 8192, 10
REHEARSED_COPY, REHEARSED_SQUARE = 1 << 12, 32
NODES = (1, 2, 4, 8)
# How often one graph is launched, each time behind the time before.
REPEATS = 50


def ceilings(device: Device, progress: Callable[[str], None]) -> dict[str, Any]:
    """Bytes a second of a copy, multiply-adds a second of products, seconds of graphs."""
    copied = REHEARSED_COPY if device.rehearsal else COPIED
    square = REHEARSED_SQUARE if device.rehearsal else SQUARE
    progress("measuring a copy, products and nodes of a graph")
    found: dict[str, Any] = {
        "copy_bytes_a_second": copied / _median(device, _copy(device, copied)),
        "products_a_second": {},
        "node_seconds": {},
    }
    for name, call in _products(device, square).items():
        found["products_a_second"][name] = square**3 / _median(device, call)
    for nodes in NODES:
        graph = device.captured(_chain(device, nodes))
        found["node_seconds"][str(nodes)] = _median(device, _repeated(graph)) / REPEATS
    return found


def _median(device: Device, call: Call) -> float:
    seconds = device.seconds({"": call}, ROUNDS, cold=False)[""]
    return sorted(seconds)[len(seconds) // 2]


def _copy(device: Device, copied: int) -> Call:
    source = torch.ones(copied // 2, dtype=torch.int8, device=device.place)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _products(device: Device, square: int) -> dict[str, Call]:
    """Random operands: products of zeros take less power, and run faster."""
    wide = torch.randn(square, square, device=device.place)
    half = wide.to(torch.bfloat16)
    code = (wide * 40).clamp(-127, 127).to(torch.int8)
    return {
        "bf16": lambda: torch.mm(half, half.T),
        "i8": lambda: torch._int_mm(code, code.T),
    }


def _repeated(graph: Call) -> Call:
    def call() -> None:
        for _ in range(REPEATS):
            graph()

    return call


def _chain(device: Device, nodes: int) -> Call:
    """So many kernels that do next to nothing, each behind the other."""
    one = torch.zeros(1, device=device.place)

    def call() -> None:
        for _ in range(nodes):
            one.add_(1)

    return call
