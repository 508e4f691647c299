"""Vector units of x86-64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..kernels.lanes import Lanes
from ..kernels.ternary_lanes import Dot, FloatWeights, Load, Read, Ternary
from ..kernels.tir import T, broadcast, llvm


@dataclass(frozen=True)
class Avx2Dot(Dot):
    """pmaddubsw into int16: eight outputs by four values of k.

    A lane gains at most 2 products a plane, so 256 values of k in 4 planes of 4 add up to at most
    64 * 2 * 2 * 127 = 32512 < 32768.
    """

    outputs: int = 8
    depth: int = 4
    lanes: int = 16
    dtype: str = "int16"
    block: int = 256

    def codes(self, read: Read, plane: int) -> Sequence[Any]:
        # There is no shift of bytes: shift pairs of them, then mask what came from the neighbour.
        pairs = T.reinterpret("uint16x16", read(0, 32))
        if plane:
            pairs = T.shift_right(pairs, broadcast(T.uint16(2 * plane), 16))
        return [T.bitwise_and(T.reinterpret("uint8x32", pairs), broadcast(T.uint8(3), 32))]

    def activations(self, load: Load, first: Any, plane: int) -> Any:
        four = T.reinterpret("int32", load(first + 4 * plane, 4))
        return T.reinterpret("int8x32", broadcast(four, 8))

    def add(
        self, totals: Sequence[Any], codes: Sequence[Any], activations: Any, plane: int
    ) -> dict[int, Any]:
        products = llvm("int16x16", "llvm.x86.avx2.pmadd.ub.sw", codes[0], activations)
        return {0: totals[0] + products}

    def sums(self, totals: Sequence[Any]) -> Any:
        ones = broadcast(T.int16(1), 16)
        return llvm("int32x8", "llvm.x86.avx2.pmadd.wd", totals[0], ones)


@dataclass(frozen=True)
class Avx2Floats(FloatWeights):
    """Eight outputs by four values of k, as in `Avx2Dot`."""

    outputs: int = 8
    depth: int = 4
    width: int = 8

    def floats(self, read: Read, k: int) -> Sequence[Any]:
        # A word holds one output's four values of k of each plane. vpermilps looks only at the two
        # lowest bits of a word, which is a table look-up of the code without a mask.
        plane, offset = divmod(k, self.depth)
        words = T.reinterpret("int32x8", read(0, 32))
        if k:
            words = T.shift_right(words, broadcast(T.int32(8 * offset + 2 * plane), 8))
        table = T.Shuffle([T.float32(v) for v in (-1, 0, 1, 0)] * 2, list(range(8)))
        return [llvm("float32x8", "llvm.x86.avx.vpermilvar.ps.256", table, words)]


AVX2_TERNARY = Ternary(
    Avx2Dot(), Avx2Dot(), Avx2Floats(), one_row=(1, 4), few_rows=(4, 2), many_rows=(4, 2)
)


@dataclass(frozen=True)
class Avx2(Lanes):
    """AVX2 and FMA (x86-64-v3): sixteen registers of eight floats."""

    name: str = "avx2"
    float_lanes: int = 8
    unroll_k: int = 4
    tile_rows: int = 6
    tile_vectors: int = 2
    gemv_vectors: int = 8
    ternary: Ternary = AVX2_TERNARY

    def absolute(self, value: Any) -> Any:
        return T.fabs(value)

    def round_to_int32(self, value: Any) -> Any:
        # Rounds by the current mode, which a C program starts with as "nearest, ties to even".
        return llvm("int32x8", "llvm.x86.avx.cvt.ps2dq.256", value)

    def round(self, value: Any) -> Any:
        return T.nearbyint(value)
