"""``quantize_rows``: each row as int8 codes of its own scale, rounded as the interpreter does.

scale = max|x| / most and code = round(x * (most / max|x|)), ties to even, where most is 127 of
codes of 8 bits, and 63 of 7.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec
from .tir import (
    Registers,
    T,
    broadcast,
    cast,
    constant,
    each_vector,
    function,
    let,
    load_lanes,
    reduce_lanes,
    reduce_vectors,
    rows_of,
    span,
    store,
    store_lanes,
)

# Vectors that the search for the largest magnitude takes side by side.
CHAINS = 4


def largest_code(bits: int) -> int:
    """The largest magnitude of codes of so many bits."""
    return 2 ** (bits - 1) - 1


def codes_of(lanes: Lanes, value: Any, inverse: Any, most: int) -> Any:
    """int8 codes of a vector of floats, given the largest code ``most`` and most / max|x|."""
    width = lanes.float_lanes
    scaled = let(value * broadcast(inverse, width), width)
    # A row of denormals has an infinite inverse: limit before rounding, which is the same.
    limited = lanes.maximum(
        let(lanes.minimum(scaled, constant(most, width)), width),
        constant(-most, width),
    )
    return cast("int8", lanes.round_to_int32(let(limited, width)), width)


def inverse_of(largest: Any, most: int) -> Any:
    """most / max|x|, or 0 for a row of zeros."""
    return T.Select(largest > T.float32(0), T.float32(most) / largest, T.float32(0))


def scale_of(largest: Any, most: int) -> Any:
    """The row's scale, for max|x| of the row."""
    # A float32 constant, as in the meaning: x / most would round differently.
    return largest * (T.float32(1 / most))


def quantize_row(
    lanes: Lanes,
    width: int,
    read: Callable[[Any, int], Any],
    write: Callable[[Any, Any, int], None],
    largest: Any,
    most: int,
) -> None:
    """Write the codes, of at most ``most``, of one row of ``width`` floats of at most ``largest``.

    That is the largest magnitude in the row.
    """
    inverse = let(inverse_of(largest, most), 1)
    for start, valid in each_vector(width, lanes.float_lanes):
        value = load_lanes(read, start, valid, lanes.float_lanes, T.float32(0))
        codes = codes_of(lanes, value, inverse, most)
        store_lanes(write, codes, start, valid, lanes.float_lanes, "int8")


def largest_magnitude(lanes: Lanes, width: int, read: Callable[[Any, int], Any]) -> Any:
    """max|x| of one row of ``width`` floats, named."""
    vector = lanes.float_lanes
    # Each chain waits for its last comparison, so there are several.
    chains = min(CHAINS, max(width // vector, 1))
    largest = Registers(chains, vector)
    for chain in range(chains):
        largest[chain] = constant(0, vector)
    for start, valid in each_vector(width, chains * vector):
        for chain in range(-(-valid // vector)):
            there = min(valid - chain * vector, vector)
            value = load_lanes(read, start + chain * vector, there, vector, T.float32(0))
            size = let(lanes.absolute(value), vector)
            largest[chain] = lanes.maximum(largest[chain], size)
    of_all = reduce_vectors([largest[chain] for chain in range(chains)], lanes.maximum)
    return let(reduce_lanes(let(of_all, vector), vector, lanes.maximum), 1)


def supports(spec: Spec, lanes: Lanes) -> bool:
    (x,) = spec.operands
    return spec.op == "quantize_rows" and x.dtype == "f32" and prod(x.shape) > 0


def cost(spec: Spec, lanes: Lanes) -> float:
    return 2 * prod(spec.operands[0].shape) / lanes.float_lanes


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, codes_type, scale_type = map(rows_of, (*spec.operands, *spec.results))
    rows, width = x_type.shape
    most = largest_code(spec.attribute("bits"))
    with function(name, {"x": x_type, "codes": codes_type, "scale": scale_type}) as f:
        x, codes, scale = f.buffers
        with T.serial(rows) as row:

            def read(i: Any, n: int) -> Any:
                return x[row, span(i, n)]

            def write(value: Any, i: Any, n: int) -> None:
                store(codes, value, row, span(i, n))

            largest = largest_magnitude(lanes, width, read)
            store(scale, scale_of(largest, most), row, 0)
            quantize_row(lanes, width, read, write, largest, most)
    return f.result


KERNEL = Kernel("quantize_rows", ("quantize_rows",), supports, build, cost)
