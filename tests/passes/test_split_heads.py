"""split_heads: attention a head at a time, each added to the stream by a product of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.passes.base import pruned
from butterflyc.passes.split_heads import SplitHeads

from .graphs import Builder
from .meaning import Golden, assert_same_meaning, check_golden, count
from .test_fuse_attention import (
    CUTS,
    B,
    C,
    Cut,
    D,
    H,
    T,
    cross,
    heads,
    linear,
    rotated,
    separate,
    shared_heads,
    uneven,
)


def block(
    cut: Cut, causal: bool = False, residual_first: bool = True, exact: bool = False
) -> Graph:
    """x + linear(attention(x)), as transformers have it."""
    b = Builder(None if exact else np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    q, k, v = cut(b, make("neg", x, name="h"))
    y = make("attention", q, k, v, scale=0.5, causal=causal, name="mixed")
    y = make("reshape", make("transpose", y, order=(0, 2, 1, 3)), shape=(B, T, D), name="joined")
    y = linear(b, y, D, "out")
    both = (x, y) if residual_first else (y, x)
    return pruned(Graph("block", (x,), (make("add", *both, name="sum"),), b.store))


def test_golden(golden: Golden) -> None:
    """Two heads of one product, added one after another."""
    check_golden(golden, SplitHeads(), block(separate, exact=True))


@given(st.sampled_from(list(CUTS)), st.booleans(), st.booleans())
def test_splits(name: str, causal: bool, residual_first: bool) -> None:
    """However heads are cut out, each gets an attention, and nothing moves between heads."""
    graph = block(CUTS[name], causal, residual_first)
    after = SplitHeads()(graph)
    assert_same_meaning(graph, after)
    ops = count(after)
    assert (ops["attention"], ops["linear"], ops["add"]) == (H, 4 * H, H)
    assert ops["transpose"] + ops["slice"] + ops["take"] == 0
    assert all(node.type.shape[1] == 1 for node in after.nodes if node.op == "attention")
    stream = after.outputs[0]
    for _ in range(H):
        stream, product = stream.operands
        assert product.op in ("linear", "reshape")
    assert stream is after.inputs[0]


def test_without_a_residual() -> None:
    """The heads are added to one another."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    y = make("attention", *separate(b, x), scale=0.5, name="mixed")
    y = make("reshape", make("transpose", y, order=(0, 2, 1, 3)), shape=(B, T, D))
    graph = pruned(Graph("g", (x,), (linear(b, y, D, "out"),), b.store))
    after = SplitHeads()(graph)
    assert_same_meaning(graph, after)
    assert count(after)["add"] == H - 1


def test_attention_written_out() -> None:
    """softmax(q k^T / scale) v, as products, is attention."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    q, k, v = separate(b, x)
    scores = make("matmul", q, make("transpose", k, order=(0, 1, 3, 2)))
    mixed = make("matmul", make("softmax", scores, axis=3), v)
    y = make("reshape", make("transpose", mixed, order=(0, 2, 1, 3)), shape=(B, T, D))
    graph = pruned(Graph("g", (x,), (linear(b, y, D, "out"),), b.store))
    after = SplitHeads()(graph)
    assert_same_meaning(graph, after)
    assert count(after)["attention"] == H


@pytest.mark.parametrize("cut", [shared_heads, rotated, uneven])
def test_other_heads_stay(cut: Cut) -> None:
    """Heads that are shared, computed further, or not the same channels of every token."""
    graph = block(cut)
    after = SplitHeads()(graph)
    assert count(after)["attention"] == 1
    assert_same_meaning(graph, after)


def test_queries_of_another_operand() -> None:
    """Attention to something else is split as well."""
    graph = block(cross)
    after = SplitHeads()(graph)
    assert_same_meaning(graph, after)
    assert count(after)["attention"] == H


def joined_otherwise(b: Builder, y: Node) -> Node:
    """Tokens and heads in the wrong order in front of the product."""
    return linear(b, make("reshape", y, shape=(B, T, D)), D, "out")


def read_twice(b: Builder, y: Node) -> Node:
    rows = make("reshape", make("transpose", y, order=(0, 2, 1, 3)), shape=(B, T, D))
    return make("add", linear(b, rows, D, "out"), make("reshape", y, shape=(B, T, D)))


def activated(b: Builder, y: Node) -> Node:
    rows = make("reshape", make("transpose", y, order=(0, 2, 1, 3)), shape=(B, T, D))
    return make("linear", rows, b.numbers("w", D, D), activation="relu")


@pytest.mark.parametrize("use", [joined_otherwise, read_twice, activated])
def test_other_uses_stay(use: object) -> None:
    """Only a product that takes each token's heads side by side is one of heads."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    mixed = make("attention", *(heads(linear(b, x, D, n)) for n in "qkv"), scale=0.5)
    graph = pruned(Graph("g", (x,), (use(b, mixed),), b.store))  # type: ignore[operator]
    after = SplitHeads()(graph)
    assert count(after)["attention"] == 1
    assert_same_meaning(graph, after)


def test_one_head_stays() -> None:
    """There is nothing to split."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    q, k, v = (make("reshape", linear(b, x, C, n), shape=(B, 1, T, C)) for n in "qkv")
    y = make("reshape", make("attention", q, k, v, scale=0.5), shape=(B, T, C))
    graph = Graph("g", (x,), (make("linear", y, b.numbers("w", D, C)),), b.store)
    assert SplitHeads()(pruned(graph)) == pruned(graph)
