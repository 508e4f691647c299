"""The k largest of each row, largest first, by insertion: k is small."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import COMPUTED, is_nan, number, parameters, plain
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import Registers, T, function, let, store

LARGEST_K = 8
# Below every key: what a slot holds before it is filled.
EMPTY = {"int32": -(2**31), "int64": -(2**63)}


def key_kind(dtype: str) -> str:
    return "int64" if dtype in ("i32", "i64") else "int32"


def key_of(value: Any, dtype: str) -> Any:
    """An integer in the order of the values: both zeros equal, NaN before every number."""
    if dtype != "f32":
        return T.Cast(key_kind(dtype), value)
    value = let(value, 1)
    # A negative float's bits fall as it rises: all but the sign are turned over.
    bits = let(T.reinterpret("int32", value), 1, "int32")
    turned = T.bitwise_and(T.shift_right(bits, T.int32(31)), T.int32(0x7FFFFFFF))
    ordered = T.Select(value == T.float32(0), T.int32(0), T.bitwise_xor(bits, turned))
    return T.Select(is_nan(value, 1), T.int32(EMPTY["int32"] + 1), ordered)


def insert(keys: Registers, places: Registers, k: int, key: Any, place: Any) -> None:
    """Put ``key``, a name, behind those that are not smaller; what it beats moves down by one."""
    one, zero = T.int32(1), T.int32(0)
    wins = [let(T.Select(key > keys[i], one, zero), 1, "int32") for i in range(k)]
    for i in reversed(range(1, k)):
        for held, new in ((keys, key), (places, place)):
            moved = T.Select(wins[i - 1] > zero, held[i - 1], new)
            held[i] = T.Select(wins[i] > zero, moved, held[i])
    keys[0] = T.Select(wins[0] > zero, key, keys[0])
    places[0] = T.Select(wins[0] > zero, place, places[0])


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    (x,), k = spec.operands, spec.attribute("k")
    size, kind = x.shape[-1], key_kind(x.dtype)
    with function(name, parameters(spec)) as f, T.serial(prod(x.shape[:-1])) as row:
        source, values, indices = f.buffers
        keys, places = Registers(k, 1, kind), Registers(k, 1, "int32")
        for i in range(k):
            keys[i], places[i] = number(kind, EMPTY[kind], 1), T.int32(0)
        with T.serial(size) as i:
            insert(keys, places, k, let(key_of(source[row * size + i], x.dtype), 1, kind), i)
        for i in range(k):
            store(values, source[row * size + places[i]], row * k + i)
            store(indices, T.Cast("int64", places[i]), row * k + i)
    return f.result


def supports(spec: Spec, lanes: Lanes) -> bool:
    numbers = set(COMPUTED) - {"bool"}
    return plain(spec) and spec.operands[0].dtype in numbers and spec.attribute("k") <= LARGEST_K


def cost(spec: Spec, lanes: Lanes) -> float:
    return 3.0 * spec.attribute("k") * prod(spec.operands[0].shape)


KERNEL = Kernel(name="top_k", ops=("top_k",), supports=supports, build=build, cost=cost)
