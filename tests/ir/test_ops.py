"""Every op: its text, its shape rule and its meaning agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from butterflyc.compiler.errors import InvalidGraph, UnknownName
from butterflyc.compiler.ir import Type, input_node, make, parse_graph, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.ops import OPS

from .samples import op_samples, sample_graph, values

SAMPLES = op_samples()
CASES = [
    pytest.param(op, types, attributes, id=f"{op}-{i}")
    for op, calls in SAMPLES.items()
    for i, (types, attributes) in enumerate(calls)
]


def test_every_op_has_a_sample() -> None:
    """The cases below cover the whole table."""
    assert set(SAMPLES) == set(OPS)


@pytest.mark.parametrize(("op", "types", "attributes"), CASES)
def test_text_round_trips(op: str, types: list[Type], attributes: dict[str, Any]) -> None:
    """A graph that is printed and parsed is the same graph."""
    graph = sample_graph(op, types, attributes)
    again = parse_graph(str(graph), graph.constants)
    assert again == graph
    assert str(again) == str(graph)
    verify(again)


@pytest.mark.parametrize("precision", [None, "f64"])
@pytest.mark.parametrize(("op", "types", "attributes"), CASES)
def test_meaning_fits_shape_rule(
    op: str, types: list[Type], attributes: dict[str, Any], precision: str | None
) -> None:
    """An op's value has the shape and dtype that its rule gives, in both precisions."""
    graph = sample_graph(op, types, attributes)
    rng = np.random.default_rng(1)
    inputs = [values(node.type, rng) for node in graph.inputs]
    for node, value in zip(
        graph.outputs, interpret(graph, *inputs, precision=precision), strict=True
    ):
        assert value.shape == node.type.shape
        if precision == "f64" and node.type.is_float:
            assert value.dtype == np.float64
        else:
            assert value.dtype == node.type.storage


@pytest.mark.parametrize(("op", "types", "attributes"), CASES)
def test_wrong_operand_count_is_refused(
    op: str, types: list[Type], attributes: dict[str, Any]
) -> None:
    """A call without operands, or with an unknown attribute, raises InvalidGraph naming the op."""
    operands = [input_node(f"x{i}", type) for i, type in enumerate(types)]
    with pytest.raises(InvalidGraph, match=op):
        make(op, **attributes)
    with pytest.raises(InvalidGraph, match="has no attribute 'colour'"):
        make(op, *operands, colour="red", **attributes)


REFUSED: list[tuple[str, list[Type], dict[str, Any], str]] = [
    ("add", [Type("f32", (2,)), Type("i32", (2,))], {}, "different dtypes"),
    ("add", [Type("f32", (2,)), Type("f32", (3,))], {}, "do not broadcast"),
    ("exp", [Type("i32", (2,))], {}, "needs a float"),
    ("logical_not", [Type("f32", (2,))], {}, "needs bool"),
    ("where", [Type("f32", (2,))] * 3, {}, "not bool"),
    ("reshape", [Type("f32", (6,))], {"shape": (4,)}, "6 elements"),
    ("transpose", [Type("f32", (2, 3))], {"order": (0, 0)}, "no order"),
    ("broadcast", [Type("f32", (2,))], {"shape": (3,)}, "broadcast"),
    ("slice", [Type("f32", (4,))], {"axis": 0, "start": 3, "stop": 9}, "slice 3:9"),
    ("slice", [Type("f32", (4,))], {"axis": 2, "stop": 1}, "axis 2"),
    ("slice", [Type("f32", (4,))], {"axis": 0, "stop": 4, "step": 0}, "step 0"),
    ("concat", [Type("f32", (2, 3)), Type("f32", (2, 4))], {"axis": 0}, "parts differ"),
    ("take", [Type("f32", (2,)), Type("f32", (2,))], {}, "not an integer"),
    ("gather", [Type("f32", (2, 2)), Type("i64", (3, 1))], {"axis": 1}, "does not fit"),
    ("sum", [Type("f32", (2,))], {}, "needs the attribute 'axes'"),
    ("matmul", [Type("f32", (2, 3)), Type("f32", (4, 2))], {}, "inner sizes"),
    ("linear", [Type("f32", (2, 3)), Type("f32", (4, 2))], {}, "3 features"),
    ("linear", [Type("f32", (2, 3)), Type("f32", (4, 3))], {"activation": "swish"}, "swish"),
    ("layer_norm", [Type("f32", (2, 3)), Type("f32", (4,)), Type("f32", (3,))], {}, "rows of 3"),
    ("attention", [Type("f32", (1, 2, 3))] * 3, {"scale": 1.0}, "needs q, k, v"),
    ("qkv_attention", [Type("f32", (1, 2, 10))], {"heads": 2, "scale": 1.0}, "no multiple"),
    ("top_k", [Type("f32", (2, 3))], {"k": 4}, "top 4"),
    ("shuffle", [Type("f32", (2,)), Type("i64", (2,))], {}, "not i32"),
    ("conv2d", [Type("f32", (1, 1, 2, 2)), Type("f32", (1, 1, 3, 3))], {}, "does not fit"),
    ("ternary_matmul", [Type("f32", (2,)), Type("i8", (2, 2)), Type("f32", ())], {}, "not ternary"),
    ("ternary_dot", [Type("u8", (2,)), Type("ternary", (2, 2))], {}, "not i8"),
    ("combine", [Type("f32", (2, 3)), Type("f32", (3,))], {}, "needs values"),
    (
        "rotate",
        [Type("f32", (1, 6)), Type("f32", (4, 3, 2, 2)), Type("i64", (2,))],
        {"lanes": 2},
        "no multiple of 2 lanes",
    ),
]


@pytest.mark.parametrize(("op", "types", "attributes", "message"), REFUSED)
def test_misfits_are_refused(
    op: str, types: list[Type], attributes: dict[str, Any], message: str
) -> None:
    """Operands that do not fit raise InvalidGraph that says what is wrong and where."""
    operands = [input_node(f"x{i}", type) for i, type in enumerate(types)]
    with pytest.raises(InvalidGraph, match=message) as caught:
        make(op, *operands, source="vit.py:12", **attributes)
    assert caught.value.where == "vit.py:12"


def test_an_unknown_op_names_the_nearest() -> None:
    """A misspelt op is refused with the op that was probably meant."""
    with pytest.raises(UnknownName, match="unknown op 'linaer'") as caught:
        make("linaer")
    assert "linear" in str(caught.value.help)
