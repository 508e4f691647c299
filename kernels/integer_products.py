"""Integer mode's products: rows of codes by a matrix, rotations, and the sum over experts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import Any

from .elements import broadcast_strides, nest, offset
from .integer import buffers, clipped, is_plain, once, requantized, rounded_shift, wide
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .take import position
from .tir import Function, Registers, T, block_sizes, function, loop, row_blocks, store


def add_products(
    sums: Registers, x: Any, rows: Sequence[Any], w: Any, outputs: Sequence[Any], depth: int
) -> None:
    """One column after the other: each weight and each code is loaded once."""
    with loop("k", depth) as k:
        codes = [once(wide(x[row + k]), "code") for row in rows]
        for n, output in enumerate(outputs):
            weight = once(wide(w[output + k]), "weight")
            for r, code in enumerate(codes):
                at = r * len(outputs) + n
                sums[at] = sums[at] + code * weight


# Sums of a tile, at most: they lie on the stack where registers do not hold them.
LARGEST_TILE = 256
# Rows and outputs of a tile without parameters.
ROWS, OUTPUTS = 2, 4
LINEAR = "integer_linear", "quantized_linear"

Turn = Callable[[Any, Any, Any, Any, int], list[Any]]


@dataclass(frozen=True)
class Tile:
    """How the sums of a few rows of x and a few rows of w are made, ``depth`` columns long."""

    x: Any
    w: Any
    depth: int
    scratch: Sequence[Any] = ()

    def start(self, rows: Sequence[Any]) -> None:
        """What is done once for ``rows``, which start there in x."""

    def add(self, sums: Registers, rows: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Adds to ``sums`` [rows, outputs]."""
        add_products(sums, self.x, rows, self.w, outputs, self.depth)


def linear(
    spec: Spec,
    lanes: Lanes,
    name: str,
    form: Callable[..., Tile] = Tile,
    tile_outputs: int = OUTPUTS,
    scratch: Sequence[Tensor] = (),
) -> Any:
    """Rows by rows of weights, a tile of sums at a time; codes are made of a row's sums together.

    Sums wait in memory until then: next to products, shifts and limits have no register.
    """
    x_type, w_type, *_ = spec.operands
    outputs, depth = w_type.shape
    fused = spec.op == "quantized_linear"
    names = [*["spread"] * (len(scratch) - fused), *["sums"] * fused]
    types = buffers(spec) | dict(zip(names, scratch, strict=True))
    with function(name, types, spec.open) as f:
        count = len(spec.operands)
        x, w, *others = f.buffers[:count]
        y, *extra = f.buffers[count:]
        sums = extra.pop() if fused else y
        made = form(x, w, depth, extra)

        def tile(starts: Sequence[Any], row: Any, first: Any, several: int) -> None:
            """The sums of rows of x that start there by ``several`` rows of w, to ``row`` on."""
            totals = Registers(len(starts) * several, 1, "int32", "totals")
            for i in range(len(starts) * several):
                totals[i] = others[0][first + i % several] if others else T.int32(0)
            made.add(totals, starts, [(first + n) * depth for n in range(several)])
            for i in range(len(starts) * several):
                store(sums, totals[i], (row + i // several) * outputs + first + i % several)

        for first_row, row_turns, rows in row_blocks(prod(x_type.shape[:-1]), _tile_rows(spec)):
            with loop("turn", row_turns) as turn:
                row = first_row + turn * rows
                starts = [(row + r) * depth for r in range(rows)]
                made.start(starts)
                for first, turns, several in row_blocks(outputs, tile_outputs):
                    with loop("tile", turns) as column:
                        tile(starts, 0 if fused else row, first + column * several, several)
                if fused:
                    _finish(f, lanes, spec, sums, others[1:], y, row, rows)
    return f.result


def _tile_rows(spec: Spec) -> int:
    return min(spec.parameter("rows", ROWS), prod(spec.operands[0].shape[:-1]))


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """The sums of a tile's rows, where they do not go to the result."""
    if spec.op != "quantized_linear":
        return ()
    return (Tensor("i32", (_tile_rows(spec) * spec.results[0].shape[-1],)),)


def _finish(
    f: Function,
    lanes: Lanes,
    spec: Spec,
    sums: Any,
    operands: Sequence[Any],
    y: Any,
    first: Any,
    rows: int,
) -> None:
    """Makes codes of the sums of some rows, and adds them to the residual if there is one."""
    multiplier, *residual = operands
    by_output, outputs = len(spec.operands[3].shape) > 0, spec.results[0].shape[-1]
    with loop("output", outputs) as output:
        factor = once(wide(multiplier[output if by_output else 0]), "factor")
        for row in range(rows):
            total = sums[row * outputs + output]
            code = requantized(f, lanes, spec, total, factor, spec.attribute("dtype"))
            at = (first + row) * outputs + output
            if residual:
                code = clipped(lanes, wide(residual[0][at]) + wide(code), "i16")
            store(y, code, at)


def turned(blocks: Any, block: Any, x: Any, start: Any, size: int) -> list[Any]:
    """A block times the ``size`` codes of x from ``start`` on."""
    codes = [once(wide(x[start + j]), "code") for j in range(size)]
    return [
        reduce(add, (wide(blocks[block + i * size + j]) * codes[j] for j in range(size)))
        for i in range(size)
    ]


@contextmanager
def each_group(spec: Spec, chosen: Any) -> Iterator[tuple[Any, Any, Any]]:
    """For each group of channels of each row: which group of which expert it is turned by, counted
    through all of them, and where it starts in x and in the result.

    The second operand has a part for each group of each expert, ``chosen`` is the third one's.
    """
    x_type, turns_type, experts_type, *_ = spec.operands
    experts, groups, *_ = turns_type.shape
    width, rows = x_type.shape[-1], experts_type.shape
    steps = broadcast_strides(x_type.shape[:-1], rows)
    with nest(rows) as indices:
        row = T.int32(0)
        for index, count in zip(indices, rows, strict=True):
            row = row * count + index
        source = offset(indices, steps, T.int32(0)) * width
        expert = position(chosen[row], experts_type.dtype, experts)
        with loop("group", groups) as group:
            first = group * (width // groups)
            yield expert * groups + group, source + first, row * width + first


def rotate(spec: Spec, lanes: Lanes, name: str, turn: Turn = turned) -> Any:
    """Group by group; ``turn`` is what multiplies a block by its group."""
    size = spec.operands[1].shape[-1]
    with function(name, buffers(spec), spec.open) as f:
        x, blocks, chosen, y = f.buffers
        shift = f.number(spec, "shift")
        with each_group(spec, chosen) as (turned_by, start, target):
            for i, total in enumerate(turn(blocks, turned_by * (size * size), x, start, size)):
                store(y, clipped(lanes, rounded_shift(total, shift), "i8"), target + i)
    return f.result


def combine(spec: Spec, lanes: Lanes, name: str) -> Any:
    *tokens, chosen, channels = spec.operands[0].shape
    by_channel = spec.op == "quantized_combine" and len(spec.operands[2].shape) > 0
    with (
        function(name, buffers(spec), spec.open) as f,
        loop("token", prod(tokens)) as token,
        loop("channel", channels) as c,
    ):
        values, gates, *multiplier, y = f.buffers
        total: Any = T.int32(0)
        for i in range(chosen):
            value = values[(token * chosen + i) * channels + c]
            total = total + wide(value) * wide(gates[token * chosen + i])
        if multiplier:
            factor = multiplier[0][c if by_channel else 0]
            total = requantized(f, lanes, spec, total, factor, spec.attribute("dtype"))
        store(y, total, token * channels + c)
    return f.result


def _plain(spec: Spec, lanes: Lanes, name: str) -> Any:
    outputs = spec.parameter("outputs", OUTPUTS)
    return linear(spec, lanes, name, Tile, outputs, scratch(spec, lanes))


BUILD = {
    "integer_linear": _plain,
    "quantized_linear": _plain,
    "integer_rotate": rotate,
    "integer_combine": combine,
    "quantized_combine": combine,
}


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    return BUILD[spec.op](spec, lanes, name)


def cost(spec: Spec, lanes: Lanes) -> float:
    inner = 1 if spec.op.endswith("combine") else spec.operands[1].shape[-1]
    # A compiler makes vectors of these loops.
    return 3.3 * prod(spec.results[0].shape) * inner / lanes.float_lanes


def possible(spec: Spec, outputs: int) -> bool:
    """Whether there is a tile of so many outputs and of its rows."""
    positive = all(value > 0 for _, value in spec.parameters)
    return positive and _tile_rows(spec) * outputs <= LARGEST_TILE


def supports(spec: Spec, lanes: Lanes) -> bool:
    if not is_plain(spec):
        return False
    return spec.op not in LINEAR or possible(spec, spec.parameter("outputs", OUTPUTS))


def tile_knobs(spec: Spec) -> Mapping[str, tuple[int, ...]]:
    """Values of the parameters of `linear`; more rows would take more memory for sums and codes."""
    if spec.op not in LINEAR:
        return {}
    rows, outputs = prod(spec.operands[0].shape[:-1]), spec.operands[1].shape[0]
    return {
        "rows": block_sizes(rows, (1, 2, 3, 4)),
        "outputs": block_sizes(outputs, (1, 2, 3, 4, 5, 6, 8)),
    }


def tile_plan(spec: Spec, outputs: int) -> Hashable:
    """The tile of `linear` with so many outputs."""
    if spec.op not in LINEAR:
        return ()
    rows = block_sizes(prod(spec.operands[0].shape[:-1]), [_tile_rows(spec)])
    return rows, block_sizes(spec.operands[1].shape[0], [outputs])


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    return tile_knobs(spec)


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    return tile_plan(spec, spec.parameter("outputs", OUTPUTS))


KERNEL = Kernel(
    "integer_products",
    tuple(BUILD),
    supports,
    build,
    cost,
    scratch,
    knobs=knobs,
    plan=plan,
    numbers=("drop", "shift"),
    ignored=("planes",),
)
