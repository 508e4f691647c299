"""The vector unit as a kernel sees it: lane counts, tile sizes and a handful of expressions.

``Lanes()`` is the portable record: one lane, no intrinsic, nothing that becomes a libm call. A
target with vectors derives from it and replaces what its instructions do better (``targets/``).

Operands are given as loaders, never as a buffer and an index: ``load(k, n)`` is n consecutive
values of one row from k. One form then serves plain rows, strided heads, loads that are broadcast
(x86) and loads from which single lanes are multiplied (NEON).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .ternary_lanes import Load, Ternary
from .tir import T, broadcast, cast, constant, dtype_of, let


@dataclass(frozen=True)
class Lanes:
    """One lane, any C compiler's arithmetic. Sizes are in elements unless they say bytes."""

    name: str = "scalar"

    # Whether one instruction multiplies two 16-bit halves and adds both products (smlad).
    pairs: bool = False

    # float32: how many a vector holds.
    float_lanes: int = 1
    # Values of k in one turn of a product's inner loop.
    unroll_k: int = 1
    # The register tile of a product: rows x vectors of outputs.
    tile_rows: int = 2
    tile_vectors: int = 4
    # Vectors of outputs when there is one row: enough chains to hide the latency of an FMA.
    gemv_vectors: int = 4

    ternary: Ternary = field(default_factory=Ternary)

    # ---- int32, one number

    def clip(self, value: Any, limit: int) -> Any:
        """The nearest number within -limit..limit, for a limit of 2**n - 1."""
        return T.max(T.min(value, T.int32(limit)), T.int32(-limit))

    # ---- float32; every value has float_lanes lanes unless it says otherwise

    def activation(self, load: Load, first: Any, offset: int) -> Any:
        """Activation ``first + offset`` in every lane, 0 <= offset < unroll_k."""
        return broadcast(load(first + offset, 1), self.float_lanes)

    def multiply_add(self, total: Any, left: Any, right: Any) -> Any:
        """``total + left * right``, fused where the target does that."""
        return total + left * right

    def maximum(self, left: Any, right: Any) -> Any:
        """The larger one, NaN where ``right`` is NaN; any number of lanes.

        Where ``left`` is NaN it may be either. T.max is miscompiled by TVM's C target.
        """
        return T.Select(left > right, left, right)

    def minimum(self, left: Any, right: Any) -> Any:
        """The smaller one, NaN where ``right`` is NaN; where ``left`` is, it may be either."""
        return T.Select(left < right, left, right)

    def absolute(self, value: Any) -> Any:
        value = let(value, self.float_lanes)
        return self.maximum(value, constant(0, self.float_lanes) - value)

    def square_root(self, value: Any, lanes: int = 1) -> Any:
        return T.sqrt(value)

    def round_to_int32(self, value: Any) -> Any:
        """The nearest int32, ties to even; \\|value\\| < 2**31."""
        lanes = self.float_lanes
        value = let(value, lanes)
        whole = let(cast("int32", value, lanes), lanes, "int32")
        # Twice the fraction is exact and lies in (-2, 2): its whole part is -1, 0 or 1 and tells
        # whether to step, except at a tie (fraction of exactly a half) next to an even number.
        twice = let((value - cast("float32", whole, lanes)) * constant(2, lanes), lanes)
        step = let(cast("int32", twice, lanes), lanes, "int32")
        tie = twice == cast("float32", step, lanes)
        odd = T.bitwise_and(whole, broadcast(T.int32(1), lanes))
        return whole + T.Select(tie, step * odd, step)

    def as_float(self, whole: Any) -> Any:
        """An int32 vector of float_lanes as floats."""
        return cast("float32", whole, self.float_lanes)

    def round(self, value: Any) -> Any:
        """The nearest integral float, ties to even; \\|value\\| < 2**31."""
        return self.as_float(self.round_to_int32(value))

    def power_of_two(self, exponent: Any) -> Any:
        """2**exponent for an int32 ``exponent`` in -126..127, exactly; 0 at -127, inf at 128."""
        lanes = self.float_lanes
        biased = exponent + broadcast(T.int32(127), lanes)
        bits = T.shift_left(biased, broadcast(T.int32(23), lanes))
        return T.reinterpret(dtype_of("float32", lanes), bits)
