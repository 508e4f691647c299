"""quantize_activations: ternary products on 8-bit codes, within the error that the pass states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from butterflyc.compiler.ir import Graph, Type, input_node, make, parse_graph, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.quantize_activations import QuantizeActivations

from .graphs import Builder, Mixture, Rotation, build, mixtures, some
from .meaning import Golden, check_golden, count


def product(inputs: int, outputs: int, seed: int, rows: int = 3) -> Graph:
    b = Builder(np.random.default_rng(seed))
    x = input_node("x", Type("f32", (rows, inputs)))
    w, scale = b.ternary("w", outputs, inputs), b.numbers("scale", outputs)
    return Graph("g", (x,), (make("ternary_matmul", x, w, scale),), b.store)


def test_golden(golden: Golden) -> None:
    """A ternary product becomes codes, an exact integer product, and one multiplication."""
    mixture = Mixture(k=1, rotation_in=Rotation(8, 1), rotation_out=None, down="ternary")
    check_golden(golden, QuantizeActivations(), build(mixture))


@pytest.mark.parametrize("bits", [7, 8])
@given(
    st.integers(1, 40).flatmap(
        lambda n: arrays.arrays(np.float32, (3, n), elements=st.floats(-100, 100, width=32))
    ),
    st.integers(0, 99),
)
def test_error_is_within_the_budget(bits: int, x: np.ndarray, seed: int) -> None:
    """No output is off by more than scale * nonzero weights * largest / 254; of 7 bits, / 126."""
    graph = product(x.shape[1], 5, seed)
    quantized = QuantizeActivations(bits)(graph)
    verify(quantized)
    (exact,), (found,) = (interpret(g, x, precision="f64") for g in (graph, quantized))
    w, scale = (
        next(graph.value(n) for n in graph.nodes if n.name == name) for name in ("w", "scale")
    )
    largest = np.abs(x).max(-1, keepdims=True).astype(np.float64)
    budget = np.abs(scale) * np.abs(w).sum(-1) * largest / (2**bits - 2)
    assert (np.abs(exact - found) <= budget * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("bits", [7, 8])
def test_error_of_a_product_in_the_root_mean_square(bits: int) -> None:
    """On random rows the error is (largest / rms) / 440 of the result, or 127 / 63 times that."""
    graph = product(256, 200, 0, rows=100)
    x = np.random.default_rng(1).normal(size=(100, 256)).astype(np.float32)
    quantized = QuantizeActivations(bits)(graph)
    (exact,), (found,) = (interpret(g, x, precision="f64") for g in (graph, quantized))
    error, size = (np.sqrt((a**2).mean(-1)) for a in (exact - found, exact))
    stated = np.abs(x).max(-1) / np.sqrt((x**2).mean(-1)) / 440
    stated *= 127 / (2 ** (bits - 1) - 1)
    assert np.isclose((error / size / stated).mean(), 1, atol=0.05)


@some
@given(mixtures())
def test_every_product_is_quantized(mixture: Mixture) -> None:
    """No ternary product on floats is left, and the graph stays valid."""
    graph = build(mixture, np.random.default_rng(0))
    quantized = QuantizeActivations()(graph)
    verify(quantized)
    assert count(quantized)["ternary_matmul"] == 0
    assert count(quantized)["ternary_dot"] == count(graph)["ternary_matmul"]


def test_products_of_one_operand_share_its_codes() -> None:
    """A row that two products read is quantised once."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (3, 4)))
    y, z = (make("ternary_matmul", x, b.ternary("w", 4, 4), b.numbers("s")) for _ in range(2))
    quantized = QuantizeActivations()(Graph("g", (x,), (make("add", y, z),), b.store))
    assert count(quantized)["quantize_rows"] == 1
    assert count(quantized)["ternary_dot"] == 2


def test_both_ops_say_the_bits() -> None:
    """Of 7 bits, rows are quantised to 7, and the product is told so; text keeps it."""
    quantized = QuantizeActivations(7)(product(6, 4, 0))
    said = {node.op: node["bits"] for node in quantized.nodes if "bits" in node.attributes}
    assert said == {"quantize_rows": 7, "ternary_dot": 7}
    assert parse_graph(str(quantized)) == quantized


def test_no_ternary_product_no_change() -> None:
    """A graph without ternary products is returned as it is, and the pass says that it is lossy."""
    x = input_node("x", Type("f32", (3, 4)))
    graph = Graph("g", (x,), (make("neg", x),), {})
    assert QuantizeActivations()(graph) is graph
    assert not QuantizeActivations().exact
