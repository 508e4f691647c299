"""Random integer expressions: printed C, under the sanitizers, computes what NumPy does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from butterflyc.kernels.record import Tensor
from butterflyc.kernels.tir import T, function, loop, named, store

from .printed import Array, run_printed

ROWS = 257
# Each column's dtype in TIR and in NumPy, its least value, and the first that is too large.
COLUMNS = {
    "a": ("i8", np.int8, -128, 128),
    "b": ("i8", np.int8, -128, 128),
    "c": ("i16", np.int16, -32768, 32768),
    "d": ("u8", np.uint8, 0, 256),
    "e": ("i32", np.int32, -1000, 1000),
}
# Random expressions compare a byte with -9, or with its own complement, and gcc says so.
SILLY_COMPARISONS = ("-Wno-type-limits", "-Wno-sign-compare")
NARROW = ("int8", "uint8", "int16", "uint16")
# What a tree of sums and products of two such values stays below, in whatever order.
LIMIT = 2**28

# A value of a tree: its TIR expression in int32, and its NumPy value in int64.
Value = tuple[Any, Array]


def cut(value: Array, dtype: str) -> Array:
    return value.astype(dtype).astype(np.int64)


class Trees:
    """Random trees over the columns of one row; the same seed gives the same tree."""

    def __init__(self, seed: int, arrays: dict[str, Array], loads: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.arrays = arrays
        self.loads = loads
        self.makers = [
            *(self.add, self.subtract, self.multiply) * 2,
            *(self.shift_left, self.shift_right, self.bits, self.extremum, self.choose),
            *(self.narrow, self.narrow_arithmetic, self.divide, self.look_up, self.name),
            self.logic,
        ]

    def tree(self, depth: int) -> Value:
        """A tree of this depth; its left operand is as deep as can be."""
        if depth == 0:
            name = self.random.choice(list(COLUMNS))
            return T.Cast("int32", self.loads[name]), self.arrays[name].astype(np.int64)
        left, right = self.tree(depth - 1), self.tree(self.random.randrange(depth))
        for _ in range(4):
            made = self.random.choice(self.makers)(left, right)
            if np.abs(made[1]).max() < LIMIT:
                return made
        return left

    def add(self, left: Value, right: Value) -> Value:
        return left[0] + right[0], left[1] + right[1]

    def subtract(self, left: Value, right: Value) -> Value:
        return left[0] - right[0], left[1] - right[1]

    def multiply(self, left: Value, right: Value) -> Value:
        return left[0] * right[0], left[1] * right[1]

    def shift_left(self, left: Value, right: Value) -> Value:
        by = self.random.randrange(1, 4)
        return left[0] << by, left[1] << by

    def shift_right(self, left: Value, right: Value) -> Value:
        by = self.random.randrange(1, 9)
        return left[0] >> by, left[1] >> by

    def bits(self, left: Value, right: Value) -> Value:
        kind = self.random.randrange(4)
        if kind == 0:
            return left[0] & right[0], left[1] & right[1]
        if kind == 1:
            return left[0] | right[0], left[1] | right[1]
        if kind == 2:
            return left[0] ^ right[0], left[1] ^ right[1]
        return T.bitwise_not(left[0]), ~left[1]

    def extremum(self, left: Value, right: Value) -> Value:
        if self.random.random() < 0.5:
            return T.max(left[0], right[0]), np.maximum(left[1], right[1])
        return T.min(left[0], right[0]), np.minimum(left[1], right[1])

    def choose(self, left: Value, right: Value) -> Value:
        choice = T.Select if self.random.random() < 0.5 else T.if_then_else
        made = choice(left[0] < right[0], left[0], right[0] + 1)
        return made, np.where(left[1] < right[1], left[1], right[1] + 1)

    def narrow(self, left: Value, right: Value) -> Value:
        dtype = self.random.choice(NARROW)
        value, array = self.unknown(left)
        return T.Cast("int32", T.Cast(dtype, value)), cut(array, dtype)

    def narrow_arithmetic(self, left: Value, right: Value) -> Value:
        """8- and 16-bit types wrap."""
        dtype = self.random.choice(NARROW)
        (left_value, left_array), (right_value, right_array) = map(self.unknown, (left, right))
        a, b = T.Cast(dtype, left_value), T.Cast(dtype, right_value)
        x, y = cut(left_array, dtype), cut(right_array, dtype)
        two, three = (getattr(T, dtype)(n) for n in (2, 3))
        made, value = self.random.choice(
            [
                (a * a - b, x * x - y),
                (a * b - a, x * y - x),
                (T.max(a, b) << three, np.maximum(x, y) << 3),
                (T.min(a, b) ^ (a >> two), np.minimum(x, y) ^ (x >> 2)),
            ]
        )
        return T.Cast("int32", made), cut(value, dtype)

    def unknown(self, value: Value) -> Value:
        """A value of which TVM knows no range.

        Of one that it knows a range of, it believes that a cast to a narrower type keeps it there.
        """
        return self.look_up(value, value)

    def divide(self, left: Value, right: Value) -> Value:
        by = self.random.choice([2, 3, 7, 8])
        towards_zero = np.sign(left[1]) * (np.abs(left[1]) // by)
        kind = self.random.randrange(4)
        if kind == 0:
            return T.floordiv(left[0], by), left[1] // by
        if kind == 1:
            return T.floormod(left[0], by), left[1] % by
        if kind == 2:
            return T.truncdiv(left[0], by), towards_zero
        return T.truncmod(left[0], by), left[1] - by * towards_zero

    def look_up(self, left: Value, right: Value) -> Value:
        """A table's middle, indexed by a byte: an index that has a pointer of its own in C."""
        low, array = left[0] & 255, left[1] & 255
        dtype, less, offset = self.random.choice(
            [("int8", 128, 128), ("uint8", 0, 0), ("uint8", 0, 99)]
        )
        index = T.Cast("int32", T.Cast(dtype, low - less)) + offset
        table = self.arrays["table"].astype(np.int64)
        return self.loads["table"][index], table[array - less + offset]

    def name(self, left: Value, right: Value) -> Value:
        """A value that is computed once."""
        value = named("value", left[0])
        return value - (value >> 3), left[1] - (left[1] >> 3)

    def logic(self, left: Value, right: Value) -> Value:
        """Comparisons joined, kept as bool, and counted."""
        (a, x), (b, y) = left, right
        less, both = a < b, T.And(a >= -9, T.Not(b == 3))
        made = T.Cast("int32", T.Or(less, both)) + T.Cast("int32", T.Cast("bool", a & 4))
        value = ((x < y) | ((x >= -9) & ~(y == 3))).astype(np.int64) + ((x & 4) != 0)
        return made, value


def random_function(seed: int, name: str) -> tuple[Any, list[Array], Array]:
    """A kernel of one random tree, its inputs, and what NumPy makes of them."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {
        key: rng.integers(low, high, ROWS).astype(dtype)
        for key, (_, dtype, low, high) in COLUMNS.items()
    }
    arrays["table"] = rng.integers(-500, 500, 355).astype(np.int32)
    parameters = {key: Tensor(kind, (ROWS,)) for key, (kind, *_) in COLUMNS.items()}
    parameters |= {"table": Tensor("i32", (355,)), "y": Tensor("i32", (ROWS,))}
    with function(name, parameters) as f:
        buffers = dict(zip(parameters, f.buffers, strict=True))
        with loop("row", ROWS) as row:
            loads = {key: buffers[key][row] for key in COLUMNS} | {"table": buffers["table"]}
            trees = Trees(seed, arrays, loads)
            made, value = trees.tree(trees.random.randrange(2, 8))
            store(buffers["y"], made, row)
    return f.result, list(arrays.values()), value


def check(seeds: range, gcc: str, folder: Path) -> None:
    made = {seed: random_function(seed, f"f{seed}") for seed in seeds}
    calls = [
        (f"f{seed}", [*inputs, np.zeros(ROWS, np.int32)]) for seed, (_, inputs, _) in made.items()
    ]
    functions = [f for f, _, _ in made.values()]
    results = run_printed(folder, gcc, functions, calls, SILLY_COMPARISONS)
    for (seed, (f, _, wanted)), after in zip(made.items(), results, strict=True):
        np.testing.assert_array_equal(after[-1], wanted, err_msg=f"seed {seed}\n{f.script()}")


def test_random_expressions(needs_tool: Callable[..., str], tmp_path: Path) -> None:
    """150 random functions give NumPy's values, without a warning, an overflow or a stray read."""
    check(range(150), needs_tool("gcc"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 6))
def test_more_random_expressions(
    needs_tool: Callable[..., str], tmp_path: Path, block: int
) -> None:
    """So do 1500 more."""
    check(range(300 * block, 300 * block + 300), needs_tool("gcc"), tmp_path)


def test_narrow_types_wrap_at_their_bounds(needs_tool: Callable[..., str], tmp_path: Path) -> None:
    """Sums, products, shifts and complements of 8- and 16-bit extremes wrap, and are defined C."""
    kinds = {"i8": np.int8, "u8": np.uint8, "i16": np.int16}
    functions, calls, wanted = [], [], []
    for kind, dtype in kinds.items():
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        x, y = (a.ravel() for a in np.meshgrid(*2 * [np.array([low, 0, 1, high], dtype)]))
        parameters = {"x": Tensor(kind, (16,)), "y": Tensor(kind, (16,))}
        with function(kind, parameters | {"z": Tensor("i32", (6, 16))}) as f:
            a, b, z = f.buffers
            with loop("i", 16) as i:
                # u16 is no type of a tensor, but kernels may compute in it.
                word, mask = T.Cast("uint16", a[i]), T.Cast("uint16", b[i])
                results = [a[i] + b[i], a[i] - b[i], a[i] * b[i], T.bitwise_not(a[i])]
                results += [word * mask, mask << T.uint16(15)]
                for row, result in enumerate(results):
                    store(z, T.Cast("int32", result), row, i)
        functions.append(f.result)
        calls.append((kind, [x, y, np.zeros((6, 16), np.int32)]))
        word, mask = x.astype(np.uint16), y.astype(np.uint16)
        rows = [x + y, x - y, x * y, ~x, word * mask, mask << np.uint16(15)]
        wanted.append(np.array([row.astype(np.int32) for row in rows]))
    results = run_printed(tmp_path, needs_tool("gcc"), functions, calls)
    for after, expected in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(after[-1], expected)
