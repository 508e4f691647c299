"""half_products: products on 16-bit floats, within the error that the pass states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import UsageError
from butterflyc.compiler.ir import (
    Graph,
    Node,
    Type,
    constant,
    input_node,
    make,
    parse_graph,
    result,
    verify,
)
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.kernels.layout import pack
from butterflyc.passes.force_routing import ForceRouting
from butterflyc.passes.fuse_layers import FuseLayers
from butterflyc.passes.half_products import HALVED, LARGEST, HalfProducts
from butterflyc.passes.narrow_constants import NarrowConstants

from ..digits import digits_model
from .graphs import Builder, Mixture, Rotation, build, mixtures, some
from .meaning import Golden, check_golden, count, inputs_of
from .test_fuse_layers import fused

Array = np.ndarray
BUDGETS = {"f16": 2e-3, "bf16": 1.6e-2}
DTYPES = st.sampled_from(sorted(BUDGETS))
# Of all exponents that f16 has, but for those whose sums it might not hold.
SIZES = st.floats(2.0**-14, 64, width=32)
NUMBERS = SIZES | SIZES.map(lambda x: -x) | st.just(0.0)


def graph_of(b: Builder, *outputs: Node) -> Graph:
    inputs = dict.fromkeys(n for n in Graph("g", (), outputs).nodes if n.op == "input")
    return Graph("g", tuple(inputs), outputs, b.store)


def halved(graph: Graph, dtype: str = "f16") -> Graph:
    """The graph behind the pass, checked: valid, readable, and the same a second time."""
    after = HalfProducts(dtype)(graph)
    verify(after)
    assert parse_graph(str(after), after.constants) == after
    assert HalfProducts(dtype)(after) is after
    return after


def kinds(graph: Graph) -> dict[str, str]:
    """The dtype of each product, by its name in the graph before."""
    products = [node for node in graph.nodes if node.op in HALVED]
    return {n.name.removesuffix(f".{n.type.dtype}"): n.type.dtype for n in products}


def tokens(*shape: int) -> Node:
    return input_node("x", Type("f32", shape))


def test_golden(golden: Golden) -> None:
    """A router stays; products behind one another have no casts between them; a bias is cast."""
    mixture = build(Mixture(k=1, rotation_in=Rotation(8, 1), rotation_out=None))
    b = Builder(None)
    qkv = make("linear", tokens(1, 3, 8), b.numbers("w", 24, 8), b.numbers("bias", 24), name="qkv")
    y = make("qkv_attention", qkv, heads=2, scale=0.5, name="attended")
    y = make("linear", make("reshape", y, shape=(3, 8)), b.numbers("w_out", 8, 8), name="out")
    check_golden(golden, HalfProducts(), mixture, graph_of(b, y))


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "linear": ((3, 5), (4, 5), (4,)),
    "matmul": ((2, 3, 5), (5, 2)),
    "conv2d": ((1, 2, 3, 3), (3, 2, 2, 2), (3,)),
}


@pytest.mark.parametrize("op", SHAPES)
@given(DTYPES, st.data())
def test_error_is_within_the_budget(op: str, dtype: str, data: st.DataObject) -> None:
    """No sum is off by more than the stated share of the magnitudes that are added in it."""
    operands = [data.draw(arrays.arrays(np.float32, s, elements=NUMBERS)) for s in SHAPES[op]]
    inputs = tuple(input_node(f"x{i}", Type("f32", x.shape)) for i, x in enumerate(operands))
    graph = Graph("g", inputs, (make(op, *inputs),), {})
    after = halved(graph, dtype)
    exact, found, magnitudes = (
        interpret(g, *(map(np.abs, operands) if g is magnitude else operands), precision="f64")[0]
        for g, magnitude in ((graph, None), (after, None), (graph, graph))
    )
    assert after.outputs[0].type == graph.outputs[0].type
    # Results that are smaller than f16 holds exactly are off by half of its smallest step.
    assert (np.abs(found - exact) <= BUDGETS[dtype] * magnitudes + 2.0**-25).all()


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
@pytest.mark.parametrize("dtype", BUDGETS)
def test_activations_keep_to_the_budget(dtype: str, activation: str) -> None:
    """An activation makes no more of the error than its slope, which is 1.13 at most."""
    b = Builder(np.random.default_rng(0))
    y = make("linear", tokens(50, 64), b.numbers("w", 32, 64), b.numbers("b", 32))
    graph = graph_of(b, make("linear", *y.operands, activation=activation))
    x = inputs_of(graph)[0]
    (exact,), (found,) = (interpret(g, x, precision="f64") for g in (graph, halved(graph, dtype)))
    w, bias = (np.abs(graph.value(n)) for n in graph.nodes if n.op == "constant")
    assert (np.abs(found - exact) <= BUDGETS[dtype] * (np.abs(x) @ w.T + bias)).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", BUDGETS)
def test_attention_of_random_rows(dtype: str, causal: bool) -> None:
    """On random rows, attention in either form is within the budget of its largest values."""
    b = Builder(np.random.default_rng(0))
    parts = [input_node(name, Type("f32", (2, 2, 9, 8))) for name in "qkv"]
    apart = make("attention", *parts, scale=0.35, causal=causal)
    joined = make("qkv_attention", tokens(2, 9, 48), heads=2, scale=0.35, causal=causal)
    graph = graph_of(b, apart, joined)
    after = halved(graph, dtype)
    assert count(after)["cast"] == 4 + 2
    inputs = inputs_of(graph)
    before, behind = (interpret(g, *inputs, precision="f64") for g in (graph, after))
    for exact, found in zip(before, behind, strict=True):
        assert np.abs(found - exact).max() <= BUDGETS[dtype] * np.abs(inputs[2]).max()


@some
@given(mixtures(), DTYPES, st.integers(0, 99))
def test_mixtures(mixture: Mixture, dtype: str, seed: int) -> None:
    """Experts are chosen as before, and each product is off by no more than its budget."""
    graph = build(mixture, np.random.default_rng(seed))
    after = halved(graph, dtype)
    assert kinds(after) == {n: "f32" if n == "scores" else dtype for n in kinds(graph)}
    before, behind = dict[str, Any](), dict[str, Any]()
    for g, seen in ((graph, before), (after, behind)):
        interpret(
            g,
            *inputs_of(graph),
            precision="f64",
            observe=lambda node, value, seen=seen: seen.update({node.name: value}),
        )
    np.testing.assert_array_equal(before["experts"], behind["experts"])
    for node in graph.nodes:
        if node.op == "linear":
            x, w, *bias = (np.abs(before[operand.name]) for operand in node.operands)
            magnitudes = x @ w.T + sum(bias)
            off = np.abs(before[node.name] - behind[node.name])
            assert (off <= BUDGETS[dtype] * magnitudes + 2.0**-24 * w.sum(-1)).all()


@pytest.mark.parametrize("dtype", BUDGETS)
def test_a_model(dtype: str) -> None:
    """The trained model's logits stay near where it routes alike; only routers stay float32."""
    images = torch.rand(8, 1, 8, 8, generator=torch.manual_seed(0))
    graph = capture(digits_model(turned=False), (images,)).graph
    after = halved(graph, dtype)
    routers = [name for name, kind in kinds(after).items() if kind == "f32"]
    assert len(routers) == count(graph)["top_k"]
    assert all("gate" in name for name in routers)
    routing: list[Array] = []

    def watch(node: Node, value: Any) -> None:
        if node.op == "top_k":
            routing.append(value[1])

    (exact,) = interpret(graph, images.numpy(), observe=watch)
    (found,) = interpret(ForceRouting()(after), images.numpy(), *routing)
    assert found.dtype == np.float32
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error <= BUDGETS[dtype]


def test_what_something_is_ranked_by_stays() -> None:
    """Also behind a softmax, a bias or a move; a product in front of a router does not stay."""
    b = Builder(np.random.default_rng(0))
    x = make("linear", tokens(3, 4), b.numbers("a", 4, 4), name="first")
    scores = make("linear", x, b.numbers("b", 6, 4), name="router")
    biased = make("add", make("softmax", scores), b.numbers("c", 6))
    best = result(make("top_k", make("reshape", biased, shape=(3, 1, 6)), k=2), 1)
    head = make("linear", x, b.numbers("d", 5, 4), name="head")
    other = make("linear", x, b.numbers("e", 5, 4), name="other")
    graph = graph_of(b, best, make("argmax", head, axis=-1), other)
    wanted = {"first": "f16", "router": "f32", "head": "f32", "other": "f16"}
    assert kinds(halved(graph)) == wanted


def test_a_ranked_ternary_product_hides_what_is_in_front() -> None:
    """Behind a product of another kind, a dense product is one like any other."""
    b = Builder(np.random.default_rng(0))
    x = make("linear", tokens(3, 4), b.numbers("a", 4, 4), name="first")
    y = make("ternary_matmul", x, b.ternary("w", 6, 4), b.numbers("s"))
    assert kinds(halved(graph_of(b, make("argmax", y, axis=-1)))) == {"first": "f16"}


@pytest.mark.parametrize("large", [65505.0, 1e30, np.inf])
def test_a_weight_that_halves_do_not_hold_stays(large: float) -> None:
    """Its product stays float32 in f16, and the next one reads it so; bf16 takes all but inf."""
    b = Builder(np.random.default_rng(0))
    w = np.ones((4, 4))
    w[1, 2] = -large
    x = make("linear", tokens(3, 4), b.constant("w", w), name="large")
    graph = graph_of(b, make("linear", x, b.numbers("v", 4, 4), name="next"))
    assert kinds(halved(graph)) == {"large": "f32", "next": "f16"}
    held = "f32" if large == np.inf else "bf16"
    assert kinds(halved(graph, "bf16")) == {"large": held, "next": "bf16"}


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_largest_weight_is_finite(dtype: str) -> None:
    """The largest weight that is taken stays what it is."""
    b = Builder(np.random.default_rng(0))
    weight = b.constant("w", np.full((2, 3), LARGEST[dtype]))
    after = halved(graph_of(b, make("linear", tokens(4, 3), weight)), dtype)
    (w,) = (after.value(n) for n in after.nodes if n.op == "constant")
    np.testing.assert_array_equal(w.astype(np.float64), LARGEST[dtype])


def test_weights_are_converted_and_not_cast() -> None:
    """A constant of the graph is a constant in 16 bits; its float32 is kept by who reads it."""
    b = Builder(np.random.default_rng(0))
    w = b.numbers("w", 4, 4)
    y = make("linear", tokens(3, 4), w)
    for dtype, storage in (("f16", np.float16), ("bf16", np.float32)):
        after = halved(graph_of(b, y, make("add", w, w)), dtype)
        assert count(after)["cast"] == 2
        types = {n.type.dtype: after.value(n) for n in after.nodes if n.op == "constant"}
        assert set(types) == {dtype, "f32"}
        assert types[dtype].dtype == storage


def test_products_of_one_operand_share_its_cast() -> None:
    """x is rounded once for three products."""
    b = Builder(np.random.default_rng(0))
    x = make("exp", tokens(3, 4))
    outputs = [make("linear", x, b.numbers(f"w{i}", 4, 4)) for i in range(3)]
    assert count(halved(graph_of(b, *outputs)))["cast"] == 1 + 3


def test_moves_between_products_move_halves() -> None:
    """Heads cut out of a product reach attention without a cast; what is computed does not."""
    b = Builder(np.random.default_rng(0))
    x = make("linear", tokens(2, 3, 4), b.numbers("w", 12, 4))
    q, k, v = (
        make("reshape", make("slice", x, axis=2, start=i, stop=i + 4), shape=(2, 1, 3, 4))
        for i in (0, 4, 8)
    )
    graph = graph_of(b, make("attention", q, k, make("concat", v, axis=0), scale=0.5))
    after = halved(graph)
    assert count(after)["cast"] == 2
    assert {n.type.dtype for n in after.nodes if n.op in ("slice", "reshape", "concat")} == {"f16"}
    scaled = graph_of(b, make("attention", make("neg", q), k, v, scale=0.5))
    assert count(halved(scaled))["cast"] == 2 + 2


def test_rounding_twice_is_rounding_once() -> None:
    """Casts that meet cancel, f16 to f32 to f16; a value that is not of that dtype is cast."""
    b = Builder(np.random.default_rng(0))
    x = tokens(3, 4)
    there = make("cast", make("cast", x, dtype="f16"), dtype="f32")
    y = make("linear", there, b.numbers("w", 4, 4))
    assert count(halved(graph_of(b, y), "f16"))["cast"] == 1 + 1
    assert count(halved(graph_of(b, y), "bf16"))["cast"] == 2 + 2


def test_other_products_are_left_alone() -> None:
    """Products in double precision, of integers, of packed weights, and those of experts."""
    b = Builder(np.random.default_rng(0))
    for dtype in ("f64", "i32"):
        x = input_node("x", Type(dtype, (3, 4)))
        graph = graph_of(b, make("matmul", x, make("transpose", x, order=(1, 0))))
        assert HalfProducts()(graph) is graph
    packed = pack("panel4", np.ones((4, 4), np.float32))
    panel = constant(b.store, packed, "panel", Type("f32", (4, 4), layout="panel4"))
    graph = graph_of(b, make("linear", tokens(3, 4), panel))
    assert HalfProducts()(graph) is graph
    mixed = make("linear", tokens(3, 4), b.ternary("t", 4, 4))
    y = make("ternary_matmul", mixed, b.ternary("w", 6, 4), b.numbers("s"))
    graph = graph_of(b, y)
    assert HalfProducts()(graph) is graph


def test_other_dtypes_are_refused() -> None:
    """A dtype that has no tensor cores is refused with those that are known."""
    with pytest.raises(UsageError, match=r"products of f8(.|\n)*half_products takes f16 or bf16"):
        HalfProducts("f8")
    assert not HalfProducts().exact


@some
@given(DTYPES, st.integers(0, 99))
def test_layers_compute_in_the_dtype(dtype: str, seed: int) -> None:
    """A whole layer has its dtype, pairs of f16 and w_down of the dtype, and means nearly the same.

    The error is of the norm of a result whose terms add up as random numbers do.
    """
    mixture = Mixture(tokens=8, width=16, hidden=32, rotation_in=Rotation(16), down="float")
    mixture = replace(mixture, rotation_out=Rotation(32))
    graph = fused(build(mixture, np.random.default_rng(seed)))
    before = NarrowConstants()(FuseLayers()(graph))
    after = halved(before, dtype)
    (layer,) = (node for node in after.nodes if node.op == "butterfly_layer")
    assert layer["dtype"] == dtype
    assert [layer.operands[i].type.dtype for i in (1, 7, 8)] == ["f16", "f16", dtype]
    (wanted,), (got,) = (interpret(g, *inputs_of(before, seed)) for g in (before, after))
    assert np.linalg.norm(got - wanted) <= BUDGETS[dtype] * np.linalg.norm(wanted)
