"""fuse_attention: q, k and v from one product, and attention that reads heads where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.passes.base import pruned
from butterflyc.passes.fuse_attention import FuseAttention

from .graphs import Builder
from .meaning import Golden, assert_same_meaning, check_golden, count

B, T, H, C = 2, 3, 2, 4  # batch, tokens, heads, channels a head
D = H * C
Cut = Callable[[Builder, Node], tuple[Node, Node, Node]]


def heads(x: Node) -> Node:
    """[B, T, D] or [B * T, D] as [B, H, T, C]."""
    apart = make("reshape", x, shape=(B, T, H, C))
    return make("transpose", apart, order=(0, 2, 1, 3))


def linear(b: Builder, x: Node, outputs: int, name: str = "qkv", bias: bool = True) -> Node:
    extra = (b.numbers(f"{name}.bias", outputs),) if bias else ()
    return make("linear", x, b.numbers(f"{name}.weight", outputs, D), *extra, name=name)


def unbound(
    b: Builder, x: Node, layout: tuple[int, ...] = (B, T, 3, H, C), by: str = "slice"
) -> Any:
    """Cut out of one product in one of the ways that people write."""
    qkv = make("reshape", linear(b, x, 3 * D), shape=layout)
    axis = layout.index(3, 2)  # T may be 3 too
    rest = [i for i in (2, 3, 4) if i != axis]
    head, channel = rest if layout[rest[0]] == H else reversed(rest)
    qkv = make("transpose", qkv, order=(axis, 0, head, 1, channel))
    parts = []
    for i in range(3):
        if by == "slice":
            part = make("slice", qkv, axis=0, start=i, stop=i + 1)
            parts.append(make("reshape", part, shape=(B, H, T, C)))
        else:
            parts.append(make("take", qkv, b.constant(f"i{i}", np.array(i), "i64"), axis=0))
    return tuple(parts)


def chunks(b: Builder, x: Node) -> Any:
    qkv = linear(b, x, 3 * D)
    return tuple(heads(make("slice", qkv, axis=2, start=i * D, stop=(i + 1) * D)) for i in range(3))


def separate(b: Builder, x: Node, biases: tuple[bool, ...] = (True, False, True)) -> Any:
    names = zip(("q", "k", "v"), biases, strict=True)
    return tuple(heads(linear(b, x, D, name, bias)) for name, bias in names)


def flat(b: Builder, x: Node) -> Any:
    """Products on [B * T, D] rows."""
    return separate(b, make("reshape", x, shape=(B * T, D)))


CUTS: dict[str, Cut] = {
    "three, heads, channels": unbound,
    "three, heads, channels, by take": lambda b, x: unbound(b, x, by="take"),
    "heads, three, channels": lambda b, x: unbound(b, x, (B, T, H, 3, C)),
    "heads, channels, three": lambda b, x: unbound(b, x, (B, T, H, C, 3)),
    "chunks": chunks,
    "three products": separate,
    "three products on rows": flat,
}


def attended(cut: Cut, causal: bool = False, exact: bool = False) -> Graph:
    b = Builder(None if exact else np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    q, k, v = cut(b, x)
    y = make("attention", q, k, v, scale=0.5, causal=causal, name="mixed")
    y = make("reshape", make("transpose", y, order=(0, 2, 1, 3)), shape=(B, T, D), name="joined")
    y = make("linear", y, b.numbers("out", D, D), name="out")
    return pruned(Graph("attention", (x,), (y,), b.store))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("causal", [False, True])
def test_fuses(cut: Cut, causal: bool) -> None:
    """However q, k and v are cut out, one product and one attention are left, and no moves."""
    graph = attended(cut, causal)
    fused = FuseAttention()(graph)
    assert_same_meaning(graph, fused)
    ops = count(fused)
    assert (ops["linear"], ops["qkv_attention"], ops["attention"]) == (2, 1, 0)
    assert ops["transpose"] + ops["slice"] + ops["take"] == 0
    moves = 2 if cut is flat else 0
    assert ops["reshape"] <= moves


def test_golden(golden: Golden) -> None:
    """One product in the right order stays; three products become one."""
    check_golden(golden, FuseAttention(), *(attended(c, exact=True) for c in (unbound, separate)))


def test_one_product_in_the_right_order_keeps_its_weights() -> None:
    """Nothing is gathered, so nothing is renamed."""
    graph = attended(unbound)
    fused = FuseAttention()(graph)
    assert fused.find("qkv.weight").attributes == graph.find("qkv.weight").attributes


def test_attention_written_out() -> None:
    """softmax(q k^T / scale) v, as products, is attention."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (B, T, D)))
    q, k, v = unbound(b, x)
    scores = make("matmul", q, make("transpose", k, order=(0, 1, 3, 2)))
    for op, number in (("mul", 0.25), ("div", 3.0)):
        scaled = make(op, scores, b.constant("scale", np.array(number)))
        y = make("matmul", make("softmax", scaled, axis=3), v)
        graph = Graph("attention", (x,), (make("neg", y),), b.store)
        fused = FuseAttention()(graph)
        assert_same_meaning(graph, fused)
        assert count(fused)["qkv_attention"] == 1
    plain = make("matmul", make("softmax", scores, axis=3), v)
    fused = FuseAttention()(Graph("attention", (x,), (plain,), b.store))
    assert count(fused)["qkv_attention"] == 1


def shared_heads(b: Builder, x: Node) -> Any:
    q, k, v = separate(b, x)
    one = make("slice", k, axis=1, start=0, stop=1)
    index = b.constant("index", np.zeros(H), "i64")
    return q, make("take", one, index, axis=1), v


def cross(b: Builder, x: Node) -> Any:
    _, k, v = separate(b, x)
    return heads(linear(b, make("neg", x), D, "other")), k, v


def rotated(b: Builder, x: Node) -> Any:
    q, k, v = separate(b, x)
    return make("mul", q, b.numbers("angles", T, C)), k, v


def activated(b: Builder, x: Node) -> Any:
    q, k, _ = separate(b, x)
    hidden = make("linear", x, b.numbers("w", D, D), activation="relu")
    return q, k, heads(hidden)


def uneven(b: Builder, x: Node) -> Any:
    """Heads that are not the same channels of every token."""
    q, _, v = separate(b, x)
    return q, make("reshape", linear(b, x, D, "k2"), shape=(B, H, T, C)), v


@pytest.mark.parametrize("cut", [shared_heads, cross, rotated, activated, uneven])
def test_other_attention_stays(cut: Cut) -> None:
    """What is not q, k, v of one operand, each head its own channels, is left alone."""
    fused = FuseAttention()(attended(cut))
    assert count(fused)["attention"] == 1
    assert_same_meaning(attended(cut), fused)


@given(st.sampled_from(list(CUTS)), st.permutations(range(3)))
def test_any_order_of_the_three(name: str, order: list[int]) -> None:
    """q, k and v may lie in the product in any order."""

    def cut(b: Builder, x: Node) -> Any:
        parts = CUTS[name](b, x)
        return tuple(parts[i] for i in order)

    graph = attended(cut)
    fused = FuseAttention()(graph)
    assert_same_meaning(graph, fused)
    assert count(fused)["qkv_attention"] == 1
