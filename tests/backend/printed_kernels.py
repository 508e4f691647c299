"""Small kernels that use, between them, all that C is printed from."""

from __future__ import annotations

from typing import Any

from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.quantize_rows import KERNEL as QUANTIZE_ROWS
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_table import build as build_ternary_table
from butterflyc.kernels.tir import Registers, T, cast, function, loop, named, store


def extern(name: str, *arguments: Any) -> Any:
    return T.call_pure_extern("int32", name, *arguments)


def requantize(rows: int = 3, width: int = 10) -> Any:
    """y = table[saturate((x * multiplier) >> 9) + 128], but zeros where a row's sum is negative."""
    parameters = {
        "x": Tensor("i32", (rows, width)),
        "multiplier": Tensor("i16", (rows,)),
        "table": Tensor("i8", (256,)),
        "y": Tensor("i8", (rows, width)),
    }
    with function("requantize", parameters) as f:
        x, multiplier, table, y = f.buffers
        with loop("row", rows) as row:
            total = Registers(1, 1, "int32", "total")
            total[0] = T.int32(0)
            with loop("k", width) as k:
                total[0] = total[0] + x[row, k]
            with T.If(total[0] < 0):
                with T.Then(), loop("k", width) as k:
                    store(y, T.int8(0), row, k)
                with T.Else():
                    scale = named("scale", cast("int32", multiplier[row], 1))
                    with loop("k", width) as k:
                        scaled = named("scaled", (x[row, k] * scale + 256) >> 9)
                        code = cast("int8", T.max(T.min(scaled, 127), -127), 1)
                        store(y, table[cast("int32", code, 1) + 128], row, k)
    return f.result


def dense_pairs(outputs: int = 4, depth: int = 8) -> Any:
    """One row by int8 weights, four columns a word: x holds columns (0, 2) and (1, 3) as halves."""
    words = depth // 4
    parameters = {
        "x": Tensor("i32", (words, 2)),
        "w": Tensor("i32", (outputs, words)),
        "y": Tensor("i32", (outputs,)),
    }
    with function("dense_pairs", parameters) as f:
        x, w, y = f.buffers
        with loop("n", outputs) as n:
            total = Registers(1, 1, "int32", "total")
            total[0] = T.int32(0)
            with loop("k", words) as k:
                four = named("four", w[n, k])
                even = extern("smlad", x[k, 0], extern("sxtb16", four), total[0])
                odd = extern("sxtb16", extern("ror8", four))
                total[0] = extern("smlad", x[k, 1], odd, even)
            store(y, total[0], n)
    return f.result


def first_zero(width: int = 8) -> Any:
    """y[0] is the index of the first 0 in x, or width; y[1] is how many 7s stand before it."""
    with function("first_zero", {"x": Tensor("i8", (width,)), "y": Tensor("i32", (2,))}) as f:
        x, y = f.buffers
        at = Registers(1, 1, "int32", "at")
        at[0] = T.int32(0)
        store(y, T.int32(0), 1)
        with T.While(at[0] < width):
            with T.If(x[at[0]] == T.int8(0)), T.Then():
                T.Break()
            at[0] = at[0] + 1
            with T.If(x[at[0] - 1] != T.int8(7)), T.Then():
                T.Continue()
            store(y, y[1] + 1, 1)
        store(y, at[0], 0)
    return f.result


def moved(width: int = 6) -> Any:
    """y is x with its first element behind the others; z is the bits of x, for numbers below 0."""
    parameters = {
        "x": Tensor("f32", (width,)),
        "y": Tensor("f32", (width,)),
        "z": Tensor("i32", (width,)),
    }
    with function("moved", parameters) as f:
        x, y, z = f.buffers
        size = T.int32(4 * width - 4)
        T.evaluate(T.call_extern("int32", "memcpy", T.address_of(y[0]), T.address_of(x[1]), size))
        store(y, x[0], width - 1)
        with loop("i", width) as i:
            bits = T.reinterpret("int32", x[i])
            negative = T.And(x[i] < T.float32(0), T.Not(x[i] < T.float32(-1e30)))
            store(z, T.if_then_else(negative, bits, T.int32(0)), i)
    return f.result


def quantize_rows(rows: int = 4, width: int = 9) -> Any:
    spec = Spec(
        "quantize_rows",
        (("bits", 8),),
        (Tensor("f32", (rows, width)),),
        (Tensor("i8", (rows, width)), Tensor("f32", (rows, 1))),
    )
    return QUANTIZE_ROWS.build(spec, Lanes(), "quantize_rows")


def choices(kind: str) -> Any:
    """Values and truths of one type, stored as what they are: C must not warn of lost bits."""
    parameters = {"x": Tensor(kind, (8,)), "y": Tensor(kind, (8,)), "b": Tensor("bool", (8,))}
    with function(f"choices_{kind}", parameters) as f:
        x, y, b = f.buffers
        store(y, T.if_then_else(b[0], x[0], x[1]), 0)
        store(y, T.Select(x[2] < x[3], x[2], x[3]), 1)
        store(y, T.Cast(str(y.dtype), b[2]), 2)
        store(b, T.And(x[0] < x[1], b[3]), 2)
        store(b, T.bitwise_and(x[0] < x[1], b[3]), 3)
        store(b, T.Select(b[0], b[1], T.Not(b[2])), 4)
        if kind != "bool":
            store(y, x[0] * x[1] - x[2] - (x[3] + x[5]), 6)
            store(y, T.max(x[0], T.min(x[1], x[2])), 7)
    return f.result


def every_kernel() -> list[Any]:
    """All of them, and the ternary table."""
    table = build_ternary_table(7, 50, "ternary_table")
    types = [choices(kind) for kind in ("bool", "i8", "u8", "i16", "i64", "f64")]
    return [requantize(), dense_pairs(), first_zero(), moved(), quantize_rows(), table, *types]
