"""The least that a vector unit with dot products is: what the suite shows of one can be tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from butterflyc.kernels.lanes import Lanes, Load
from butterflyc.kernels.tir import T, broadcast, llvm


@dataclass(frozen=True)
class Dot(Lanes):
    """Four floats, and four outputs by four values of k an instruction."""

    name: str = "dot"
    float_lanes: int = 4
    unroll_k: int = 4
    tile_rows: int = 6
    tile_vectors: int = 2
    gemv_vectors: int = 8
    ternary_outputs: int = 4
    ternary_depth: int = 4
    ternary_lanes: int = 4
    ternary_tile_rows: int = 8
    ternary_tile_vectors: int = 2

    def multiply_add(self, total: Any, left: Any, right: Any) -> Any:
        return llvm("float32x4", "llvm.fma.v4f32", left, right, total)

    def ternary_activations(self, load: Load, first: Any, plane: int) -> Any:
        four = T.reinterpret("int32", load(first + 4 * plane, 4))
        return T.reinterpret("int8x16", broadcast(four, 4))

    def ternary_mac(self, total: Any, codes: Any, activations: Any) -> Any:
        signed = T.reinterpret("int8x16", codes)
        return llvm("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, signed, activations)
