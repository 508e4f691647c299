"""``ternary_dot`` by tables of signed sums, two rows of codes at a time: for chips without vectors.

A row without a partner goes with a row of zeros. ``quantized_ternary`` makes codes of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from .elements import held
from .integer import once, requantized, wide
from .lanes import Lanes
from .layout import storage
from .layout_table import columns_of
from .record import Kernel, Spec, Tensor
from .ternary_table import LARGEST_DEPTH, both_sums, pair_sums
from .tir import Function, T, cast, function, loop, rows_of, store

# Of these many outputs on, larger tables pay for the time that it takes to fill them.
MANY_OUTPUTS = 512


def shape_of(spec: Spec) -> tuple[int, int, int]:
    """Columns a byte, bytes a block, outputs a turn."""
    many = spec.operands[1].shape[0] >= MANY_OUTPUTS
    trits = spec.parameter("trits", 5 if many else 4)
    groups = spec.parameter("groups", 4 if many else 8)
    return trits, groups, spec.parameter("unroll", 4)


def layout_of(spec: Spec) -> str:
    trits, groups, _ = shape_of(spec)
    return f"table{trits}x{groups}"


def supports(spec: Spec, lanes: Lanes) -> bool:
    codes, w, *_ = spec.operands
    return (
        codes.dtype == "i8"
        and codes.layout is None
        and w.layout in (None, layout_of(spec))
        and 0 not in (*codes.shape, *w.shape)
        and w.shape[1] <= LARGEST_DEPTH
    )


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: layout_of(spec)}


def blocks_of(spec: Spec) -> int:
    trits, groups, _ = shape_of(spec)
    return -(-spec.operands[1].shape[1] // columns_of(trits, groups))


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """Two rows in one, the tables of a block, and the sums of both rows."""
    trits, groups, _ = shape_of(spec)
    columns = columns_of(trits, groups) * blocks_of(spec)
    sizes = (columns, groups * 3**trits, spec.operands[1].shape[0])
    return tuple(Tensor("i32", (size,)) for size in sizes)


def cost(spec: Spec, lanes: Lanes) -> float:
    return 0.7 * prod(spec.operands[0].shape) * spec.operands[1].shape[0]


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    sizes = (4, 8), (5, 4), (4, 4)  # tables of 5 columns and 8 groups would take 7,776 bytes
    ways = [{"trits": t, "groups": g, "unroll": u} for t, g in sizes for u in (2, 4, 8)]
    return ({}, *ways)


def _finisher(
    f: Function, lanes: Lanes, spec: Spec, factors: Sequence[Any], output: Any
) -> Callable[[Any], Any]:
    """What makes of a sum what is stored: the sum, or a code."""
    if spec.op == "ternary_dot":
        return lambda total: total
    by_output = len(spec.operands[2].shape) > 0
    multiplier = once(wide(factors[0][output if by_output else 0]))

    def code(total: Any) -> Any:
        made = requantized(f, lanes, spec, total, multiplier, "i8")
        return factors[1][wide(made) + T.int32(128)] if len(factors) > 1 else made

    return code


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    codes_type, w_type, *others = spec.operands
    pair_type, table_type, sums_type = scratch(spec, lanes)
    outputs, depth = w_type.shape
    rows = prod(codes_type.shape[:-1])
    parameters = {
        "x": rows_of(codes_type),
        "codes": storage(Tensor(w_type.dtype, w_type.shape, layout_of(spec))),
        **{f"x{i}": held(tensor) for i, tensor in enumerate(others, 2)},
        "y": rows_of(spec.results[0]),
        "pair": pair_type,
        "table": table_type,
        "lanes": sums_type,
    }
    with function(name, parameters, spec.open) as f:
        x, codes, *factors, y, pair, table, sums = f.buffers
        with loop("k", pair_type.shape[0] - depth) as k:
            store(pair, T.int32(0), k + depth)

        def product(first: Any, both: bool) -> None:
            with loop("k", depth) as k:
                value = cast("int32", x[first, k], 1)
                if both:
                    value = value + cast("int32", x[first + 1, k], 1) * T.int32(65536)
                store(pair, value, k)
            sizes = outputs, blocks_of(spec)
            pair_sums(pair, codes, table, sums, sizes, *shape_of(spec))
            with loop("n", outputs) as n:
                low, high = both_sums(sums[n])
                finished = _finisher(f, lanes, spec, factors, n)
                store(y, finished(low), first, n)
                if both:
                    store(y, finished(high), first + 1, n)

        if rows >= 2:
            with loop("two", rows // 2) as two:
                product(two * 2, both=True)
        if rows % 2:
            product(T.int32(rows - 1), both=False)
    return f.result


KERNEL = Kernel(
    "ternary_dot_table",
    ("ternary_dot", "quantized_ternary"),
    supports,
    build,
    cost,
    scratch,
    layouts,
    space,
    numbers=("shift",),
)
