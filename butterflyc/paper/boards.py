"""Figure 6 from placements: how many experts of the papers' ViT really fit each device."""

from __future__ import annotations

from collections.abc import Callable

from ..budget import Budget, experts_that_fit
from .devices import Device, devices, placed_key
from .rows import Measured

Progress = Callable[[str], None]


def measured_experts(progress: Progress = lambda _: None) -> Measured:
    """Experts that fit each device of Figure 6 in ``int8``, and what binds, by the keys of rows.

    Attention, W_down, code, scales and padding are counted; angles have 16 bits, and kernels are
    those of the smallest constants.
    """
    rows: dict[str, float] = {}
    for device in devices():
        progress(f"place experts on {device.name}")
        memory = None if device.flash else device.ram
        budget = experts_that_fit(
            device.core,
            mode="int8",
            angles="i16",
            prefer="size",
            memory=memory,
            progress=progress,
        )
        rows |= _rows(device, budget)
    return rows


def _rows(device: Device, budget: Budget) -> dict[str, float]:
    key = f"figure6.{device.key}"
    if not device.flash:
        return {placed_key(device): budget.experts}
    flash, sram = budget.memory("flash"), budget.memory("sram")
    assert flash, "a microcontroller has flash"
    assert sram, "and SRAM"
    rows: dict[str, float] = {placed_key(device): budget.experts, f"{key}.sram": sram.used}
    if not budget.experts:
        rows[f"{key}.missing"] = -flash.left
    return rows
