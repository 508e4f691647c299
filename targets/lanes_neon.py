"""Vector units of ARM Cortex-A: NEON of AArch64, without and with dot products, and of ARMv7-A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..kernels.lanes import Lanes
from ..kernels.ternary_lanes import Dot, FloatWeights, Load, Read, Tables, Ternary
from ..kernels.tir import Registers, T, broadcast, cast, let, llvm

LOW, HIGH = range(8), range(8, 16)


def dtype_of(value: Any) -> str:
    """TVM's name of the type of an expression."""
    return str(value.ty.dtype)


def in_place(weights: Any, plane: int) -> Any:
    """The codes of one plane of 16 bytes, left where they lie: times 1, 4 and 16, and 1 again."""
    if plane == 3:
        return T.shift_right(weights, broadcast(T.uint8(6), 16))
    return T.bitwise_and(weights, broadcast(T.uint8(3 << (2 * plane)), 16))


def signed(weights: Any, plane: int) -> Any:
    """The weights -1, 0 and 1 of one plane of 16 bytes of codes."""
    shifted = T.shift_right(weights, broadcast(T.uint8(2 * plane), 16)) if plane else weights
    codes = shifted if plane == 3 else T.bitwise_and(shifted, broadcast(T.uint8(3), 16))
    return T.reinterpret("int8x16", codes) - broadcast(T.int8(1), 16)


@dataclass(frozen=True)
class Long(Dot):
    """smlal: four outputs, sixteen values of k side by side, summed at the end of a block.

    Weights are -1, 0 and 1: of 2048 values of k a lane takes 256 products of at most 127.
    """

    outputs: int = 4
    depth: int = 16
    parts: int = 4
    registers: int = 4
    lanes: int = 8
    dtype: str = "int16"
    block: int = 2048
    offset: int = 0
    stored: str = "i8"

    def codes(self, read: Read, plane: int) -> Sequence[Any]:
        return [signed(read(16 * output, 16), plane) for output in range(self.outputs)]

    def panel(self, read: Read) -> Sequence[Any]:
        return [read(16 * output, 16) for output in range(self.outputs)]

    def activations(self, load: Load, first: Any, plane: int) -> Any:
        return load(first + 16 * plane, 16)

    def add(
        self, totals: Sequence[Any], codes: Sequence[Any], activations: Any, plane: int
    ) -> dict[int, Any]:
        return {i: self.products(totals[i], codes[i], activations) for i in range(self.outputs)}

    def sums(self, totals: Sequence[Any]) -> Any:
        return self.total([let(self.pairs(total), 4, "int32") for total in totals])

    def products(self, total: Any, codes: Any, activations: Any) -> Any:
        """``total`` int16 x 8 plus the products of sixteen int8: smlal and smlal2."""
        # As intrinsics: LLVM would take the widening of what a loop reads twice out of it.
        for lanes in (LOW, HIGH):
            halves = (T.Shuffle([value], list(lanes)) for value in (codes, activations))
            total = total + llvm("int16x8", "llvm.aarch64.neon.smull.v8i16", *halves)
        return total

    def pairs(self, total: Any) -> Any:
        """int16 x 8 as int32 x 4: neighbours added."""
        return llvm("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", total)

    def total(self, parts: Sequence[Any]) -> Any:
        """int32 x 4: the sum of each of four vectors."""

        def add(left: Any, right: Any) -> Any:
            return llvm("int32x4", "llvm.aarch64.neon.addp.v4i32", left, right)

        return add(add(parts[0], parts[1]), add(parts[2], parts[3]))


@dataclass(frozen=True)
class LongInPlace(Long):
    """The same by codes that are masked and not shifted: those of plane p are 4**p too large.

    So planes 1 and 2 have accumulators of their own. Of 256 values of k a lane of plane 2 takes
    4 steps * 2 halves, and 8 * (2 * 16) * 127 = 32512 < 32768; planes 0 and 3 add up to 16 * 2 *
    127 together.
    """

    registers: int = 12
    block: int = 256
    offset: int = 1
    stored: str = "u8"

    def codes(self, read: Read, plane: int) -> Sequence[Any]:
        return [in_place(read(16 * output, 16), plane) for output in range(self.outputs)]

    def add(
        self, totals: Sequence[Any], codes: Sequence[Any], activations: Any, plane: int
    ) -> dict[int, Any]:
        changed = {}
        for output, code in enumerate(codes):
            i = 3 * output + plane % 3
            changed[i] = self.products(totals[i], T.reinterpret("int8x16", code), activations)
        return changed

    def sums(self, totals: Sequence[Any]) -> Any:
        parts = []
        for output in range(self.outputs):
            plain, by_4, by_16 = (self.pairs(t) for t in totals[3 * output : 3 * output + 3])
            by_4 = T.shift_right(by_4, broadcast(T.int32(2), 4))
            by_16 = T.shift_right(by_16, broadcast(T.int32(4), 4))
            parts.append(let(plain + by_4 + by_16, 4, "int32"))
        return self.total(parts)


@dataclass(frozen=True)
class LongV7(Long):
    """`Long` in the instructions of ARMv7-A."""

    def products(self, total: Any, codes: Any, activations: Any) -> Any:
        for lanes in (LOW, HIGH):
            halves = (T.Shuffle([value], list(lanes)) for value in (codes, activations))
            total = total + llvm("int16x8", "llvm.arm.neon.vmulls.v8i16", *halves)
        return total

    def pairs(self, total: Any) -> Any:
        return llvm("int32x4", "llvm.arm.neon.vpaddls.v4i32.v8i16", total)

    def total(self, parts: Sequence[Any]) -> Any:
        def add(left: Any, right: Any, some: list[int], others: list[int]) -> Any:
            halves = (T.Shuffle([left, right], lanes) for lanes in (some, others))
            return let(next(halves) + next(halves), 4, "int32")

        # Neighbours of a transposed pair, then the halves that are left.
        a, b, c, d = parts
        neighbours = [0, 4, 2, 6], [1, 5, 3, 7]
        return add(add(a, b, *neighbours), add(c, d, *neighbours), [0, 1, 4, 5], [2, 3, 6, 7])


@dataclass(frozen=True)
class Sdot(Dot):
    """sdot: four outputs by four values of k into int32.

    Codes are not shifted, as in `LongInPlace`: int32 holds 2**31 / (2 * 16 * 127) products of
    plane 2.
    """

    outputs: int = 4
    depth: int = 4
    registers: int = 3
    lanes: int = 4
    dtype: str = "int32"
    block: int = 1 << 18

    def codes(self, read: Read, plane: int) -> Sequence[Any]:
        return [in_place(read(0, 16), plane)]

    def activations(self, load: Load, first: Any, plane: int) -> Any:
        # All of the step's values are loaded, and a word of them is the operand: sdot by element.
        words = T.reinterpret("int32x4", load(first, 16))
        return T.reinterpret("int8x16", T.Shuffle([words], [plane] * 4))

    def add(
        self, totals: Sequence[Any], codes: Sequence[Any], activations: Any, plane: int
    ) -> dict[int, Any]:
        i = plane % self.registers
        products = llvm(
            "int32x4",
            "llvm.aarch64.neon.sdot.v4i32.v16i8",
            totals[i],
            T.reinterpret("int8x16", codes[0]),
            activations,
        )
        return {i: products}

    def sums(self, totals: Sequence[Any]) -> Any:
        by_4 = T.shift_right(totals[1], broadcast(T.int32(2), 4))
        by_16 = T.shift_right(totals[2], broadcast(T.int32(4), 4))
        return totals[0] + by_4 + by_16


@dataclass(frozen=True)
class SdotPanel(Sdot):
    """sdot by weights -1, 0 and 1 of a panel."""

    registers: int = 1
    block: int = 1 << 20
    offset: int = 0
    stored: str = "i8"

    def codes(self, read: Read, plane: int) -> Sequence[Any]:
        return [signed(read(0, 16), plane)]

    def sums(self, totals: Sequence[Any]) -> Any:
        return totals[0]


@dataclass(frozen=True)
class NeonFloats(FloatWeights):
    """Sixteen outputs of one k a plane, as four vectors of floats."""

    outputs: int = 16
    depth: int = 1
    width: int = 4

    def floats(self, read: Read, k: int) -> Sequence[Any]:
        weights = let(signed(read(0, 16), k), 16, "int8")
        parts = Registers(4, 4)
        for i in range(4):
            four = T.Shuffle([weights], list(range(4 * i, 4 * i + 4)))
            parts[i] = cast("float32", four, 4)
        return [parts[i] for i in range(4)]


def sums_of_8(table: Any, numbers: Any) -> Any:
    """tbl, of 8 bytes: the Cortex-A57 and A72 do it in a third of the time of 16."""
    return llvm("int8x8", "llvm.aarch64.neon.tbl1.v8i8", table, T.reinterpret("int8x8", numbers))


def sums_of_16(table: Any, numbers: Any) -> Any:
    """tbl, of 16 bytes."""
    numbers = T.reinterpret("int8x16", numbers)
    return llvm("int8x16", "llvm.aarch64.neon.tbl1.v16i8", table, numbers)


LONG_TERNARY = Ternary(
    LongInPlace(),
    Long(),
    NeonFloats(),
    # Half of what one row takes is numbers and sums, which are 16 at a time.
    one_row_tables=Tables(64, 16, sums_of_16, rows=1, rate=10),
    tables=Tables(32, 8, sums_of_8, rows=4, rate=14),
    one_row=(1, 1),
    few_rows=(2, 1),
    many_rows=(4, 1),
    panel_rows=3,
    tiles=((4, 1), (3, 1), (5, 1), (2, 2)),
    vectors=(1,),
)
# Sixteen registers hold no more sums than those of weights -1, 0 and 1.
V7_TERNARY = Ternary(
    LongV7(),
    LongV7(),
    NeonFloats(),
    one_row=(1, 1),
    few_rows=(2, 1),
    many_rows=(2, 1),
    panel_rows=3,
    tiles=((2, 1), (3, 1), (1, 2)),
    vectors=(1,),
)
SDOT_TERNARY = Ternary(
    Sdot(),
    SdotPanel(),
    NeonFloats(),
    one_row=(1, 4),
    few_rows=(2, 4),
    many_rows=(8, 2),
    tiles=((8, 2), (6, 2), (4, 4), (5, 4)),
    vectors=(1, 2, 4),
)


@dataclass(frozen=True)
class Neon(Lanes):
    """NEON of AArch64 without dot products: 32 registers of four floats."""

    name: str = "neon"
    float_lanes: int = 4
    unroll_k: int = 4
    tile_rows: int = 5
    tile_vectors: int = 4
    gemv_vectors: int = 8
    ternary: Ternary = LONG_TERNARY

    def activation(self, load: Load, first: Any, offset: int) -> Any:
        # All values of the turn are loaded, and one is the operand: fmla by element.
        return T.Shuffle([load(first, 4)], [offset] * 4)

    def absolute(self, value: Any) -> Any:
        return T.fabs(value)

    def maximum(self, left: Any, right: Any) -> Any:
        if dtype_of(left) != "float32x4":
            return super().maximum(left, right)
        return llvm("float32x4", "llvm.aarch64.neon.fmax.v4f32", left, right)

    def minimum(self, left: Any, right: Any) -> Any:
        if dtype_of(left) != "float32x4":
            return super().minimum(left, right)
        return llvm("float32x4", "llvm.aarch64.neon.fmin.v4f32", left, right)

    def round_to_int32(self, value: Any) -> Any:
        return llvm("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", value)

    def round(self, value: Any) -> Any:
        return T.nearbyint(value)


@dataclass(frozen=True)
class NeonDot(Neon):
    """NEON of AArch64 with dot products (ARMv8.2-A): Cortex-A55, A76 and later."""

    name: str = "neon-dotprod"
    ternary: Ternary = SDOT_TERNARY


@dataclass(frozen=True)
class NeonV7(Lanes):
    """NEON of ARMv7-A: sixteen registers of four floats, and no instruction that rounds."""

    name: str = "neon-v7"
    float_lanes: int = 4
    unroll_k: int = 4
    # Beside the sums of 4 x 2 vectors there is no room, and LLVM spills: a fifth more instructions.
    tile_rows: int = 3
    tile_vectors: int = 2
    gemv_vectors: int = 8
    ternary: Ternary = V7_TERNARY

    def activation(self, load: Load, first: Any, offset: int) -> Any:
        return T.Shuffle([load(first, 4)], [offset] * 4)

    def absolute(self, value: Any) -> Any:
        return T.fabs(value)
