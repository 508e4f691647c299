"""Vector units of x86-64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kernels.lanes import Lanes, Load
from ..kernels.tir import T, broadcast, llvm


@dataclass(frozen=True)
class Avx2(Lanes):
    """AVX2 and FMA (x86-64-v3): sixteen registers of eight floats.

    The ternary product is pmaddubsw into int16: a lane gains at most 2 products a step, so 256
    values of k in 4 planes of 4 add up to at most 64 steps * 2 * 2 * 127 = 32512 < 32768.
    """

    name: str = "avx2"
    float_lanes: int = 8
    unroll_k: int = 4
    tile_rows: int = 6
    tile_vectors: int = 2
    gemv_vectors: int = 8
    ternary_outputs: int = 8
    ternary_depth: int = 4
    ternary_lanes: int = 16
    ternary_accumulator: str = "int16"
    ternary_block: int = 256
    ternary_tile_rows: int = 4
    ternary_tile_vectors: int = 2
    ternary_gemv_vectors: int = 4

    def absolute(self, value: Any) -> Any:
        return T.fabs(value)

    def round_to_int32(self, value: Any) -> Any:
        # Rounds by the current mode, which a C program starts with as "nearest, ties to even".
        return llvm("int32x8", "llvm.x86.avx.cvt.ps2dq.256", value)

    def round(self, value: Any) -> Any:
        return T.nearbyint(value)

    def ternary_codes(self, weights: Any, plane: int) -> Any:
        # There is no shift of bytes: shift pairs of them, then mask what came from the neighbour.
        pairs = T.reinterpret("uint16x16", weights)
        if plane:
            pairs = T.shift_right(pairs, broadcast(T.uint16(2 * plane), 16))
        return T.bitwise_and(T.reinterpret("uint8x32", pairs), broadcast(T.uint8(3), 32))

    def ternary_activations(self, load: Load, first: Any, plane: int) -> Any:
        four = T.reinterpret("int32", load(first + 4 * plane, 4))
        return T.reinterpret("int8x32", broadcast(four, 8))

    def ternary_mac(self, total: Any, codes: Any, activations: Any) -> Any:
        return total + llvm("int16x16", "llvm.x86.avx2.pmadd.ub.sw", codes, activations)

    def ternary_flush(self, total: Any) -> Any:
        ones = broadcast(T.int16(1), 16)
        return llvm("int32x8", "llvm.x86.avx2.pmadd.wd", total, ones)

    def ternary_floats(self, weights: Any, plane: int, offset: int) -> Any:
        # A word holds one output's four values of k of each plane. vpermilps looks only at the two
        # lowest bits of a word, which is a table look-up of the code without a mask.
        words = T.reinterpret("int32x8", weights)
        if plane or offset:
            words = T.shift_right(words, broadcast(T.int32(8 * offset + 2 * plane), 8))
        table = T.Shuffle([T.float32(v) for v in (-1, 0, 1, 0)] * 2, list(range(8)))
        return llvm("float32x8", "llvm.x86.avx.vpermilvar.ps.256", table, words)
