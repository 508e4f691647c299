"""Kernels, and ways to compute with them, are chosen by what is predicted of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.targets.lanes_dsp import Dsp


def product(ternary: bool = False) -> Node:
    """Codes by a matrix, which two kernels serve on a chip with pairs, or by a ternary one."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("i8", (2, 64)))
    weights = np.zeros((32, 64), np.int8)
    w = constant(store, weights, "w", Type("ternary", weights.shape) if ternary else None)
    return make("ternary_dot" if ternary else "integer_linear", x, w, name="y")


def chosen(node: Node, price: Callable[[Kernel, Spec, Lanes], float | None]) -> Node:
    """The node with its kernel."""
    select = SelectKernels(all_kernels(), Dsp(), price=price)
    (found,) = select(Graph("g", node.operands[:1], (node,), {})).outputs
    return found


def kernel(**prices: float) -> str:
    """The name of the kernel of a dense product, where kernels have these prices."""
    return str(chosen(product(), lambda k, *_: prices.get(k.name)).notes["kernel"])


def test_the_cheaper_kernel_is_chosen() -> None:
    """Where all kernels that can have a price, whatever their cost."""
    assert kernel() == "integer_pairs"
    assert kernel(integer_pairs=20, integer_products=10) == "integer_products"
    assert kernel(integer_pairs=5, integer_products=10) == "integer_pairs"


def test_a_price_alone_does_not_decide() -> None:
    """A kernel without a price is not left out: cost decides."""
    assert kernel(integer_products=1) == "integer_pairs"


def test_the_cheapest_way_of_a_kernel_is_chosen() -> None:
    """Also where another kernel has no price; the first of ways that cost the same."""

    def price(able: Kernel, spec: Spec, lanes: Lanes) -> float | None:
        if able.name != "ternary_dot_table":
            return None
        return 1.0 if spec.parameter("unroll", 0) == 8 else 2.0

    found = chosen(product(ternary=True), price)
    assert found.notes["kernel"] == "ternary_dot_table"
    assert (found.notes["tune_unroll"], found.notes["tune_trits"]) == (8, 4)


def test_prices_of_equal_kernels() -> None:
    """Names decide, so that a model is compiled to the same bytes each time."""
    assert kernel(integer_products=1, integer_pairs=1) == "integer_pairs"
