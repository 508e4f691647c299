"""canonicalize: one form for what can be written in several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, result
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.base import pruned
from butterflyc.passes.canonicalize import Canonicalize

from .graphs import Builder, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count, inputs_of

Body = Callable[[Builder, Node], Node]
SHAPE = (2, 4, 4)


def graph_of(
    body: Body, dtype: str = "f32", shape: tuple[int, ...] = SHAPE, exact: bool = False
) -> Graph:
    b = Builder(None if exact else np.random.default_rng(5))
    x = input_node("x", Type(dtype, shape))
    return Graph("g", (x,), (body(b, x),), b.store)


def transposed(x: Node, *order: int) -> Node:
    return make("transpose", x, order=order)


def softmax(b: Builder, x: Node) -> Node:
    powers = make("exp", make("sub", x, make("max", x, axes=(-2,), keep=True)))
    return make("div", powers, make("sum", powers, axes=(1,), keep=True))


def layer_norm(b: Builder, x: Node, style: str = "div") -> Node:
    centred = make("sub", x, make("mean", x, axes=(2,), keep=True))
    two = b.constant("two", np.array(2))
    square = make("pow", centred, two) if style == "pow" else make("mul", centred, centred)
    variance = make("mean", square, axes=(-1,), keep=True)
    variance = make("add", variance, b.constant("eps", np.array(0.125)))
    if style == "div":
        y = make("div", centred, make("sqrt", variance))
    else:
        y = make("mul", make("rsqrt", variance), centred)
    return make("add", make("mul", y, b.numbers("weight", 4)), b.numbers("bias", 1, 4))


def patches(b: Builder, x: Node) -> Node:
    image = make("reshape", x, shape=(1, 2, 4, 4))
    kernel = b.numbers("kernel", 3, 2, 2, 4)
    return make("conv2d", image, kernel, b.numbers("bias", 3), stride=(2, 4), name="patches")


def dense(b: Builder, x: Node) -> Node:
    weight = transposed(b.numbers("w", 5, 4), 1, 0)
    y = make("add", make("matmul", x, weight), b.numbers("bias", 1, 5))
    return make("gelu", y, name="hidden")


# what is written -> the ops that are left, constants and the input apart
FORMS: dict[str, tuple[Body, list[str]]] = {
    "matmul by a constant, bias, activation": (dense, ["linear"]),
    "reshapes": (lambda b, x: make("reshape", make("reshape", x, shape=(32,)), shape=SHAPE), []),
    "two transposes": (lambda b, x: transposed(transposed(x, 2, 0, 1), 2, 0, 1), ["transpose"]),
    "transposes that cancel": (lambda b, x: transposed(transposed(x, 2, 0, 1), 1, 2, 0), []),
    "an axis of size 1 moved": (
        lambda b, x: transposed(make("reshape", x, shape=(8, 1, 4)), 1, 0, 2),
        ["reshape"],
    ),
    "whole slices": (lambda b, x: make("slice", x, axis=1, stop=4), []),
    "a cast to itself": (lambda b, x: make("cast", x, dtype="f32"), []),
    "a broadcast that repeats nothing": (lambda b, x: make("broadcast", x, shape=SHAPE), []),
    "two broadcasts": (
        lambda b, x: make("broadcast", make("broadcast", x, shape=(1, *SHAPE)), shape=(3, *SHAPE)),
        ["broadcast"],
    ),
    "a broadcast operand": (
        lambda b, x: make("mul", x, make("broadcast", b.numbers("c", 4), shape=SHAPE)),
        ["mul"],
    ),
    "a concat of one": (lambda b, x: make("concat", x, axis=0), []),
    "times 1": (lambda b, x: make("mul", b.constant("one", np.ones(())), x), []),
    "divided by 1": (lambda b, x: make("div", x, b.constant("one", np.ones(4))), []),
    "minus 0": (lambda b, x: make("sub", x, b.constant("zero", np.zeros(()))), []),
    "minus a constant": (lambda b, x: make("sub", x, b.numbers("c", 4)), ["add"]),
    "divided by 8": (lambda b, x: make("div", x, b.constant("c", np.array(8))), ["mul"]),
    "negated twice": (lambda b, x: make("neg", make("neg", x)), []),
    "softmax": (softmax, ["softmax"]),
    "layer norm": (layer_norm, ["layer_norm"]),
    "layer norm by rsqrt": (lambda b, x: layer_norm(b, x, "pow"), ["layer_norm"]),
    "patches": (patches, ["linear", *["reshape"] * 2, *["transpose"] * 2]),
    "the same twice": (lambda b, x: make("add", make("exp", x), make("exp", x)), ["add", "exp"]),
    "constants": (
        lambda b, x: make("add", x, make("cos", make("mul", b.numbers("a", 4), b.numbers("c", 1)))),
        ["add"],
    ),
    "a result of constants": (
        lambda b, x: make("take", x, result(make("top_k", b.numbers("a", 4), k=2), 1), axis=2),
        ["take"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "wanted"), FORMS.values(), ids=FORMS)
def test_forms(body: Body, wanted: list[str]) -> None:
    """Each way of writing ends in its one form."""
    # Constants are computed in float32, as the model does, so compare in that precision.
    graph = graph_of(body)
    plain = Canonicalize()(graph)
    left = sorted(node.op for node in plain.nodes if node.op not in ("input", "constant"))
    assert left == wanted
    assert_same_meaning(graph, plain, limit=1e-6)


def remainder(b: Builder, x: Node) -> Node:
    image = make("reshape", x, shape=(1, 2, 4, 4))
    return make("conv2d", image, b.numbers("kernel", 3, 2, 3, 3), stride=(3, 3))


def activation_and_raw(b: Builder, x: Node) -> Node:
    y = make("linear", x, b.numbers("w", 4, 4))
    return make("mul", make("gelu", y), y)


KEPT: dict[str, Body] = {
    "plus 0.0, which turns -0.0 into 0.0": lambda b, x: make(
        "add", x, b.constant("zero", np.zeros(4))
    ),
    "divided by 3": lambda b, x: make("div", x, b.constant("c", np.array(3))),
    "divided by what has no normal reciprocal": lambda b, x: make(
        "div", x, b.constant("c", np.array(2.0**127))
    ),
    "times 1 that repeats": lambda b, x: make("mul", x, b.constant("one", np.ones((3, 1, 1, 1)))),
    "windows that leave a rest": remainder,
    "a product read without its activation": activation_and_raw,
    "a bias a row": lambda b, x: make(
        "add", make("linear", x, b.numbers("w", 4, 4)), b.numbers("c", 4, 1)
    ),
    "a broadcast that makes the shape": lambda b, x: make(
        "exp", make("broadcast", x, shape=(3, *SHAPE))
    ),
    "exp over another sum": lambda b, x: make(
        "div", make("exp", x), make("sum", make("exp", x), axes=(1,), keep=True)
    ),
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_kept(body: Body) -> None:
    """What would change a bit, or cost more, is left as it is, but for equal nodes."""
    graph = graph_of(body)
    plain = Canonicalize()(graph)
    assert set(count(plain)) == set(count(graph))
    x = inputs_of(graph)
    assert np.array_equal(interpret(graph, *x), interpret(plain, *x))


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_signed_zeros_survive(value: float) -> None:
    """Dropping `x + c` and `x - c` keeps the sign of a zero in x."""
    for op in ("add", "sub"):
        graph = graph_of(lambda b, x, op=op: make(op, x, b.constant("c", np.array(value))))  # type: ignore[misc]
        zeros = np.copysign(np.zeros(SHAPE, np.float32), np.array([1, -1, 1, -1], np.float32))
        before, after = (interpret(g, zeros)[0] for g in (graph, Canonicalize()(graph)))
        assert np.array_equal(np.signbit(before), np.signbit(after))


def test_constants_are_computed_in_their_own_dtype() -> None:
    """A folded float32 is rounded at every step, as PyTorch would."""
    third = np.float32(1) / np.float32(3)
    graph = graph_of(
        lambda b, x: make("mul", x, make("mul", b.constant("a", third), b.constant("c", third)))
    )
    plain = Canonicalize()(graph)
    (folded,) = (plain.value(node) for node in plain.nodes if node.op == "constant")
    assert folded.dtype == np.float32
    assert folded == third * third


def test_a_large_broadcast_is_not_stored() -> None:
    """A constant that would be much larger than what it is made of stays an op."""
    graph = graph_of(
        lambda b, x: make("concat", x, make("broadcast", b.numbers("c", 4), shape=SHAPE), axis=0)
    )
    assert count(Canonicalize(limit=64)(graph))["broadcast"] == 1
    assert count(Canonicalize()(graph))["broadcast"] == 0


def test_integers_may_lose_their_zeros() -> None:
    """An integer has one zero only."""
    graph = graph_of(lambda b, x: make("add", x, b.constant("c", np.zeros(()), "i64")), "i64")
    assert [node.op for node in Canonicalize()(graph).nodes] == ["input"]


def test_names_and_sources_survive() -> None:
    """The product that is left has the name of the value and the line of the product."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", SHAPE))
    weight = transposed(b.numbers("w", 5, 4), 1, 0)
    y = make("matmul", x, weight, name="up", source="model.py:7")
    y = make("gelu", y, name="hidden", source="model.py:8")
    (node,) = Canonicalize()(Graph("g", (x,), (y,), b.store)).outputs
    assert (node.name, node.source, node.operands[1].name) == ("hidden", "model.py:7", "w")


def test_golden(golden: Golden) -> None:
    """A dense layer, a patch embedding and a softmax written out."""
    graphs = (graph_of(body, exact=True) for body in (dense, patches, softmax))
    check_golden(golden, Canonicalize(), *graphs)


UNARY = ("neg", "abs", "exp", "relu", "gelu", "tanh")


@st.composite
def random_graphs(draw: st.DrawFn) -> Graph:
    """A few ops after one another, on values and constants made before, in float64."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 99))))
    x = input_node("x", Type("f64", (4, 4)))
    values = [x, b.constant("a", np.arange(16).reshape(4, 4) / 8, "f64")]
    values.append(b.constant("one", np.ones(4), "f64"))
    for _ in range(draw(st.integers(1, 12))):
        one, two = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        op = draw(st.sampled_from(["move", "unary", "binary", "matmul", "linear"]))
        if op == "unary":
            values.append(make(draw(st.sampled_from(UNARY)), one))
        elif op == "binary":
            values.append(make(draw(st.sampled_from(["add", "sub", "mul"])), one, two))
        elif op == "move" and one.type.rank == 2:
            shape = draw(st.sampled_from([(1, 4, 4), (4, 4, 1), (4, 4)]))
            moved = make("reshape", one, shape=shape)
            order = draw(st.permutations(range(len(shape))))
            values.append(make("reshape", make("transpose", moved, order=order), shape=(4, 4)))
        elif one.type.rank == two.type.rank == 2 and op in ("matmul", "linear"):
            values.append(make(op, one, two))
    outputs = values[-1], values[len(values) // 2]
    return pruned(Graph("random", (x,), outputs, b.store))


@given(random_graphs())
def test_random_graphs_mean_the_same(graph: Graph) -> None:
    """Any graph computes the same afterwards, and a second time nothing changes."""
    plain = Canonicalize()(graph)
    assert_same_meaning(graph, plain)
    assert Canonicalize()(plain) == plain


@some
@given(mixtures(), st.integers(0, 99))
def test_mixtures_mean_the_same(mixture: Any, seed: int) -> None:
    """Any mixture computes the same afterwards, and a second time nothing changes."""
    graph = build(mixture, np.random.default_rng(seed))
    plain = Canonicalize()(graph)
    assert_same_meaning(graph, plain)
    assert Canonicalize()(plain) == plain
