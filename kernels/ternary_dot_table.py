"""Products by tables of signed sums, two rows of codes at a time: for chips without vectors.

Weights are ternary, or 8-bit with a few balanced-ternary digits, each of which is a ternary weight:
the tables serve all digits of all outputs. A row without a partner goes with a row of zeros. Sums
of more columns than two of them fit a lane with are added up part by part.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from .elements import held
from .integer import OPERANDS, clipped, once, requantized, wide
from .lanes import Lanes
from .layout import storage
from .layout_table import LARGEST_TRITS, columns_of
from .record import Kernel, Spec, Tensor
from .ternary_table import LARGEST_DEPTH, both_sums, pair_sums
from .tir import Function, T, cast, function, loop, rows_of, store

# Of these many ternary outputs on, larger tables pay for the time that it takes to fill them.
MANY_OUTPUTS = 512
DENSE = "integer_linear", "quantized_linear"
SUMS = "integer_linear", "ternary_dot"


def planes_of(spec: Spec) -> int:
    """How many ternary digits a weight has; 0 where it may have any."""
    return int(spec.attribute("planes")) if spec.op in DENSE else 1


def shape_of(spec: Spec) -> tuple[int, int, int]:
    """Columns a byte, bytes a block, ternary outputs a turn."""
    digits = planes_of(spec)
    # Digits as many as columns a byte make a byte a weight; more would take more than 8 bits do.
    many = spec.operands[1].shape[0] * digits >= MANY_OUTPUTS or digits > 4
    trits = spec.parameter("trits", 5 if many else 4)
    groups = spec.parameter("groups", 4 if many else 8)
    return trits, groups, spec.parameter("unroll", 4)


def layout_of(spec: Spec) -> str:
    trits, groups, _ = shape_of(spec)
    dense = spec.op in DENSE
    return f"planes{planes_of(spec)}x{trits}x{groups}" if dense else f"table{trits}x{groups}"


def supports(spec: Spec, lanes: Lanes) -> bool:
    codes, w, *_ = spec.operands
    return (
        planes_of(spec) > 0
        and all(value > 0 for _, value in spec.parameters)
        and codes.dtype == "i8"
        and codes.layout is None
        and w.layout in (None, layout_of(spec))
        and 0 not in (*codes.shape, *w.shape)
        and _fits(spec, lanes)
    )


def _fits(spec: Spec, lanes: Lanes) -> bool:
    """Whether a byte, a part and the memory of the usual sizes hold what the parameters ask for."""
    trits, groups, _ = shape_of(spec)
    if trits > LARGEST_TRITS or columns_of(trits, groups) > LARGEST_DEPTH:
        return False
    usual = (spec.with_parameters(way) for way in space(spec, lanes))
    return _bytes(spec, lanes) <= max(_bytes(way, lanes) for way in usual)


def _bytes(spec: Spec, lanes: Lanes) -> int:
    return sum(4 * prod(tensor.shape) for tensor in scratch(spec, lanes))


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: layout_of(spec)}


def parts_of(spec: Spec) -> tuple[int, int]:
    """How many blocks of columns there are, and how many of them make one part."""
    trits, groups, _ = shape_of(spec)
    columns, depth = columns_of(trits, groups), spec.operands[1].shape[1]
    blocks = -(-depth // columns)
    if depth <= LARGEST_DEPTH:  # padding adds nothing to a sum
        return blocks, blocks
    parts = -(-blocks // (LARGEST_DEPTH // columns))
    return blocks, -(-blocks // parts)


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """Two rows in one, the tables of a block, a part's sums of both rows; and all their sums."""
    trits, groups, _ = shape_of(spec)
    outputs = spec.operands[1].shape[0]
    blocks, part = parts_of(spec)
    sizes = [part * columns_of(trits, groups), groups * 3**trits, outputs * planes_of(spec)]
    totals = [Tensor("i32", (2, outputs))] if blocks > part else []
    return (*(Tensor("i32", (size,)) for size in sizes), *totals)


def cost(spec: Spec, lanes: Lanes) -> float:
    trits, groups, _ = shape_of(spec)
    outputs, planes = spec.operands[1].shape[0], planes_of(spec)
    pairs = -(-prod(spec.operands[0].shape[:-1]) // 2)
    blocks, _ = parts_of(spec)
    # As counted on RV32: a number in a table, a column, a byte of weights, a sum and its digits.
    tables, looked_up = 2.1 * 3**trits + 8 * trits, 5 * outputs * planes
    return pairs * (blocks * groups * (tables + looked_up) + outputs * (20 + 10 * planes))


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    sizes = (4, 8), (5, 4), (4, 4)  # tables of 5 columns and 8 groups would take 7,776 bytes
    within = [(t, g) for t, g in sizes if planes_of(spec) <= t]
    ways = [{"trits": t, "groups": g, "unroll": u} for t, g in within for u in (2, 4, 8)]
    return ({}, *ways)


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    outputs = spec.operands[1].shape[0] * planes_of(spec)
    return {
        # With fewer columns a byte, weights would take more memory than with any way of `space`.
        "trits": tuple(trits for trits in (4, 5) if planes_of(spec) <= trits),
        "groups": (1, 2, 3, 4, 5, 6, 8, 10, 12),
        "unroll": tuple(turn for turn in (1, 2, 3, 4, 6, 8) if turn <= outputs),
    }


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    return shape_of(spec)


@dataclass(frozen=True)
class _Parts:
    """``count`` parts of ``blocks`` blocks of columns, of which ``columns`` are not padding."""

    start: int
    count: int
    blocks: int
    columns: int


def _parts(spec: Spec) -> list[_Parts]:
    """Whole parts, and what is left of the columns."""
    trits, groups, _ = shape_of(spec)
    width, depth = columns_of(trits, groups), spec.operands[1].shape[1]
    _, part = parts_of(spec)
    whole, rest = divmod(depth, part * width)
    found = [_Parts(0, whole, part, part * width), _Parts(whole * part, 1, -(-rest // width), rest)]
    return [parts for parts in found if parts.count and parts.columns]


class _Product:
    """The statements of one function: what two rows, or one alone, come to."""

    def __init__(self, f: Function, lanes: Lanes, spec: Spec) -> None:
        self._f, self._lanes, self._spec = f, lanes, spec
        self._outputs = spec.operands[1].shape[0]
        names = OPERANDS[spec.op].split()[: len(spec.operands)]
        self._x, self._codes, *others = f.buffers[: len(names)]
        self._others = dict(zip(names[2:], others, strict=True))
        self._y, self._pair, self._table, self._sums, *self._totals = f.buffers[len(names) :]
        self._parts = _parts(spec)
        if not self._totals:
            self._pad(self._parts[0])  # once for all rows

    def rows(self, first: Any, count: int) -> None:
        """All outputs of ``count`` rows, one or two, from row ``first`` on."""
        if not self._totals:
            self._add_part(first, count, self._parts[0], T.int32(0))
            with loop("n", self._outputs) as n:
                totals = [self._bias(n) + total for total in self._both(n)]
                self._finish(totals[:count], first, n)
            return
        (totals,) = self._totals
        with loop("n", self._outputs) as n:
            for row in range(count):
                store(totals, self._bias(n), row, n)
        for parts in self._parts:
            with loop("part", parts.count) as part:
                if parts.count == 1:
                    self._pad(parts)
                self._add_part(first, count, parts, part)
                with loop("n", self._outputs) as n:
                    for row, total in zip(range(count), self._both(n), strict=False):
                        store(totals, totals[row, n] + total, row, n)
        with loop("n", self._outputs) as n:
            self._finish([totals[row, n] for row in range(count)], first, n)

    def _pad(self, parts: _Parts) -> None:
        trits, groups, _ = shape_of(self._spec)
        padding = parts.blocks * columns_of(trits, groups) - parts.columns
        with loop("k", padding) as k:
            store(self._pair, T.int32(0), k + parts.columns)

    def _add_part(self, first: Any, count: int, parts: _Parts, part: Any) -> None:
        """Lanes of sums over one part's columns."""
        block = part * parts.blocks + parts.start
        column = part * parts.columns + self._first_column(parts)
        with loop("k", parts.columns) as k:
            value = cast("int32", self._x[first, column + k], 1)
            if count == 2:
                value = value + cast("int32", self._x[first + 1, column + k], 1) * T.int32(65536)
            store(self._pair, value, k)
        sizes = self._outputs * planes_of(self._spec), parts.blocks
        pair_sums(
            self._pair, self._codes, self._table, self._sums, sizes, *shape_of(self._spec), block
        )

    def _first_column(self, parts: _Parts) -> int:
        trits, groups, _ = shape_of(self._spec)
        return parts.start * columns_of(trits, groups)

    def _both(self, n: Any) -> tuple[Any, Any]:
        """The sums of both rows over a part: digits by their powers of 3, the highest first."""
        planes = planes_of(self._spec)
        low, high = both_sums(self._sums[n * planes + planes - 1])
        for plane in reversed(range(planes - 1)):
            digits = both_sums(self._sums[n * planes + plane])
            low, high = low * 3 + digits[0], high * 3 + digits[1]
        return low, high

    def _bias(self, n: Any) -> Any:
        return self._others["bias"][n] if "bias" in self._others else T.int32(0)

    def _finish(self, totals: Sequence[Any], first: Any, n: Any) -> None:
        """Stores the sums of some rows, or what codes are made of them."""
        if self._spec.op in SUMS:
            for row, total in enumerate(totals):
                store(self._y, total, first + row, n)
            return
        multiplier = self._others["multiplier"]
        by_output = len(self._spec.operands[2 + list(self._others).index("multiplier")].shape) > 0
        factor = once(wide(multiplier[n if by_output else 0]), "factor")
        for row, total in enumerate(totals):
            store(self._y, self._code(total, factor, first + row, n), first + row, n)

    def _code(self, total: Any, factor: Any, row: Any, n: Any) -> Any:
        """What is stored of a sum: looked up, or added to the residual, where there is one."""
        dtype = self._spec.results[0].dtype
        code = requantized(self._f, self._lanes, self._spec, total, factor, dtype)
        if "table" in self._others:
            return self._others["table"][wide(code) + T.int32(128)]
        if "residual" in self._others:
            at = row * self._outputs + n
            return clipped(self._lanes, wide(self._others["residual"][at]) + wide(code), "i16")
        return code


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    codes_type, w_type, *others = spec.operands
    names = OPERANDS[spec.op].split()[: len(spec.operands)]
    rows = prod(codes_type.shape[:-1])
    packed = storage(Tensor(w_type.dtype, w_type.shape, layout_of(spec)))
    held_types = [rows_of(codes_type), packed, *map(held, others)]
    types = dict(zip(names, held_types, strict=True))
    types |= {"y": rows_of(spec.results[0])}
    types |= dict(zip(("pair", "tables", "lanes", "totals"), scratch(spec, lanes), strict=False))
    with function(name, types, spec.open) as f:
        product = _Product(f, lanes, spec)
        if rows >= 2:
            with loop("two", rows // 2) as two:
                product.rows(two * 2, 2)
        if rows % 2:
            product.rows(T.int32(rows - 1), 1)
    return f.result


KERNEL = Kernel(
    "ternary_dot_table",
    ("integer_linear", "quantized_linear", "quantized_ternary", "ternary_dot"),
    supports,
    build,
    cost,
    scratch,
    layouts,
    space,
    knobs,
    plan,
    numbers=("shift",),
    ignored=("bits",),
)
