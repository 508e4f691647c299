"""The two ends of ``butterfly_experts``: what happens to rows before and after the product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .dequantize import scale_vector
from .lanes import Lanes
from .pointwise_math import ACTIVATIONS
from .quantize_rows import largest_code, largest_magnitude, quantize_row, scale_of
from .rotate import Rotation, rotate_row, rotated
from .take import position
from .ternary_pairs import PairProduct
from .ternary_product import TernaryProduct
from .tir import (
    Registers,
    T,
    broadcast,
    constant,
    each_vector,
    let,
    load_lanes,
    span,
    store,
    store_lanes,
)

Product = TernaryProduct | PairProduct


@dataclass(frozen=True)
class Rows:
    """What both ends know. ``buffers`` are the kernel's, by name; a row is token * chosen + i."""

    lanes: Lanes
    buffers: Mapping[str, Any]
    tokens: int
    chosen: int
    experts: int
    experts_dtype: str
    rotation_in: Rotation
    rotation_out: Rotation | None
    activation: str
    activate_last: bool
    # Of codes; 0 for floats.
    bits: int
    scale_per_output: bool
    biased: bool

    @property
    def integer(self) -> bool:
        return self.bits > 0

    def rotate_in(self, first_token: Any, product: Product) -> None:
        """Rotate every row of ``tokens`` tokens into scratch, quantised for an integer product."""
        b = self.buffers
        with T.serial(self.tokens) as t, T.serial(self.chosen) as i:
            row = t * self.chosen + i
            expert = position(b["experts"][first_token + t, i], self.experts_dtype, self.experts)
            store(b["expert_of"], expert, row)

            def read(channel: Any, n: int) -> Any:
                return b["x"][first_token + t, span(channel, n)]

            def write(value: Any, channel: Any, valid: int) -> None:
                def put(part: Any, at: Any, n: int) -> None:
                    if self.integer:
                        store(b["rotated"], part, span(at, n))
                    else:
                        store(b["rotated"], part, row, span(at, n))

                store_lanes(put, value, channel, valid, self.rotation_in.vector)

            rotate_row(self.lanes, self.rotation_in, b["blocks_in"], expert, read, write)
            if self.integer:
                self._quantize(row, product)

    def _quantize(self, row: Any, product: Product) -> None:
        b, most = self.buffers, largest_code(self.bits)

        def read(channel: Any, n: int) -> Any:
            return b["rotated"][span(channel, n)]

        def write(codes: Any, channel: Any, n: int) -> None:
            store(b["codes"], codes, row, span(channel, n))

        largest = largest_magnitude(self.lanes, product.depth, read)
        store(b["row_scale"], scale_of(largest, most), row)
        quantize_row(self.lanes, product.depth, read, write, largest, most)
        if padding := product.padded_depth - product.depth:
            with T.serial(padding) as i:
                store(b["codes"], T.int8(0), row, product.depth + i)

    def rotate_out(self, first_token: Any, first_output: Any, outputs: int) -> None:
        """From sums of ``outputs`` outputs to the result: each token's rows gated and added."""
        b, width = self.buffers, self.lanes.float_lanes
        with T.serial(self.tokens) as t:
            token = first_token + t
            for unit in self._units(outputs):
                total = Registers(len(unit), width)
                for v in range(len(unit)):
                    total[v] = constant(0.0, width)
                with T.serial(self.chosen) as i:
                    row = t * self.chosen + i
                    gate = let(broadcast(b["gates"][token, i], width), width)
                    for v, value in enumerate(self._row(row, first_output, unit)):
                        total[v] = self.lanes.multiply_add(total[v], value, gate)

                def put(part: Any, at: Any, n: int) -> None:
                    store(b["y"], part, token, span(first_output + at, n))

                for v, (start, valid) in enumerate(unit):
                    store_lanes(put, total[v], start, valid, width)

    def _units(self, outputs: int) -> Iterator[list[tuple[Any, int]]]:
        """Loop over the vectors that are rotated together: (first output of the strip, valid)."""
        if self.rotation_out:
            yield from self.rotation_out.each_unit(outputs)
        else:
            for start, valid in each_vector(outputs, self.lanes.float_lanes):
                yield [(start, valid)]

    def _row(self, row: Any, first_output: Any, unit: list[tuple[Any, int]]) -> list[Any]:
        """One row's outputs of a unit, after activation and rotation."""
        lanes, turn, width = self.lanes, self.rotation_out, self.lanes.float_lanes
        activate = ACTIVATIONS[self.activation]
        values = [self._scaled(row, first_output, start, valid) for start, valid in unit]
        if not self.activate_last:
            values = [let(activate(lanes, value), width) for value in values]
        if turn:
            blocks, expert = self.buffers["blocks_out"], self.buffers["expert_of"][row]

            def coefficients(v: int, j: int) -> Any:
                vector = (first_output + unit[v][0]) // width
                return blocks[expert, vector, j, span(0, width)]

            values = rotated(lanes, turn, values, coefficients)
        if self.activate_last:
            values = [let(activate(lanes, value), width) for value in values]
        return values

    def _scaled(self, row: Any, first_output: Any, start: Any, valid: int) -> Any:
        """The vector of sums at ``start`` of the strip times its scale, plus the bias, if any."""
        b, width = self.buffers, self.lanes.float_lanes
        output = first_output + start
        total = b["sums"][row, span(start, width)]
        scale = scale_vector(b["scale"], self.scale_per_output, output, valid, width)
        if self.integer:
            total = self.lanes.as_float(total)
            scale = broadcast(b["row_scale"][row], width) * scale
        if not self.biased:
            return let(total * scale, width)
        bias = load_lanes(lambda i, n: b["bias"][span(i, n)], output, valid, width, T.float32(0))
        return let(self.lanes.multiply_add(bias, total, scale), width)
