"""The k largest of each row, for any k: every element is put where its rank says.

The rank counts the elements that come before: larger ones, and equal ones with a smaller index.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import COMPUTED, parameters, plain
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tir import Registers, T, function, let, store
from .top_k import key_kind, key_of


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """The keys of one row, and its elements' numbers in order."""
    (x,) = spec.operands
    size = x.shape[-1]
    keys = "i64" if key_kind(x.dtype) == "int64" else "i32"
    return Tensor(keys, (size,)), Tensor("i32", (size,))


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    (x,), k = spec.operands, spec.attribute("k")
    size, kind = x.shape[-1], key_kind(x.dtype)
    one, zero = T.int32(1), T.int32(0)
    keys_type, order_type = scratch(spec, lanes)
    types = {**parameters(spec), "keys": keys_type, "order": order_type}
    with function(name, types) as f, T.serial(prod(x.shape[:-1])) as row:
        source, values, indices, keys, order = f.buffers
        with T.serial(size) as i:
            store(keys, key_of(source[row * size + i], x.dtype), i)
        with T.serial(size) as i:
            key = let(keys[i], 1, kind)
            rank = Registers(1, 1, "int32")
            rank[0] = zero
            with T.serial(size) as j:
                other = let(keys[j], 1, kind)
                earlier = T.Select(other == key, T.Select(j < i, one, zero), zero)
                rank[0] = rank[0] + T.Select(other > key, one, earlier)
            store(order, i, rank[0])
        with T.serial(k) as i:
            place = let(order[i], 1, "int32")
            store(values, source[row * size + place], row * k + i)
            store(indices, T.Cast("int64", place), row * k + i)
    return f.result


def supports(spec: Spec, lanes: Lanes) -> bool:
    return plain(spec) and spec.operands[0].dtype in set(COMPUTED) - {"bool"}


def cost(spec: Spec, lanes: Lanes) -> float:
    (x,) = spec.operands
    return 2.0 * prod(x.shape) * x.shape[-1]


KERNEL = Kernel("rank", ("top_k",), supports, build, cost, scratch=scratch)
