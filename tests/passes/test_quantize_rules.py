"""quantize op by op: differences, choices, comparisons, quotients and curves in integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.codes import interpret_real
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.quantize_codes import COMPARISONS

from .graphs import Array, Builder
from .meaning import count

SOME = settings(max_examples=15, deadline=None)
INDEX = np.array([[3, 0, 2], [1, 1, 5]])
# By the op, of two values a, b f32[6, 8] and a builder of constants: what is computed.
Case = Callable[[Node, Node, Builder], Node]


def _mask(b: Builder) -> Node:
    return b.constant("mask", np.arange(48).reshape(6, 8) % 3 == 0, "bool")


CASES: dict[str, Case] = {
    "sub": lambda x, y, b: make("sub", x, y),
    "sub of a constant": lambda x, y, b: make("sub", x, b.numbers("c", 8)),
    "sub from a constant": lambda x, y, b: make("sub", b.numbers("c", 6, 1), x),
    "neg": lambda x, y, b: make("add", make("neg", x), y),
    "neg of a constant": lambda x, y, b: make("add", x, make("neg", b.numbers("c", 8))),
    "maximum": lambda x, y, b: make("maximum", x, y),
    "minimum": lambda x, y, b: make("minimum", x, b.constant("c", np.array(0.25))),
    "maximum in 8 bits": lambda x, y, b: make(
        "linear", make("maximum", x, y), b.numbers("w", 4, 8)
    ),
    "where by a constant": lambda x, y, b: make("where", _mask(b), x, y),
    "where by a comparison": lambda x, y, b: make("where", make("less", x, y), x, y),
    "where of a constant": lambda x, y, b: make(
        "where", _mask(b), x, b.constant("c", np.array(-2.0))
    ),
    "take": lambda x, y, b: make("take", x, b.constant("i", INDEX, "i64"), axis=0),
    "take of a table": lambda x, y, b: make(
        "take", b.numbers("table", 8, 3), make("argmax", x, axis=1), axis=0
    ),
    "gather": lambda x, y, b: make("gather", x, b.constant("i", INDEX, "i64"), axis=1),
    "div": lambda x, y, b: make(
        "div", x, make("add", make("mul", y, y), b.constant("one", np.array(1.0)))
    ),
    "div by a constant": lambda x, y, b: make("div", x, b.constant("c", np.arange(1.0, 9))),
    "sigmoid": lambda x, y, b: make("sigmoid", make("add", x, y)),
    "tanh": lambda x, y, b: make("tanh", make("sub", x, y)),
    "tanh of large numbers": lambda x, y, b: make(
        "tanh", make("mul", make("add", x, y), b.constant("c", np.array(40.0)))
    ),
    "silu": lambda x, y, b: make("linear", make("silu", x), b.numbers("w", 4, 8)),
    "mean": lambda x, y, b: make("mean", make("add", x, y), axes=(1,)),
    "sigmoid of 8 bits": lambda x, y, b: make("linear", make("sigmoid", x), b.numbers("w", 4, 8)),
}


def graph_of(case: Case, seed: int = 0) -> Graph:
    b = Builder(np.random.default_rng(seed))
    x, y = (input_node(name, Type("f32", (6, 8))) for name in "xy")
    return Graph("g", (x, y), (case(x, y, b),), b.store)


def codes_of(graph: Graph, seed: int, samples: int = 8) -> list[tuple[Array, ...]]:
    """Samples that codes of 8 bits stand for exactly: what is lost is not lost at the inputs."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(-127, 128, (2, 6, 8)) / np.float32(32) for _ in range(samples)]
    for both in drawn:
        both[:, 0, 0] = 127 / 32
    return [(both[0].astype(np.float32), both[1].astype(np.float32)) for both in drawn]


@pytest.mark.parametrize("name", CASES)
@SOME
@given(st.integers(0, 2**16))
def test_results_are_near_the_real_ones(name: str, seed: int) -> None:
    """No float is left, and the error is below -25 dB."""
    graph = graph_of(CASES[name], seed)
    samples = codes_of(graph, seed)
    after = Quantize(samples)(graph)
    verify(after)
    assert not any(type.is_float for node in after.nodes for type in node.types)
    signal = noise = 0.0
    for sample in samples:
        (wanted,), (found,) = interpret(graph, *sample), interpret_real(after, *sample)
        signal += float(np.square(wanted.astype(np.float64)).sum())
        noise += float(np.square(found - wanted.astype(np.float64)).sum())
    assert noise <= 0.003 * signal


@pytest.mark.parametrize("op", sorted(COMPARISONS))
def test_comparisons_of_codes_are_those_of_numbers(op: str) -> None:
    """What differs by more than a code compares as it does in floats; so do equal numbers."""
    graph = graph_of(lambda x, y, b: make(op, x, y))
    samples = codes_of(graph, 1)
    after = Quantize(samples)(graph)
    for sample in samples:
        np.testing.assert_array_equal(interpret_real(after, *sample), interpret(graph, *sample))


def test_the_largest_is_at_the_same_place() -> None:
    """argmax of codes that stand for different numbers is argmax of these."""
    graph = graph_of(lambda x, y, b: make("argmax", make("add", x, y), axis=1))
    samples = codes_of(graph, 2)
    after = Quantize(samples)(graph)
    same = [(interpret_real(after, *s)[0] == interpret(graph, *s)[0]).mean() for s in samples]
    assert np.mean(same) >= 0.9  # sums of two codes may be equal, or a rounding apart


def test_of_equal_largest_the_first() -> None:
    """argmax takes the first of several, as it does of floats; rows of equals give 0."""
    graph = graph_of(lambda x, y, b: make("argmax", x, axis=1))
    after = Quantize(codes_of(graph, 0))(graph)
    x = np.zeros((6, 8), np.float32)
    x[1, [2, 5]] = x[2, [6, 7]] = 2.0
    (found,) = interpret_real(after, x, x)
    assert found.tolist() == [0, 2, 6, 0, 0, 0] == interpret(graph, x, x)[0].tolist()


def test_a_division_by_zero_is_told() -> None:
    """The constant and the line are named: no choice of samples would help."""
    graph = graph_of(
        lambda x, y, b: make("div", x, b.constant("c", np.arange(8.0)), source="m.py:3")
    )
    with pytest.raises(Unsupported, match=r"div by the constant 'c', which holds 0: m.py:3"):
        Quantize(codes_of(graph, 0))(graph)


def test_one_sample_is_enough() -> None:
    """Scales of a single sample serve that sample."""
    graph = graph_of(CASES["sub"])
    (sample,) = codes_of(graph, 3, 1)
    after = Quantize([sample])(graph)
    (wanted,), (found,) = interpret(graph, *sample), interpret_real(after, *sample)
    assert np.abs(found - wanted).max() <= 0.01 * np.abs(wanted).max()


def test_curves_of_16_bits_have_16() -> None:
    """A gate's sigmoid is interpolated, one in front of a product is looked up."""
    for name, op in (("sigmoid", "interpolate"), ("sigmoid of 8 bits", "lookup")):
        graph = graph_of(CASES[name])
        assert count(Quantize(codes_of(graph, 0))(graph))[op] == 1


def test_an_op_without_a_form_is_told_with_those_that_have_one() -> None:
    """The error names the op and its line, and lists what could stand there."""
    graph = graph_of(lambda x, y, b: make("atan2", x, y, source="model.py:9"))
    with pytest.raises(Unsupported, match=r"atan2: model.py:9") as caught:
        Quantize(codes_of(graph, 0))(graph)
    assert "layer_norm, less" in str(caught.value.help)
