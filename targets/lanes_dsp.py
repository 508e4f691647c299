"""Cortex-M4 and M7: two products of 16 bits in one instruction, and saturation in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kernels.lanes import Lanes
from ..kernels.tir import T


@dataclass(frozen=True)
class Dsp(Lanes):
    """The DSP extension of ARMv7E-M. Its kernels call by name what only C can print."""

    name: str = "dsp"
    pairs: bool = True

    def clip(self, value: Any, limit: int) -> Any:
        bits = limit.bit_length() + 1  # within -limit - 1..limit
        saturated = T.call_pure_extern("int32", f"saturate{bits}", value)
        return T.max(saturated, T.int32(-limit))
