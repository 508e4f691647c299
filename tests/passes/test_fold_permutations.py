"""fold_permutations: fixed orders of channels vanish in the matrices around them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.fold_permutations import FoldPermutations
from butterflyc.passes.merge_rotations import MergeRotations

from .graphs import Builder, Mixture, Rotation, build, mixtures, rotations, some
from .meaning import Golden, assert_same_meaning, check_golden, count, inputs_of

PAD, STRIP, TURN = [0, 1, -1, 2, 3, -1], [3, 1], [3, 2, 1, 0]


def test_golden(golden: Golden) -> None:
    """Orders go into W_hat, its bias and W_down; the linear form keeps one, behind the sum."""
    vit = Mixture(width=8, hidden=6, rotation_out=Rotation(6), up_bias=True)
    linear = Mixture(activation="none", down="absent", rotation_in=Rotation(8, transposed=True))
    check_golden(golden, FoldPermutations(), *(MergeRotations()(build(m)) for m in (vit, linear)))


@some
@given(mixtures(), st.integers(0, 99), st.booleans())
def test_means_the_same(mixture: Mixture, seed: int, merged: bool) -> None:
    """Any mixture computes the same with its orders folded, its rotations merged or not."""
    graph = build(mixture, np.random.default_rng(seed))
    graph = MergeRotations()(graph) if merged else graph
    assert_same_meaning(graph, FoldPermutations()(graph))


@some
@given(st.data())
def test_vit_form_keeps_no_order_behind_the_first_rotation(data: st.DataObject) -> None:
    """With W_down and a GELU, merged layers of L <= 2 leave at most the load order of h."""
    width, hidden = data.draw(st.integers(2, 20)), data.draw(st.integers(2, 36))
    shapes = [data.draw(rotations(n).filter(lambda r: r.layers <= 2)) for n in (width, hidden)]
    mixture = Mixture(
        width=width,
        hidden=hidden,
        rotation_in=shapes[0],
        rotation_out=shapes[1],
        activation_after=data.draw(st.booleans()),
    )
    folded = FoldPermutations()(MergeRotations()(build(mixture, np.random.default_rng(0))))
    shuffles = [node for node in folded.nodes if node.op == "shuffle"]
    assert all(node.operands[0].op == "input" for node in shuffles)
    plain = not shapes[0].transposed and shapes[0].shuffle == "deinterleave"
    if plain and not shapes[0].shuffle_first:
        assert not [node for node in shuffles if not _pads(folded, node)]


def _pads(graph: Graph, node: Node) -> bool:
    """Whether a shuffle pads and does nothing else."""
    order = graph.value(node.operands[1])
    live = order[order >= 0]
    return bool((order < 0).any()) and np.array_equal(live, np.arange(live.size))


def test_linear_form_takes_its_order_once_after_the_sum() -> None:
    """What cannot fold behind B(phi) is one shuffle a token, not one an expert."""
    mixture = Mixture(k=3, activation="none", down="absent", rotation_out=Rotation(16, 3))
    folded = FoldPermutations()(MergeRotations()(build(mixture, np.random.default_rng(0))))
    last = folded.outputs[0]
    assert last.op == "shuffle"
    assert last.operands[0].op == "add"


Body = Callable[[Builder, Node], Node]


def shuffle(b: Builder, x: Node, order: list[int]) -> Node:
    return make("shuffle", x, b.constant("order", np.array(order), "i32"))


def product(b: Builder, x: Node, op: str = "linear", activation: str = "none") -> Node:
    """A product from whatever width ``x`` has to 4 channels."""
    width = x.type.shape[-1]
    if op == "linear":
        bias = b.numbers("bias", 4)
        return make(op, x, b.numbers("w", 4, width), bias, activation=activation)
    return make(op, x, b.ternary("w", 4, width), b.numbers("scale", 4))


def graph_of(body: Body) -> Graph:
    b = Builder(np.random.default_rng(1))
    x = input_node("x", Type("f32", (3, 4)))
    return Graph("g", (x,), (body(b, x),), b.store)


FOLDS: dict[str, Body] = {
    "columns": lambda b, x: product(b, shuffle(b, x, TURN), "ternary_matmul"),
    "columns of a strip": lambda b, x: product(b, shuffle(b, x, STRIP)),
    "columns of padding": lambda b, x: product(b, shuffle(b, x, PAD)),
    "rows": lambda b, x: shuffle(b, product(b, x, "ternary_matmul"), TURN),
    "rows of a strip": lambda b, x: shuffle(b, product(b, x), STRIP),
    "rows of padding": lambda b, x: shuffle(b, product(b, x), PAD),
    "rows, activation": lambda b, x: shuffle(b, product(b, x, activation="gelu"), PAD),
    "up past a factor": lambda b, x: shuffle(
        b, make("mul", product(b, x), b.numbers("c", 4)), TURN
    ),
    "up past a padded divisor": lambda b, x: shuffle(
        b, make("div", product(b, x), b.constant("c", np.array([1, 2, 4, 8.0]))), PAD
    ),
    "up past a residual of two products": lambda b, x: shuffle(
        b, make("add", product(b, x), product(b, x)), TURN
    ),
    "up past a broadcast and a reshape": lambda b, x: shuffle(
        b,
        make("broadcast", make("reshape", product(b, x), shape=(3, 1, 4)), shape=(3, 2, 4)),
        TURN,
    ),
    "down past an activation": lambda b, x: product(b, make("gelu", shuffle(b, x, PAD))),
    "down past a square": lambda b, x: product(b, make("mul", *[shuffle(b, x, TURN)] * 2)),
    "down past a factor a row": lambda b, x: product(
        b, make("mul", shuffle(b, x, PAD), make("slice", x, axis=1, stop=1))
    ),
    "down past a summand": lambda b, x: product(
        b, make("add", shuffle(b, x, TURN), b.numbers("c", 4))
    ),
    "down past two of one order": lambda b, x: product(
        b, make("add", shuffle(b, make("neg", x), PAD), shuffle(b, x, PAD))
    ),
    "down past a transpose": lambda b, x: product(
        b,
        make("transpose", make("reshape", shuffle(b, x, STRIP), shape=(3, 1, 2)), order=(1, 0, 2)),
    ),
    "down past a sum of rows": lambda b, x: product(
        b, make("sum", shuffle(b, x, TURN), axes=(0,), keep=True)
    ),
    "down past a concat": lambda b, x: product(
        b, make("concat", shuffle(b, x, TURN), shuffle(b, make("neg", x), TURN), axis=0)
    ),
    "composed away": lambda b, x: make("neg", shuffle(b, shuffle(b, x, TURN), TURN)),
}


@pytest.mark.parametrize("body", FOLDS.values(), ids=FOLDS)
def test_folds(body: Body) -> None:
    """A shuffle that a matrix can take is gone afterwards, bit for bit."""
    graph = graph_of(body)
    folded = FoldPermutations()(graph)
    assert_same_meaning(graph, folded)
    assert count(folded)["shuffle"] == 0
    x = inputs_of(graph)
    assert np.allclose(interpret(graph, *x)[0], interpret(folded, *x)[0], rtol=1e-5, atol=1e-6)


STAYS: dict[str, Body] = {
    "an activation that moves 0": lambda b, x: shuffle(b, make("sigmoid", product(b, x)), PAD),
    "the same inside a product": lambda b, x: shuffle(b, product(b, x, activation="sigmoid"), PAD),
    "a summand on padding": lambda b, x: product(
        b, make("add", shuffle(b, x, PAD), b.constant("c", np.ones(6)))
    ),
    "a summand a row on padding": lambda b, x: product(
        b, make("add", shuffle(b, x, PAD), make("slice", x, axis=1, stop=1))
    ),
    "a channel twice": lambda b, x: product(b, shuffle(b, x, [0, 0, 1])),
    "the last axis cut": lambda b, x: product(
        b, make("slice", shuffle(b, x, TURN), axis=1, start=1, stop=3)
    ),
    "rows cut": lambda b, x: product(b, make("reshape", shuffle(b, x, TURN), shape=(6, 2))),
    "two orders": lambda b, x: product(
        b, make("add", shuffle(b, x, TURN), shuffle(b, x, [1, 0, 2, 3]))
    ),
    "an operand of another order": lambda b, x: product(b, make("add", shuffle(b, x, TURN), x)),
    "softmax": lambda b, x: product(b, make("softmax", shuffle(b, x, PAD))),
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_stays(body: Body) -> None:
    """What would change the meaning is left alone."""
    graph = graph_of(body)
    folded = FoldPermutations()(graph)
    assert count(folded)["shuffle"] > 0
    assert_same_meaning(graph, folded)


def test_ternary_stays_ternary() -> None:
    """Columns for padding and rows for padding are zeros, which a ternary matrix may hold."""
    graph = graph_of(
        lambda b, x: shuffle(b, product(b, shuffle(b, x, STRIP), "ternary_matmul"), PAD)
    )
    (weight,) = (n for n in FoldPermutations()(graph).nodes if n.type.dtype == "ternary")
    assert weight.type.shape == (6, 4)


def test_a_product_read_twice_is_not_made_twice() -> None:
    """An order behind a product that something else reads too stays where it is."""
    b = Builder(np.random.default_rng(1))
    x = input_node("x", Type("f32", (3, 4)))
    y = product(b, x)
    graph = Graph("g", (x,), (y, shuffle(b, y, TURN)), b.store)
    assert FoldPermutations()(graph) == graph
