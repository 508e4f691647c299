"""One or more valid nodes of every op, for tests that must hold for each of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make, result
from butterflyc.compiler.ir.ops import OPS


def _integer_samples() -> dict[str, list[tuple[list[Type], dict[str, Any]]]]:
    """Calls of the ops of integer mode."""
    codes, wide, sums = Type("i8", (2, 6)), Type("i16", (2, 6)), Type("i32", (2, 6))
    rows, experts = Type("i8", (2, 3, 6)), Type("i64", (2, 3))
    row, bias = Type("i16", (6,)), Type("i32", (6,))
    head = Type("i8", (2, 2, 5, 4))
    octave = Type("i16", (256,))
    decay = {"multiplier": 300, "cap": 4096, "shift": 8}
    return {
        "integer_linear": [
            ([codes, Type("i8", (3, 6))], {}),
            ([codes, Type("i8", (3, 6)), Type("i32", (3,))], {}),
        ],
        "requantize": [
            ([sums, row], {"shift": 8}),
            ([wide, Type("i16", ())], {"drop": 2, "shift": 0, "dtype": "i16"}),
        ],
        "lookup": [([codes, Type("i8", (256,))], {})],
        "saturating_add": [([wide, wide], {}), ([wide, row], {})],
        "integer_mul": [([wide, wide], {}), ([Type("i16", (2, 1)), row], {})],
        "integer_divide": [
            ([wide, wide], {"shift": 15}),
            ([Type("i16", (2, 1)), row], {"shift": 0}),
        ],
        "interpolate": [([wide, Type("i16", (257,))], {})],
        "integer_rotate": [
            ([Type("i8", (2, 1, 6)), Type("i16", (4, 3, 2, 2)), experts], {"shift": 14})
        ],
        "integer_turn": [
            (
                [Type("i8", (2, 1, 8)), Type(dtype, (4, 2, 2)), experts, Type("i16", (size, 2))],
                {"order": (0, 1, 2, 3, 0, 2, 1, 3), "multiplier": 300, "shift": 14},
            )
            for dtype, size in (("i8", 256), ("i16", 512))
        ],
        "integer_combine": [([rows, Type("i16", (2, 3))], {})],
        "quantized_linear": [
            ([codes, Type("i8", (3, 6)), Type("i32", (3,)), Type("i16", (3,))], {"shift": 8}),
            (
                [codes, Type("i8", (6, 6)), bias, Type("i16", ()), wide],
                {"drop": 2, "shift": 9, "dtype": "i16"},
            ),
        ],
        "quantized_ternary": [
            ([codes, Type("ternary", (8, 6)), Type("i16", (8,))], {"shift": 14}),
            ([codes, Type("ternary", (8, 6)), Type("i16", ()), Type("i8", (256,))], {"shift": 3}),
        ],
        "quantized_combine": [
            ([rows, Type("i16", (2, 3)), row], {"drop": 8, "shift": 15}),
            ([rows, Type("i16", (2, 3)), Type("i16", ())], {"drop": 8, "shift": 9, "dtype": "i16"}),
        ],
        "integer_layer_norm": [
            ([wide, row, bias], {"shift": 20}),
            ([codes, row, bias], {"shift": 9, "eps": 20000, "eps_shift": -3}),
        ],
        "integer_softmax": [([sums, octave], decay), ([wide, octave], decay)],
        "integer_attention": [
            ([head] * 3 + [octave], decay),
            ([head] * 3 + [octave], {**decay, "causal": True}),
        ],
    }


def op_samples() -> dict[str, list[tuple[list[Type], dict[str, Any]]]]:
    """For each op: operand types and attributes of calls that must be accepted."""
    f = Type("f32", (2, 6))
    row = Type("f32", (6,))
    flag = Type("bool", (2, 6))
    experts = Type("i64", (2, 3))
    gates = Type("f32", (2, 3))
    blocks = Type("f32", (4, 3, 2, 2))
    ternary = Type("ternary", (8, 6))
    scalar = Type("f32", ())
    bias = Type("f32", (8,))
    unary = [name for name, entry in OPS.items() if entry.operands == "x" and not entry.attributes]
    samples: dict[str, list[tuple[list[Type], dict[str, Any]]]] = {
        name: [([f], {})] for name in unary
    }
    samples["logical_not"] = [([flag], {})]
    for name in ("add", "sub", "mul", "div", "pow", "atan2", "maximum", "minimum"):
        samples[name] = [([f, row], {}), ([f, scalar], {})]
    for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        samples[name] = [([f, row], {})]
    for name in ("logical_and", "logical_or"):
        samples[name] = [([flag, flag], {})]
    for name in ("sum", "mean", "max", "min"):
        samples[name] = [([f], {"axes": (1,)}), ([f], {"axes": (0, -1), "keep": True})]
    head = Type("f32", (2, 2, 5, 4))
    samples |= {
        "clip": [([f], {"low": -1.5, "high": float("inf")})],
        "where": [([flag, f, f], {}), ([flag, row, scalar], {})],
        "cast": [([f], {"dtype": "i32"}), ([f], {"dtype": "bf16"})],
        "reshape": [([f], {"shape": (3, 4)}), ([f], {"shape": (12,)})],
        "transpose": [([f], {"order": (1, 0)})],
        "broadcast": [([row], {"shape": (3, 6)})],
        "slice": [([f], {"axis": -1, "start": 1, "stop": 6, "step": 2})],
        "concat": [([f, f, f], {"axis": 0}), ([f], {"axis": 1})],
        "take": [([f, experts], {"axis": 0})],
        "gather": [([f, experts], {"axis": 1})],
        "argmax": [([f], {"axis": 1}), ([f], {"axis": 0, "keep": True})],
        "matmul": [([f, Type("f32", (6, 3))], {}), ([head, Type("f32", (4, 3))], {})],
        "linear": [
            ([f, Type("f32", (3, 6))], {}),
            ([f, Type("f32", (3, 6)), Type("f32", (3,))], {"activation": "gelu"}),
        ],
        "conv2d": [([Type("f32", (1, 2, 6, 6)), Type("f32", (3, 2, 2, 2))], {"stride": (2, 2)})],
        "layer_norm": [([f, row, row], {"eps": 1e-6})],
        "softmax": [([f], {"axis": 0}), ([f], {})],
        "attention": [([head, head, head], {"scale": 0.5, "causal": True})],
        "qkv_attention": [([Type("f32", (2, 5, 24))], {"heads": 2, "scale": 0.5})],
        "top_k": [([f], {"k": 3})],
        "shuffle": [([f, Type("i32", (7,))], {})],
        "rotate": [([Type("f32", (2, 1, 6)), blocks, experts], {"lanes": 3})],
        "ternary_matmul": [([f, ternary, scalar], {}), ([f, ternary, Type("f32", (8,))], {})],
        "quantize_rows": [([f], {}), ([f], {"bits": 7})],
        "ternary_dot": [
            ([Type("i8", (2, 6)), ternary], {}),
            ([Type("i8", (2, 6)), ternary], {"bits": 7}),
        ],
        **_integer_samples(),
        "dequantize": [([Type("i32", (2, 8)), Type("f32", (2, 1)), scalar], {})],
        "combine": [([Type("f32", (2, 3, 6)), gates], {})],
        "butterfly_experts": [
            ([f, blocks, ternary, scalar, bias, gates, experts], {}),
            (
                [f, blocks, ternary, scalar, bias, gates, experts, Type("f32", (4, 2, 4, 4))],
                {"activation": "gelu", "activate_last": True, "activation_bits": 8, "lanes_out": 2},
            ),
        ],
    }  # fmt: skip
    samples["butterfly_layer"] = _layer_samples()
    samples["butterfly_deep_layer"] = _deep_layer_samples()
    return samples


def _layer_samples() -> list[tuple[list[Type], dict[str, Any]]]:
    """Calls of the op for a whole layer: 8 channels, 12 inside, 4 experts."""
    pairs = [Type("f16", (4, width // 4, 4, 2)) for width in (8, 12)]
    operands = [
        Type("f32", (3, 8)), pairs[0], Type("ternary", (12, 8)), Type("f32", ()),
        Type("f32", (12,)), Type("f32", (3, 2)), Type("i64", (3, 2)), pairs[1],
    ]  # fmt: skip
    other = {"activation": "gelu", "activate_last": True, "biased": False}
    other["order_in"] = (0, 2, 1, 3, 3, 1, 0, 2)
    return [
        (operands, {"dtype": "f16", "activation_bits": 8}),
        ([*operands, Type("f16", (5, 12))], {"dtype": "f32", **other}),
    ]


def _deep_layer_samples() -> list[tuple[list[Type], dict[str, Any]]]:
    """The same with three and one layers; 7 of the 8 channels are there, 10 of the 12 kept."""
    pairs = [Type("f32", (4, 3, 8, 2)), Type("f16", (4, 1, 12, 2))]
    operands = [
        Type("f32", (3, 7)), pairs[0], Type("ternary", (12, 8)), Type("f32", (12,)),
        Type("f32", (12,)), Type("f32", (3, 2)), Type("i64", (3, 2)), pairs[1],
        Type("i32", (3, 8)), Type("i32", (1, 12)),
    ]  # fmt: skip
    other = {"activation": "gelu", "activate_last": True, "biased": False, "kept": 10}
    return [
        (operands, {"dtype": "f16", "activation_bits": 8, "kept": 10}),
        ([*operands, Type("f16", (5, 10))], {"dtype": "f32", **other}),
    ]


def values(type: Type, rng: np.random.Generator) -> np.ndarray:
    """Random data of a type; integers are small enough to index the samples above."""
    if type.dtype == "bool":
        return rng.random(type.shape) < 0.5
    if type.dtype == "ternary":
        return rng.integers(-1, 2, type.shape).astype(np.int8)
    if type.is_float:
        return rng.standard_normal(type.shape).astype(type.storage)
    low = -1 if type.dtype == "i32" and type.rank == 1 else 0
    return rng.integers(low, 2, type.shape).astype(type.storage)


def sample_graph(op: str, types: list[Type], attributes: dict[str, Any]) -> Graph:
    """A graph of one node of ``op`` (and one for each of its results) on inputs and constants."""
    store: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    operands: list[Node] = [
        constant(store, values(type, rng), f"c{i}", type)
        if type.dtype == "ternary"
        else input_node(f"x{i}", type)
        for i, type in enumerate(types)
    ]
    node = make(op, *operands, name="y", source="model.py:7", **attributes)
    outputs = (node,) if len(node.types) == 1 else tuple(result(node, i) for i in range(2))
    return Graph("g", tuple(n for n in operands if n.op == "input"), outputs, store)
