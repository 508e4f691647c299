"""``integer_softmax`` and ``integer_attention``: powers of two from a table of one octave."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from .integer import bit_length, buffers, clipped, is_plain, number, once, rounded_shift, wide
from .integer_numbers import INVERSE_BITS, MEAN_BITS, OCTAVE, UNIT_BITS
from .integer_pairs import WORD, Pairs, spread_rows
from .integer_products import Tile
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tir import Function, Registers, T, function, loop, row_blocks, store

TILE = 4  # sums that are kept in registers


def exp2(f: Function, spec: Spec, octave: Any, below: Any) -> Any:
    """2**(ONE_BITS - t / OCTAVE), t the steps that a score is below the largest."""
    near = T.min(below, f.number(spec, "cap"))
    scaled = near * f.number(spec, "multiplier")
    steps = once(rounded_shift(scaled, f.number(spec, "shift")), "steps")
    whole = T.shift_right(steps, T.int32(OCTAVE.bit_length() - 1))
    return T.shift_right(wide(octave[T.bitwise_and(steps, T.int32(OCTAVE - 1))]), whole)


def softmax(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type = spec.operands[0]
    size = x_type.shape[-1]
    with function(name, {**buffers(spec), **_scratch(spec, lanes)}, spec.open) as f:
        x, octave, y, powers = f.buffers
        with loop("row", prod(x_type.shape[:-1])) as row:
            largest, total = number("largest", wide(x[row * size])), number("total")
            with loop("i", size) as i:
                largest[0] = T.max(largest[0], wide(x[row * size + i]))
            with loop("i", size) as i:
                power = once(exp2(f, spec, octave, largest[0] - wide(x[row * size + i])), "power")
                store(powers, power, i)
                total[0] = total[0] + power
            half = once(T.shift_right(total[0], T.int32(1)), "half")
            with loop("i", size) as i:
                share = powers[i] * T.int32(1 << UNIT_BITS) + half
                store(y, clipped(lanes, T.truncdiv(share, total[0]), "i16"), row * size + i)
    return f.result


def attention(spec: Spec, lanes: Lanes, name: str) -> Any:
    q_type, k_type, v_type, _ = spec.operands
    batch, heads, queries, inner = q_type.shape
    keys, width = k_type.shape[2], v_type.shape[3]
    causal = spec.attribute("causal")
    with function(name, {**buffers(spec), **_scratch(spec, lanes)}, spec.open) as f:
        q, k, v, octave, y, powers, *spread = f.buffers
        form = (Pairs if spread else Tile)(q, k, inner, spread)
        with loop("head", batch * heads) as head, loop("query", queries) as query:
            largest, total = number("largest", -(2**30)), number("total")
            count = query + 1 if causal else T.int32(keys)
            row = head * queries + query
            form.start([row * inner])

            def score(key: Any, several: int) -> None:
                """The scores of a few keys at once: each code of the query is loaded once."""
                first = head * keys + key
                sums = Registers(several, 1, "int32", "scores")
                for n in range(several):
                    sums[n] = T.int32(0)
                form.add(sums, [row * inner], [(first + n) * inner for n in range(several)])
                for n in range(several):
                    store(powers, sums[n], key + n)
                    largest[0] = T.max(largest[0], sums[n])

            for first, turns, several in [(0, count, 1)] if causal else row_blocks(keys, TILE):
                with loop("turn", turns) as turn:
                    score(first + turn * several, several)
            with loop("key", count) as key:
                power = once(exp2(f, spec, octave, largest[0] - powers[key]), "power")
                store(powers, power, key)
                total[0] = total[0] + power
            drop = once(bit_length(total[0]) - T.int32(UNIT_BITS), "drop")
            highest = T.shift_right(total[0], drop)
            inverse = once(T.truncdiv(T.int32(1 << INVERSE_BITS), highest), "inverse")
            lower = once(drop + T.int32(6), "lower")

            def mix(channel: Any, several: int) -> None:
                """A few channels of the weighed values: each power is loaded once."""
                start = head * keys * width + channel
                sums = _sums(
                    several,
                    count,
                    lambda key: powers[key],
                    lambda key, n: wide(v[start + key * width + n]),
                )
                for n in range(several):
                    mean = once(rounded_shift(sums[n], lower) * inverse, "mean")
                    code = clipped(lanes, rounded_shift(mean, MEAN_BITS), "i8")
                    store(y, code, row * width + channel + n)

            for first, turns, several in row_blocks(width, TILE):
                with loop("turn", turns) as turn:
                    mix(first + turn * several, several)
    return f.result


def _sums(
    several: int, depth: Any, left: Callable[[Any], Any], right: Callable[[Any, int], Any]
) -> Registers:
    """The sums over i of left(i) * right(i, n), for each n of ``several``."""
    sums = Registers(several, 1, "int32", "sums")
    for n in range(several):
        sums[n] = T.int32(0)
    with loop("i", depth) as i:
        value = once(left(i), "value")
        for n in range(several):
            sums[n] = sums[n] + value * right(i, n)
    return sums


def _scratch(spec: Spec, lanes: Lanes) -> dict[str, Tensor]:
    """The powers of a row; and where pairs are multiplied, a query spread for that."""
    x, *others = spec.operands
    if spec.op == "integer_softmax":
        return {"powers": Tensor("i32", x.shape[-1:])}
    found = {"powers": Tensor("i32", others[0].shape[2:3])}
    if lanes.pairs and x.shape[-1] >= WORD:
        found["spread"] = spread_rows(1, x.shape[-1])
    return found


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    return tuple(_scratch(spec, lanes).values())


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    return (softmax if spec.op == "integer_softmax" else attention)(spec, lanes, name)


def cost(spec: Spec, lanes: Lanes) -> float:
    return 20.0 * prod(spec.results[0].shape)


KERNEL = Kernel(
    "integer_softmax",
    ("integer_softmax", "integer_attention"),
    lambda spec, lanes: is_plain(spec),
    build,
    cost,
    scratch,
    numbers=("multiplier", "cap", "shift"),
)
