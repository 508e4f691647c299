"""``rotate``: each group of b channels times the b x b block of the row's expert.

A vector of channels is rotated as a sum of b products: coefficients, which the packing has laid
beside their channels, times the members of each channel's group. With ``lanes`` a multiple of the
vector unit's those members are b vectors; with ``lanes`` = 1 they are shuffled out of the vector
itself; else, one channel at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from .elements import broadcast_strides, held, nest, offset, row_major
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .take import position
from .tir import (
    T,
    each_vector,
    function,
    let,
    load_lanes,
    rows_of,
    span,
    store,
    store_lanes,
)


@dataclass(frozen=True)
class Rotation:
    """How ``width`` channels in groups of ``b`` are rotated, ``vector`` channels at a time.

    ``lanes`` is the op's attribute: member i of a group lies i * lanes channels after its first.
    """

    width: int
    b: int
    lanes: int
    vector: int

    @property
    def shuffled(self) -> bool:
        """Whether a vector of channels holds whole groups."""
        return self.lanes == 1 and self.vector > 1

    @property
    def layout(self) -> str:
        """How the blocks are packed."""
        return f"rotation{self.vector}x{self.lanes}"

    @property
    def unit(self) -> int:
        """Vectors that are rotated together."""
        return 1 if self.shuffled else self.b

    @property
    def span(self) -> int:
        """Channels among which groups are complete: strips of channels are multiples of it."""
        return self.vector if self.shuffled else self.b * self.lanes

    def each_unit(self, channels: int) -> Iterator[list[tuple[Any, int]]]:
        """Loop over ``channels`` channels: yields (first channel, how many exist) by vector."""
        if self.shuffled:
            for start, valid in each_vector(channels, self.vector):
                yield [(start, valid)]
            return
        with T.serial(channels // self.span) as block, T.serial(self.lanes // self.vector) as i:
            first = block * self.span + i * self.vector
            yield [(first + member * self.lanes, self.vector) for member in range(self.b)]

    def members(self, values: list[Any]) -> list[Any]:
        """Member 0..b-1 of each channel's group, given the vectors of a unit (names)."""
        if not self.shuffled:
            return values
        channels = range(self.vector)
        groups = [[c // self.b * self.b + j for c in channels] for j in range(self.b)]
        return [T.Shuffle([values[0]], chosen) for chosen in groups]


def rotation(lanes: Lanes, blocks: Tensor, attribute: int) -> Rotation:
    """The rotation by ``blocks`` [experts, groups, b, b] for the op's attribute ``lanes``."""
    _, groups, b, _ = blocks.shape
    width = lanes.float_lanes
    fits = attribute % width == 0 or (attribute == 1 and width % b == 0)
    return Rotation(groups * b, b, attribute, width if fits else 1)


def rotated(
    lanes: Lanes,
    rotation: Rotation,
    values: list[Any],
    coefficients: Callable[[int, int], Any],
) -> list[Any]:
    """The rotated vectors of a unit; ``coefficients(i, j)`` multiply member j for vector i."""
    members = rotation.members(values)
    results = []
    for i in range(rotation.unit):
        total = coefficients(i, 0) * members[0]
        for j in range(1, rotation.b):
            total = lanes.multiply_add(total, coefficients(i, j), members[j])
        results.append(let(total, rotation.vector))
    return results


def rotate_row(
    lanes: Lanes,
    rotation: Rotation,
    blocks: Any,
    expert: Any,
    read: Callable[[Any, int], Any],
    write: Callable[[Any, Any, int], None],
) -> None:
    """Rotate one row by the packed ``blocks`` of ``expert``.

    ``read(channel, n)`` reads n channels; ``write(value, channel, valid)`` gets whole vectors, of
    which ``valid`` channels exist.
    """
    vector = rotation.vector
    for unit in rotation.each_unit(rotation.width):
        values = [
            let(load_lanes(read, start, valid, vector, T.float32(0)), vector)
            for start, valid in unit
        ]

        def coefficients(i: int, j: int, unit: list[tuple[Any, int]] = unit) -> Any:
            return blocks[expert, unit[i][0] // vector, j, span(0, vector)]

        results = rotated(lanes, rotation, values, coefficients)
        for (start, valid), value in zip(unit, results, strict=True):
            write(value, start, valid)


def supports(spec: Spec, lanes: Lanes) -> bool:
    x, blocks, experts = spec.operands
    return (
        spec.op == "rotate"
        and x.dtype == blocks.dtype == "f32"
        and experts.dtype in ("i32", "i64")
        and x.layout is None
        and blocks.layout in (None, layouts(spec, lanes)[1])
        and prod(spec.results[0].shape) > 0
    )


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: rotation(lanes, spec.operands[1], spec.attribute("lanes")).layout}


def cost(spec: Spec, lanes: Lanes) -> float:
    turn = rotation(lanes, spec.operands[1], spec.attribute("lanes"))
    return prod(spec.results[0].shape) * (turn.b + 2) / turn.vector


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, blocks_type, experts_type = spec.operands
    turn = rotation(lanes, blocks_type, spec.attribute("lanes"))
    # Rows of x repeat over the rows of the experts.
    rows = experts_type.shape
    strides = broadcast_strides(x_type.shape[:-1], rows)
    parameters = {
        "x": rows_of(x_type),
        "blocks": blocks_type,
        "experts": held(experts_type),
        "y": rows_of(spec.results[0]),
    }
    with function(name, parameters) as f:
        x, blocks, experts, y = f.buffers
        with nest(rows) as indices:
            target = let(offset(indices, row_major(rows), T.int32(0)), 1, "int32")
            source = let(offset(indices, strides, T.int32(0)), 1, "int32")
            expert = position(experts[target], experts_type.dtype, blocks_type.shape[0])

            def read(i: Any, n: int) -> Any:
                return x[source, span(i, n)]

            def write(value: Any, start: Any, valid: int) -> None:
                def put(part: Any, i: Any, n: int) -> None:
                    store(y, part, target, span(i, n))

                store_lanes(put, value, start, valid, turn.vector)

            rotate_row(lanes, turn, blocks, expert, read, write)
    return f.result


KERNEL = Kernel("rotate", ("rotate",), supports, build, cost, layouts=layouts)
