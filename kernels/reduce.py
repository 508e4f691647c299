"""Reductions over any axes, and argmax over one.

A row that lies along the reduced axis runs in several vectors whose lanes are combined last; where
the innermost axis is kept, its vectors of results are reduced side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from .elements import (
    COMPUTED,
    Strides,
    chunks,
    is_nan,
    merge,
    nest,
    number,
    offset,
    parameters,
    plain,
    row_major,
    widened,
    write,
)
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import Registers, T, function, let, row_blocks, span

# Independent chains of additions: the latency of one is hidden by the others.
CHAINS = 4
# A float sum adds up blocks of so many values a chain, so that its error does not grow with n.
BLOCK = 128


@dataclass(frozen=True)
class Axes:
    """Merged axes of x: sizes, strides in x, strides in the result (kept axes only)."""

    sizes: tuple[int, ...] = ()
    steps: Strides = ()
    to: Strides = ()


@dataclass(frozen=True)
class Reduction:
    """How elements of ``dtype`` are combined in ``kind``, ``count`` of them a result.

    A sum starts at 0, the others at the first value, which they may see again.
    """

    op: str
    dtype: str
    count: int

    @property
    def kind(self) -> str:
        # The mean of integers is that of their exact sum, cut towards zero.
        exact = self.op == "mean" and self.dtype not in ("f32", "bool")
        return "int64" if exact else COMPUTED[self.dtype]

    @property
    def adds(self) -> bool:
        return self.op in ("sum", "mean")

    def load(self, x: Any, start: Any, lanes: int) -> Any:
        return let(widened(x[span(start, lanes)], self.dtype, lanes, self.kind), lanes, self.kind)

    def first(self, x: Any, start: Any, lanes: int) -> Any:
        return number(self.kind, 0, lanes) if self.adds else self.load(x, start, lanes)

    def combine(self, a: Any, b: Any, lanes: int) -> Any:
        """Of two values that are names."""
        if self.adds:
            return a + b
        chosen = T.Select(a > b, a, b) if self.op == "max" else T.Select(a < b, a, b)
        return T.Select(is_nan(a, lanes), a, chosen) if self.kind == "float32" else chosen

    def of_lanes(self, vector: Any, lanes: int) -> Any:
        """One value, a name, out of a vector that is a name."""
        while lanes > 1:
            lanes //= 2
            low = let(T.Shuffle([vector], list(range(lanes))), lanes, self.kind)
            high = let(T.Shuffle([vector], list(range(lanes, 2 * lanes))), lanes, self.kind)
            vector = let(self.combine(low, high, lanes), lanes, self.kind)
        return vector

    def finish(self, value: Any, lanes: int) -> Any:
        if self.dtype == "bool" and self.adds:
            one, zero = number(self.kind, 1, lanes), number(self.kind, 0, lanes)
            return T.Select(value == zero, zero, one)
        if self.op != "mean":
            return value
        count = number(self.kind, self.count, lanes)
        return value / count if self.dtype == "f32" else T.truncdiv(value, count)

    def in_blocks(
        self, count: int, totals: Registers, chains: int, visit: Callable[..., None]
    ) -> None:
        """``visit(i, registers)`` for i below ``count``: into ``totals``, or a block's own sums."""
        if not (self.adds and self.dtype == "f32") or count <= BLOCK:
            with T.serial(count) as i:
                visit(i, totals)
            return
        for first, blocks, size in row_blocks(count, BLOCK):
            with T.serial(blocks) as block:
                part = Registers(chains, totals.lanes, self.kind)
                for c in range(chains):
                    part[c] = number(self.kind, 0, totals.lanes)
                with T.serial(size) as i:
                    visit(first + block * size + i, part)
                for c in range(chains):
                    totals[c] = totals[c] + part[c]


def split(spec: Spec) -> tuple[Axes, Axes, bool]:
    """The kept axes, the reduced ones, and whether the innermost is reduced."""
    (x,) = spec.operands
    reduced = {axis % len(x.shape) for axis in spec.attribute("axes")}
    result = row_major([1 if i in reduced else n for i, n in enumerate(x.shape)])
    to = tuple(0 if i in reduced else step for i, step in enumerate(result))
    axes = list(zip(*_columns(x.shape, to), strict=True))
    kept = [axis for axis in axes if axis[2]]
    dropped = [axis for axis in axes if not axis[2]] or [(1, 0, 0)]
    return _axes(kept), _axes(dropped), axes[-1][2] == 0


def _columns(shape: tuple[int, ...], to: Strides) -> tuple[Strides, ...]:
    sizes, steps = merge(shape, row_major(shape), to)
    return (sizes, *steps)


def _axes(axes: list[tuple[int, ...]]) -> Axes:
    return Axes(*zip(*axes, strict=True)) if axes else Axes()


def columns(r: Reduction, kept: Axes, dropped: Axes, x: Any, y: Any, lanes: int) -> None:
    """The innermost axis is kept: vectors of results."""
    run = kept.sizes[-1]
    with nest(kept.sizes[:-1]) as outer:
        begin, to = offset(outer, kept.steps[:-1]), offset(outer, kept.to[:-1])

        def results(start: Any, vectors: int) -> None:
            totals = Registers(vectors, lanes, r.kind)
            for v in range(vectors):
                totals[v] = r.first(x, begin + start + v * lanes, lanes)
            with nest(dropped.sizes[:-1]) as inner:
                at = offset(inner, dropped.steps[:-1], begin + start)

                def visit(i: Any, into: Registers) -> None:
                    for v in range(vectors):
                        value = r.load(x, at + i * dropped.steps[-1] + v * lanes, lanes)
                        into[v] = r.combine(into[v], value, lanes)

                r.in_blocks(dropped.sizes[-1], totals, vectors, visit)
            for v in range(vectors):
                total = r.finish(totals[v], lanes)
                write(y, total, r.dtype, to + start + v * lanes, lanes)

        chunks(run, lanes, CHAINS, results)


def rows(r: Reduction, kept: Axes, dropped: Axes, x: Any, y: Any, lanes: int) -> None:
    """The innermost axis is reduced: one result at a time."""
    run = dropped.sizes[-1]
    chains = min(CHAINS, run // lanes)
    turns = run // (chains * lanes)
    with nest(kept.sizes) as outer:
        begin = offset(outer, kept.steps)
        totals = Registers(chains, lanes, r.kind)
        for c in range(chains):
            totals[c] = r.first(x, begin + c * lanes, lanes)
        tail = Registers(1, 1, r.kind)
        tail[0] = r.first(x, begin, 1)
        with nest(dropped.sizes[:-1]) as inner:
            at = offset(inner, dropped.steps[:-1], begin)

            def visit(i: Any, into: Registers) -> None:
                for c in range(chains):
                    value = r.load(x, at + (i * chains + c) * lanes, lanes)
                    into[c] = r.combine(into[c], value, lanes)

            r.in_blocks(turns, totals, chains, visit)
            done = turns * chains * lanes
            for c in range((run - done) // lanes):
                value = r.load(x, at + done + c * lanes, lanes)
                totals[c] = r.combine(totals[c], value, lanes)
            if run % lanes:
                with T.serial(run % lanes) as i:
                    value = r.load(x, at + (run - run % lanes) + i, 1)
                    tail[0] = r.combine(tail[0], value, 1)
        for c in range(1, chains):
            totals[0] = r.combine(totals[0], totals[c], lanes)
        total = let(r.combine(r.of_lanes(totals[0], lanes), tail[0], 1), 1, r.kind)
        write(y, r.finish(total, 1), r.dtype, offset(outer, kept.to), 1)


def largest(spec: Spec, name: str) -> Any:
    """The first place of the largest value along an axis; the first NaN if there is one."""
    (x,) = spec.operands
    axis = spec.attribute("axis") % len(x.shape)
    size, inner = x.shape[axis], prod(x.shape[axis + 1 :])
    kind = COMPUTED[x.dtype]
    with function(name, parameters(spec)) as f, nest((prod(x.shape[:axis]), inner)) as (o, k):
        source, y = f.buffers
        best, where = Registers(1, 1, kind), Registers(1, 1, "int32")
        best[0] = widened(source[o * (size * inner) + k], x.dtype, 1)
        where[0] = T.int32(0)
        with T.serial(size) as i:
            value = let(widened(source[(o * size + i) * inner + k], x.dtype, 1), 1, kind)
            better = value > best[0]
            if kind == "float32":
                first_nan = T.And(is_nan(value, 1), T.Not(is_nan(best[0], 1)))
                better = T.Or(T.And(better, T.Not(is_nan(best[0], 1))), first_nan)
            flag = let(T.Select(better, T.int32(1), T.int32(0)), 1, "int32")
            best[0] = T.Select(flag > T.int32(0), value, best[0])
            where[0] = T.Select(flag > T.int32(0), i, where[0])
        write(y, T.Cast("int64", where[0]), "i64", o * inner + k, 1)
    return f.result


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    if spec.op == "argmax":
        return largest(spec, name)
    kept, dropped, along_rows = split(spec)
    (x,), (y,) = spec.operands, spec.results
    run = (dropped if along_rows else kept).sizes[-1]
    width = lanes.float_lanes if run >= lanes.float_lanes else 1
    reduction = Reduction(spec.op, x.dtype, prod(x.shape) // prod(y.shape))
    with function(name, parameters(spec)) as f:
        source, target = f.buffers
        (rows if along_rows else columns)(reduction, kept, dropped, source, target, width)
    return f.result


def supports(spec: Spec, lanes: Lanes) -> bool:
    return plain(spec) and spec.operands[0].dtype in COMPUTED


def cost(spec: Spec, lanes: Lanes) -> float:
    return prod(spec.operands[0].shape) / (1 if spec.op == "argmax" else lanes.float_lanes)


KERNEL = Kernel(
    name="reduce",
    ops=("sum", "mean", "max", "min", "argmax"),
    supports=supports,
    build=build,
    cost=cost,
)
