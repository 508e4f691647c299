"""Ops on torch tensors: what the interpreter computes, for special values too, and no waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from butterflyc.compiler.ir import Graph, Type, input_node, make, result, type_of
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.ops import butterfly, deep_layer, elementwise, layer, linear, shape
from butterflyc.compiler.ir.types import STORAGE
from butterflyc.compiler.run import torch_ops_elementwise
from butterflyc.compiler.run.torch_ops import TABLE, evaluate, tensor_of
from butterflyc.compiler.run.torch_types import TORCH

from ..ir.samples import op_samples, values

Array = np.ndarray
Call = tuple[str, list[Type], dict[str, Any]]
FAMILIES = (elementwise, shape, linear, butterfly, layer, deep_layer)
SAMPLES = op_samples()
CALLS = [
    pytest.param((op, types, attributes), id=f"{op}-{i}")
    for op in TABLE
    for i, (types, attributes) in enumerate(SAMPLES[op])
]
# Round-off of a few steps.
LIMITS = {"f64": 1e-12, "f32": 3e-6, "f16": 4e-3, "bf16": 3e-2}
INF, NAN = np.inf, np.nan
SPECIAL = np.float32(
    [NAN, INF, -INF, 0, -0.0, 1, -1, 2.5, -0.5, 3e38, -3e38, 1e-40, 100, -100, 88.5, -88.5]
)
UNARY = [entry.name for entry in elementwise.OPS if entry.operands == "x" and not entry.attributes]
BINARY = [entry.name for entry in elementwise.OPS if entry.operands in ("a b", "y x")]


def in_halves(call: Call, dtype: str) -> Call:
    """The call with every float as ``dtype``."""
    op, types, attributes = call
    return op, [t.with_dtype(dtype) if t.is_float else t for t in types], attributes


def graph_of(call: Call) -> Graph:
    op, types, attributes = call
    inputs = tuple(input_node(f"x{i}", type) for i, type in enumerate(types))
    node = make(op, *inputs, **attributes)
    several = tuple(result(node, i) for i in range(len(node.types)))
    return Graph("g", inputs, several if len(several) > 1 else (node,), {})


def as_array(x: torch.Tensor) -> Array:
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def found_and_wanted(call: Call, operands: Sequence[Array]) -> list[tuple[Array, Array, Type]]:
    """Each result by torch and by the interpreter."""
    graph = graph_of(call)
    wanted = interpret(graph, *operands)
    node = graph.outputs[0].operands[0] if len(graph.outputs) > 1 else graph.outputs[0]
    tensors = [tensor_of(x, t) for x, t in zip(operands, call[1], strict=True)]
    found = evaluate(node, tensors)
    for x, type in zip(found, node.types, strict=True):
        assert (tuple(x.shape), x.dtype) == (type.shape, TORCH[type.dtype])
    return [(as_array(x), y, t) for x, y, t in zip(found, wanted, node.types, strict=True)]


def check(call: Call, *operands: Array, limit: float | None = None) -> None:
    """Torch gives what the interpreter does: integers to the bit, floats to round-off."""
    for found, wanted, type in found_and_wanted(call, operands):
        near = limit or LIMITS.get(type.dtype, 0)
        np.testing.assert_allclose(found, wanted, rtol=near, atol=near, equal_nan=True)


def check_one(op: str, *operands: Array, **attributes: Any) -> None:
    """`check` of an op on arrays that say their types."""
    check((op, [type_of(x) for x in operands], attributes), *operands)


def rounded(x: Array, type: Type) -> Array:
    """Random data as values of bf16, where ``type`` is that."""
    return elementwise.cast(x, "bf16") if type.dtype == "bf16" else x


def test_every_floating_op_is_in_the_table() -> None:
    """The table has the ops of all families but integer mode's, and every activation."""
    assert set(TABLE) == {entry.name for family in FAMILIES for entry in family.OPS}
    assert set(torch_ops_elementwise.ACTIVATIONS) == set(elementwise.ACTIVATIONS)
    assert set(TORCH) == set(STORAGE)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("call", CALLS)
def test_samples(call: Call, dtype: str) -> None:
    """On random operands of each precision, an op gives what the interpreter gives."""
    call = in_halves(call, dtype)
    rng = np.random.default_rng(3)
    check(call, *(rounded(values(t, rng), t) for t in call[1]), limit=LIMITS[dtype])


class OnDevice(TorchDispatchMode):
    """Refuses tensors of the host: a GPU would wait for their copy."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for x in tree_leaves((args, kwargs)):
            assert not isinstance(x, torch.Tensor) or x.device.type == "meta", function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", CALLS)
def test_nothing_waits_for_a_device(call: Call) -> None:
    """On tensors that have a device but no data, an op gives its shape, on that device."""
    graph = graph_of(call)
    node = graph.outputs[0].operands[0] if len(graph.outputs) > 1 else graph.outputs[0]
    with FakeTensorMode(), OnDevice():
        tensors = [torch.empty(t.shape, dtype=TORCH[t.dtype], device="meta") for t in call[1]]
        for x, type in zip(evaluate(node, tensors), node.types, strict=True):
            assert (x.device.type, tuple(x.shape)) == ("meta", type.shape)


@pytest.mark.parametrize("op", [op for op in UNARY if op != "logical_not"])
def test_functions_of_special_values(op: str) -> None:
    """A function of NaN, infinity or a huge number is the interpreter's, in any position."""
    for shift in range(9):  # libraries compute the ends of a vector by other code
        check_one(op, np.roll(np.tile(SPECIAL, 3), shift))


@pytest.mark.parametrize("op", [op for op in BINARY if not op.startswith("logical")])
def test_special_values_in_pairs(op: str) -> None:
    """An op of two operands is the interpreter's for every pair of special values."""
    check_one(op, SPECIAL[:, None], SPECIAL)


@pytest.mark.parametrize("op", ["add", "mul", "maximum", "minimum", "equal", "logical_and"])
def test_bools_in_pairs(op: str) -> None:
    """On bools, sums are `or`, products are `and`."""
    flags = np.array([False, True])
    check_one(op, flags[:, None], flags)


INTEGERS = [np.int8, np.uint8, np.int16, np.int32, np.int64]


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=40)
@given(st.data())
def test_integers_wrap_and_truncate(dtype: type, data: st.DataObject) -> None:
    """Integer arithmetic is modulo 2**bits; quotients truncate, by zero they are zero."""
    ends = np.iinfo(dtype)
    edge = st.sampled_from([ends.min, ends.max, 0, 1, ends.max - 1, ends.min + 1])
    numbers = arrays.arrays(dtype, 6, elements=edge | st.integers(int(ends.min), int(ends.max)))
    a, b = data.draw(numbers), data.draw(numbers | st.just(np.full(6, -1).astype(dtype)))
    with np.errstate(all="ignore"):
        for op in ("add", "sub", "mul", "div", "maximum", "minimum", "less", "equal"):
            check_one(op, a, b)
        for op in ("neg", "abs", "sign", "relu"):
            check_one(op, a)
        for op in ("sum", "max", "min", "mean"):
            check_one(op, a.reshape(2, 3), axes=(1,))
        check_one("clip", a, low=1.9, high=6)
        check_one("argmax", a, axis=0)
        check_one("matmul", a.reshape(2, 3), b.reshape(3, 2))
        check_one("linear", a.reshape(2, 3), b.reshape(2, 3), b[:2])
        check_one("conv2d", a.reshape(1, 1, 2, 3), b.reshape(1, 1, 2, 3)[..., :2], b[:1])


@pytest.mark.parametrize("axes", [(), (0,), (-1,), (0, 1)])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_reductions_of_special_values(op: str, keep: bool, axes: tuple[int, ...]) -> None:
    """Along any axes, or none, NaN and infinity go through a reduction as in the interpreter."""
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    x[0, 1], x[1, 2], x[2, 3], x[2, 4] = NAN, INF, INF, -INF
    check_one(op, x, axes=axes, keep=keep)
    check_one(op, x > 0, axes=axes, keep=keep)


def rows(*sizes: int) -> Array:
    """Rows of few different numbers, with NaN and infinities in some."""
    x = np.random.default_rng(1).integers(-2, 3, sizes).astype(np.float32)
    x[0], x[1], x[2] = -INF, INF, NAN
    x[3, ..., 0], x[4, ..., -1], x[5, ..., 1], x[6, ..., 0] = INF, NAN, -INF, -0.0
    x[6, ..., 1:3] = 0
    x[7, ..., 1:3] = NAN, INF
    return x


@pytest.mark.parametrize("size", [3, 8, 70])
def test_order_of_equals_and_of_nan(size: int) -> None:
    """Of equals the first wins; NaN is last in top_k and first in argmax."""
    x = rows(11, size)
    for k in (1, 2, size):
        check_one("top_k", x, k=k)
    check_one("argmax", x, axis=1)
    check_one("argmax", x, axis=-1, keep=True)
    check_one("argmax", x > 0, axis=0)


@pytest.mark.parametrize("size", [3, 8, 70])
def test_rows_of_special_values(size: int) -> None:
    """Softmax, norms and products of rows with NaN or infinity are the interpreter's."""
    x, rng = rows(11, size), np.random.default_rng(2)
    w = rng.standard_normal((5, size)).astype(np.float32)
    check_one("softmax", x, axis=-1)
    check_one("softmax", x, axis=0)
    check_one("layer_norm", x, w[0], w[1])
    check_one("linear", x, w, w[:, 0], activation="gelu")
    check_one("matmul", x, np.ascontiguousarray(w.T))
    check_one("quantize_rows", x)
    check_one("shuffle", x, np.int32([1, -1, 0]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_attention_of_special_values(causal: bool, scale: float) -> None:
    """A query or value with NaN or infinity reaches just the rows that it reaches by definition."""
    q, k, v = (rows(11, 4)[None, None, 3:] for _ in range(3))
    with np.errstate(all="ignore"):
        check_one("attention", q, np.nan_to_num(k, posinf=1), v, scale=scale, causal=causal)
        check_one("attention", q, np.ones_like(k), np.ones_like(v), scale=scale, causal=causal)


def test_negative_numbers_count_from_the_end() -> None:
    """take and gather read element -1 as the last, whatever the integer type of the index."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for dtype in (np.int8, np.int32, np.int64):
        check_one("take", x, np.array([[-1, 0], [2, -3]], dtype), axis=1)
        check_one("take", x, np.array(-2, dtype), axis=-1)
        check_one("gather", x, np.array([[[-1, 0, -4]], [[3, 1, -2]]], dtype), axis=-1)
    check_one("take", x, np.uint8([1, 0]), axis=0)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64", "i8", "i64", "bool"])
@given(arrays.arrays(np.float32, 7, elements=st.floats(-100, 100, width=32)))
def test_casts(dtype: str, x: Array) -> None:
    """Casts round to nearest even, and cut towards zero for integers."""
    graph = graph_of(("cast", [Type("f32", x.shape)], {"dtype": dtype}))
    (wanted,) = interpret(graph, x)
    (found,) = evaluate(graph.outputs[0], [tensor_of(x, Type("f32", x.shape))])
    np.testing.assert_array_equal(as_array(found), wanted)


def test_casts_of_what_halves_do_not_hold() -> None:
    """Too large a number becomes infinity in f16, NaN stays NaN, and is true."""
    check_one("cast", SPECIAL, dtype="f16")
    check_one("cast", SPECIAL, dtype="bf16")
    check_one("cast", SPECIAL, dtype="bool")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_products_of_halves_are_summed_in_float32(dtype: str) -> None:
    """A sum of many halves is rounded once, not at each of its terms."""
    x, w = (np.ones((rows, 4096), np.float32) for rows in (2, 3))
    w[0, ::2] = 2.0**-12
    halves = [v.astype(STORAGE[dtype]) for v in (x, w)]
    types = [Type(dtype, v.shape) for v in halves]
    check(("linear", types, {}), *halves, limit=1e-7 if dtype == "f16" else 1e-6)
    check(("matmul", [types[0], Type(dtype, (4096, 3))], {}), halves[0], halves[1].T, limit=1e-6)


def test_operands_of_different_precision() -> None:
    """A weight in another precision is taken as it is, and the result has the rows' precision."""
    rng = np.random.default_rng(4)
    for other in ("f64", "f32", "i8", "f16"):
        for lead in ("f32", "f16"):
            types = [Type(lead, (2, 6)), Type(other, (3, 6)), Type("f32", (3,))]
            operands = [values(t, rng) for t in types]
            check(("linear", types, {"activation": "relu"}), *operands)


CODES = st.tuples(st.integers(1, 4), st.sampled_from([1, 7, 300]), st.integers(0, 99))


@given(CODES, st.sampled_from([7, 8]))
def test_codes_are_equal_to_the_bit(sizes: tuple[int, int, int], bits: int) -> None:
    """Codes of rows, and sums of their products, are the interpreter's, in every precision."""
    count, width, seed = sizes
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, width)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    x[0, : width // 2] = 0
    for dtype in ("f32", "f16", "bf16"):
        type = Type(dtype, x.shape)
        half = rounded(x, type).astype(STORAGE[dtype])
        ((codes, wanted, _), (scales, exact, _)) = found_and_wanted(
            ("quantize_rows", [type], {"bits": bits}), [half]
        )
        np.testing.assert_array_equal(codes, wanted)
        np.testing.assert_array_equal(scales, exact)
        w = rng.integers(-1, 2, (5, width)).astype(np.int8)
        types = [Type("i8", codes.shape), Type("ternary", w.shape)]
        check(("ternary_dot", types, {"bits": bits}), codes, w)


def test_sums_of_long_rows_are_exact() -> None:
    """Rows so long that float32 would lose units are summed exactly."""
    width = 2**17 + 1
    codes, w = np.full((1, width), 127, np.int8), np.ones((1, width), np.int8)
    check(("ternary_dot", [Type("i8", codes.shape), Type("ternary", w.shape)], {}), codes, w)


LAYERS = SAMPLES["butterfly_layer"]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers(number: int, bits: int, dtype: str) -> None:
    """A layer rounds its rows to its dtype where the interpreter does."""
    types, attributes = LAYERS[number]
    attributes = {**attributes, "dtype": dtype, "activation_bits": bits}
    types = [replace(types[0], shape=(33, 8)), *types[1:5], Type("f32", (33, 2)), *types[6:]]
    types[6] = Type("i64", (33, 2))
    rng = np.random.default_rng(5)
    check(("butterfly_layer", types, attributes), *(values(t, rng) for t in types), limit=1e-3)
