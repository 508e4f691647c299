"""A recognised layer written as k parallel chains of butterfly ops.

slot i: shuffle, rotate ... -> ternary_matmul -> gelu -> shuffle, rotate ... -> linear -> * gate_i
y = the sum of the slots, plus the bias that is added once
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.build import make
from ..ir.graph import Node, constant
from ..ir.types import Type
from .recognise_layer import Layer
from .recognise_rotation import Activation, Bias, Blocks, Shuffle, Step
from .recognise_rows import Rows
from .recognise_ternary import as_ternary

Array = np.ndarray


def build(
    layer: Layer, x: Node, experts: Node, gates: Sequence[Node], store: dict[str, Array], name: str
) -> Node:
    """The node that computes the layer's y from its activation x, expert numbers and gates.

    Constants are put into ``store``. All nodes are called ``name`` and what they are.
    """
    return _Writer(layer, store, name).result(x, experts, gates)


class _Writer:
    """Makes the nodes of one layer, each with its name and source line."""

    def __init__(self, layer: Layer, store: dict[str, Array], name: str) -> None:
        self.layer = layer
        self.store = store
        self.name = name
        self.source = layer.product.node.source or layer.y.source
        self.dtype = layer.y.type.dtype

    def make(
        self, op: str, *operands: Node, label: str, source: str = "", **attributes: Any
    ) -> Node:
        return make(
            op, *operands, name=f"{self.name}.{label}", source=source or self.source, **attributes
        )

    def constant(self, array: Array, label: str, type: Type | None = None) -> Node:
        return constant(self.store, array, f"{self.name}.{label}", type)

    def number(self, array: Array, label: str, exactly: bool = False) -> Node:
        """A constant in the layer's own float type, or in its own where that would round it."""
        typed = array.astype(Type(self.dtype, ()).storage)
        keep = exactly and not np.array_equal(typed, array)
        return self.constant(array if keep else typed, label)

    def result(self, x: Node, experts: Node, gates: Sequence[Node]) -> Node:
        region = self.layer.region
        t, k = region.tokens, region.k
        x = self.matrix(x, self.layer.x_rows, "x")
        experts = self.reshaped(experts, (t, k), "experts")
        gate = self.gates(gates, experts)
        steps_in = self.steps(self.layer.rotation_in, "in")
        product = self.product()
        middle = self.steps(self.layer.middle, "out")
        down = self.down()
        total: Node | None = None
        for slot in range(k):
            part: dict[str, Any] = {"axis": 1, "start": slot, "stop": slot + 1}
            expert = self.make("slice", experts, label=f"expert{slot}", **part)
            expert = self.reshaped(expert, (t,), f"expert{slot}")
            factor = self.make("slice", gate, label=f"gate{slot}", **part)
            row = x
            for step in (*steps_in, product, *middle, down):
                row = step(row, expert)
            row = self.make("mul", row, factor, label=f"weighted{slot}")
            total = row if total is None else self.make("add", total, row, label="sum")
        assert total is not None, "a routing op chooses at least one expert"
        if self.layer.down.once is not None:
            bias = self.number(self.layer.down.once, "bias")
            total = self.make("add", total, bias, label="biased")
        return self.shaped(total, self.layer.y_rows)

    def gates(self, heads: Sequence[Node], experts: Node) -> Node:
        """The factors [T, k] of the chosen experts, from the nodes that hold them."""
        gates = self.layer.region.gates
        rows = [
            self.matrix(self.reshaped(head, part.rows.shape, "gates"), part.rows, "gates")
            for head, part in zip(heads, gates.parts, strict=True)
        ]
        if gates.is_dense:
            return self.make("gather", rows[0], experts, label="gates", axis=1)
        return rows[0] if len(rows) == 1 else self.make("concat", *rows, label="gates", axis=1)

    def matrix(self, x: Node, rows: Rows, label: str) -> Node:
        """``x`` as a matrix with one row a token, the first where it is there several times."""
        if not rows.is_plain:
            x = self.reshaped(x, rows.view, label)
            x = self.make("transpose", x, label=label, order=rows.order)
        if rows.slots > 1:
            x = self.reshaped(x, (rows.tokens, rows.slots, rows.channels), label)
            x = self.make("slice", x, label=label, axis=1, start=0, stop=1)
        return self.reshaped(x, (rows.tokens, rows.channels), label)

    def shaped(self, y: Node, rows: Rows) -> Node:
        """A matrix with one row a token in the shape that the graph goes on with."""
        if not rows.is_plain:
            y = self.reshaped(y, tuple(rows.view[axis] for axis in rows.order), "y")
            back = tuple(int(axis) for axis in np.argsort(rows.order))
            y = self.make("transpose", y, label="y", order=back)
        return replace(self.reshaped(y, rows.shape, "y"), name=self.layer.y.name)

    def reshaped(self, x: Node, shape: tuple[int, ...], label: str) -> Node:
        return x if x.type.shape == shape else self.make("reshape", x, label=label, shape=shape)

    def steps(self, steps: list[Step], side: str) -> list[Callable[[Node, Node], Node]]:
        return [self.step(step, f"{side}{i}") for i, step in enumerate(steps)]

    def step(self, step: Step, label: str) -> Callable[[Node, Node], Node]:
        """What one step makes of a node; its constants are shared by all slots."""
        if isinstance(step, Shuffle):
            order = self.constant(step.order.astype(np.int32), f"{label}.order")
            shuffled = f"{label}.shuffle"
            return lambda x, _: self.make("shuffle", x, order, label=shuffled, source=step.source)
        if isinstance(step, Activation):
            active = f"{label}.{step.name}"
            return lambda x, _: self.make(step.name, x, label=active, source=step.source)
        if isinstance(step, Bias):
            added = self.number(step.values, f"{label}.bias")
            biased = f"{label}.biased"
            return lambda x, _: self.make("add", x, added, label=biased, source=step.source)
        assert isinstance(step, Blocks), f"a {type(step).__name__} is part of the product"
        # Layers that the model itself multiplies together stay in double precision.
        blocks = self.number(step.blocks, f"{label}.blocks", exactly=True)
        rotated = f"{label}.rotate"
        return lambda x, e: self.make("rotate", x, blocks, e, label=rotated, source=step.source)

    def product(self) -> Callable[[Node, Node], Node]:
        substrate, bias = self.layer.substrate, self.layer.bias
        w = self.constant(substrate.codes, "w", Type("ternary", substrate.codes.shape))
        scale = self.number(substrate.scale, "scale")
        added = None if bias is None else self.number(bias, "up_bias")

        def run(x: Node, _: Node) -> Node:
            y = self.make("ternary_matmul", x, w, scale, label="product")
            return y if added is None else self.make("add", y, added, label="product_biased")

        return run

    def down(self) -> Callable[[Node, Node], Node]:
        w, weighted = self.layer.down.w, self.layer.down.weighted
        bias = None if weighted is None else self.number(weighted, "down_bias")
        ternary = None if w is None else as_ternary(w)
        if w is not None and ternary is None:
            matrix = self.number(w, "w_down")
            operands = (matrix,) if bias is None else (matrix, bias)
            return lambda x, _: self.make("linear", x, *operands, label="down")

        def run(x: Node, _: Node) -> Node:
            if codes is not None and scale is not None:
                x = self.make("ternary_matmul", x, codes, scale, label="down")
            return x if bias is None else self.make("add", x, bias, label="down_biased")

        codes = scale = None
        if ternary is not None:
            codes = self.constant(ternary.codes, "w_down", Type("ternary", ternary.codes.shape))
            scale = self.number(ternary.scale, "scale_down")
        return run
