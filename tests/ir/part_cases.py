"""Calls of every op that may be computed in parts, for any leading axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make, result
from butterflyc.compiler.ir.parts import BY_PARTS
from butterflyc.kernels.integer_numbers import exp2_table

Lead = tuple[int, ...]
Call = tuple[list[Type], dict[str, Any]]
Case = Callable[[Lead], Call]


def f32(*shape: int) -> Type:
    return Type("f32", shape)


def i8(*shape: int) -> Type:
    return Type("i8", shape)


def i16(*shape: int) -> Type:
    return Type("i16", shape)


ROTATION = f32(4, 3, 2, 2)
OCTAVE = {"multiplier": 300, "cap": 4096, "shift": 8}


def _heads(n: Lead) -> Lead:
    """Two leading axes: images and heads."""
    return (1, 1, *n)[-2:]


def _mixture(n: Lead, bits: int) -> Call:
    tokens = int(np.prod(n))
    gates, experts = f32(tokens, 3), Type("i64", (tokens, 3))
    types = [f32(tokens, 6), ROTATION, Type("ternary", (8, 6)), f32(), f32(8), gates, experts]
    attributes = {"activation": "gelu", "activation_bits": bits, "lanes_in": 1, "lanes_out": 1}
    return [*types, f32(4, 4, 2, 2)], attributes


# Floats, then integers; operands that are read whole are constants (`graph_of`).
CASES: dict[str, Case] = {
    "add": lambda n: ([f32(*n, 17), f32(*n, 17)], {}),
    "add of a row": lambda n: ([f32(*n, 17), f32(17)], {}),
    "mul by a number": lambda n: ([f32(*n, 4, 5), f32()], {}),
    "sub of an image": lambda n: ([f32(*n, 3, 16), f32(1, 3, 16)], {}),
    "div of rows by numbers": lambda n: ([f32(*n, 3, 16), f32(*n, 3, 1)], {}),
    "gelu": lambda n: ([f32(*n, 19)], {}),
    "where": lambda n: ([Type("bool", (*n, 16)), f32(*n, 16), f32(16)], {}),
    "cast": lambda n: ([Type("i32", (*n, 16))], {"dtype": "f32"}),
    "softmax": lambda n: ([f32(*n, 9)], {}),
    "layer_norm": lambda n: ([f32(*n, 9), f32(9), f32(9)], {"eps": 1e-5}),
    "linear": lambda n: ([f32(*n, 9), f32(21, 9), f32(21)], {"activation": "gelu"}),
    "matmul": lambda n: ([f32(*n, 9), f32(9, 21)] if n[1:] else [f32(*n, 9), f32(9, 1)], {}),
    "matmul of pairs": lambda n: ([f32(*n, 3, 9), f32(*n, 9, 11)], {}),
    "conv2d": lambda n: ([f32(n[0], 2, 5, 5), f32(3, 2, 2, 2), f32(3)], {}),
    "attention": lambda n: (
        [f32(*_heads(n), 3, 5), f32(*_heads(n), 4, 5), f32(*_heads(n), 4, 6)],
        {"scale": 0.5},
    ),
    "qkv_attention": lambda n: (
        [f32(n[0], 5, 3 * 4 * n[-1])],
        {"heads": n[-1], "scale": 0.5, "causal": True},
    ),
    "top_k": lambda n: ([f32(*n, 7)], {"k": 3}),
    "shuffle": lambda n: ([f32(*n, 6), Type("i32", (7,))], {}),
    "rotate": lambda n: ([f32(*n, 1, 6), ROTATION, Type("i64", (*n, 3))], {"lanes": 1}),
    "ternary_matmul": lambda n: ([f32(*n, 6), Type("ternary", (8, 6)), f32(8)], {}),
    "ternary_matmul of many": lambda n: ([f32(*n, 300), Type("ternary", (9, 300)), f32()], {}),
    "quantize_rows": lambda n: ([f32(*n, 9)], {}),
    "ternary_dot": lambda n: ([i8(*n, 6), Type("ternary", (8, 6))], {}),
    "dequantize": lambda n: ([Type("i32", (*n, 8)), f32(*n, 1), f32(8)], {}),
    "combine": lambda n: ([f32(*n, 3, 6), f32(*n, 3)], {}),
    "butterfly_experts": lambda n: _mixture(n, 0),
    "butterfly_experts of codes": lambda n: _mixture(n, 8),
    "integer_linear": lambda n: ([i8(*n, 9), i8(5, 9), Type("i32", (5,))], {}),
    "requantize": lambda n: ([Type("i32", (*n, 9)), i16(9)], {"shift": 8}),
    "lookup": lambda n: ([i8(*n, 9), i8(256)], {}),
    "saturating_add": lambda n: ([i16(*n, 16), i16(*n, 16)], {}),
    "integer_mul": lambda n: ([i16(*n, 16), i16(16)], {}),
    "integer_divide": lambda n: ([i16(*n, 16), i16(*n, 1)], {"shift": 3}),
    "interpolate": lambda n: ([i16(*n, 9), i16(257)], {}),
    "integer_rotate": lambda n: (
        [i8(*n, 1, 6), i16(4, 3, 2, 2), Type("i64", (*n, 3))],
        {"shift": 14},
    ),
    "integer_turn": lambda n: (
        [i8(*n, 1, 8), i8(4, 2, 2), Type("i64", (*n, 3)), i16(256, 2)],
        {"order": (0, 1, 2, 3, 0, 2, 1, 3), "multiplier": 300, "shift": 14},
    ),
    "integer_combine": lambda n: ([i8(*n, 3, 6), i16(*n, 3)], {}),
    "integer_layer_norm": lambda n: ([i16(*n, 6), i16(6), Type("i32", (6,))], {"shift": 20}),
    "integer_softmax": lambda n: ([i16(*n, 6), i16(256)], OCTAVE),
    "integer_attention": lambda n: ([i8(1, 1, n[0], 4), *[i8(1, 1, 5, 4)] * 2, i16(256)], OCTAVE),
    "integer_attention of heads": lambda n: (
        [i8(*_heads(n), 5, 4)] * 3 + [i16(256)],
        {**OCTAVE, "causal": True},
    ),
}


def values(type: Type, rng: np.random.Generator) -> np.ndarray:
    """Random data; indices are those of 4 experts, or of 6 channels, a table is one of powers."""
    if type == i16(256):
        return np.array(exp2_table(), np.int16)
    if type.dtype in ("i64", "bool"):
        return rng.integers(0, 4 if type.dtype == "i64" else 2, type.shape).astype(type.storage)
    if type.dtype == "ternary":
        return rng.integers(-1, 2, type.shape).astype(np.int8)
    if type.is_float:
        return rng.standard_normal(type.shape).astype(type.storage)
    low, high = (-1, 6) if type == Type("i32", (7,)) else (-127, 128)
    return rng.integers(low, high, type.shape).astype(type.storage)


def graph_of(lead: Lead, names: list[str], rng: np.random.Generator) -> Graph:
    """The calls of these cases side by side; what no rows are taken of is constant."""
    store: dict[str, np.ndarray] = {}
    inputs: list[Node] = []
    outputs: list[Node] = []
    for name in names:
        types, attributes = CASES[name](lead)
        operands = []
        for i, type in enumerate(types):
            label, op = f"{name}.{i}".replace(" ", "_"), name.split()[0]
            if i not in BY_PARTS.get(op, {i: 0}):
                operands.append(constant(store, values(type, rng), label, type))
            else:
                operands.append(input_node(label, type))
                inputs.append(operands[-1])
        node = make(name.split()[0], *operands, name=name.replace(" ", "_"), **attributes)
        several = len(node.types) > 1
        outputs += [result(node, i) for i in range(len(node.types))] if several else [node]
    return Graph("g", tuple(inputs), tuple(outputs), store)
