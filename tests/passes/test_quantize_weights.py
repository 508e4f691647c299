"""Dense weights have as few digits as keep to the budget, and routers all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, result
from butterflyc.kernels.integer_numbers import MOST_PLANES, largest_of
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.quantize_weights import coded, deciding

from .graphs import Builder


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 60), st.integers(0, 99))
def test_the_budget_is_kept(outputs: int, depth: int, budget: float, seed: int) -> None:
    """With fewest digits; where five do not reach it, there are five."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(3, (outputs, depth)) * rng.choice([1e-3, 1, 50], (outputs, 1))
    found = coded(weights, np.zeros(outputs), budget)
    assert np.abs(found.rows).max() <= largest_of(found.planes)
    error = np.square(found.rows * found.scale[:, None] - weights).sum()
    assert math.isclose(error, np.square(weights).sum() * 10 ** (-found.snr / 10), abs_tol=1e-9)
    assert found.snr >= budget or found.planes == MOST_PLANES
    if found.planes > 1:
        fewer = coded(weights, np.zeros(outputs), min(budget, found.snr) - 1e-6)
        assert fewer.planes == found.planes or fewer.snr >= min(budget, found.snr) - 1e-6


@pytest.mark.parametrize("planes", range(1, MOST_PLANES + 1))
def test_weights_that_have_so_many_digits_keep_them(planes: int) -> None:
    """Whole numbers times a scale of each row, as of a ternary matrix, lose nothing."""
    rng = np.random.default_rng(planes)
    most = largest_of(planes)
    whole = rng.integers(-most, most + 1, (6, 64))
    whole[:, 0] = most
    found = coded(whole * rng.uniform(0.1, 9, (6, 1)), np.zeros(6), math.inf)
    assert found.planes == planes
    np.testing.assert_array_equal(found.rows, whole)


def routed(b: Builder) -> Graph:
    """A product whose row decides, behind a softmax, and one that does not."""
    rng = np.random.default_rng(0)
    x = input_node("x", Type("f32", (3, 8)))
    names = "gate", "other", "before"
    weights = {name: b.constant(f"{name}.w", rng.normal(size=(8, 8))) for name in names}
    before = make("linear", x, weights["before"], name="before")
    gate = make("linear", make("gelu", before, name="g"), weights["gate"], name="gate")
    top = make("top_k", make("softmax", gate, axis=-1, name="p"), k=1, name="top")
    other = make("linear", before, weights["other"], name="other")
    return Graph("g", (x,), (other, result(top, 1, "expert")), b.store)


def planes_of(graph: Graph) -> dict[str, int]:
    return {n.name: int(n["planes"]) for n in graph.nodes if n.op == "integer_linear"}


def test_routers_keep_all_digits() -> None:
    """What scores are ranked by has five digits, whatever the budget; what is before it has not."""
    graph = routed(Builder(None))
    found: set[Node] = set(deciding(graph))
    assert {node.name for node in found} == {"gate"}
    samples = [(np.random.default_rng(i).normal(size=(3, 8)).astype(np.float32),) for i in range(4)]
    assert planes_of(Quantize(samples, 20.0)(graph)) == {
        "gate.sums": 5,
        "other.sums": 3,
        "before.sums": 3,
    }
