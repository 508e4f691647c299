"""fuse_epilogues: sums become codes where they are computed, and no bit changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.fuse_epilogues import FuseEpilogues
from butterflyc.passes.quantize import Quantize

from .graphs import Builder, Mixture, Rotation, build, mixtures, some
from .meaning import Golden, check_golden, count
from .test_quantize import block, encoded, in_front, samples


def quantized(graph: Graph) -> Graph:
    graph = in_front(graph)
    return Quantize(samples(graph))(graph)


def assert_same_bits(before: Graph, after: Graph, seed: int = 1) -> None:
    """Both give the same integers for fresh inputs of ``before``, which has codes."""
    verify(after)
    rng = np.random.default_rng(seed)
    for node in before.inputs:
        assert node.type.dtype in ("i8", "i16"), node
    inputs = [rng.integers(-127, 128, n.type.shape).astype(n.type.storage) for n in before.inputs]
    wanted, found = interpret(before, *inputs), interpret(after, *inputs)
    for want, got in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(got, want)


def test_golden(golden: Golden) -> None:
    """A mixture with GELU between its rotations: no sum of 32 bits is left."""
    mixture = Mixture(rotation_in=Rotation(8, 1), rotation_out=Rotation(16, 1), down="float")
    check_golden(golden, FuseEpilogues(), quantized(build(mixture)))


def test_a_transformer_block() -> None:
    """Products add to the residual stream, and leave neither sums nor additions behind."""
    before = quantized(block())
    after = FuseEpilogues()(before)
    assert_same_bits(before, after)
    left = count(after)
    assert left["integer_linear"] == 0
    assert sum(len(node.operands) == 5 for node in after.nodes) == 3
    assert [node.type for node in after.outputs] == [node.type for node in before.outputs]


@some
@given(mixtures(), st.integers(0, 99))
def test_means_the_same(mixture: Mixture, seed: int) -> None:
    """Any mixture in integers gives the same bits."""
    graph = in_front(build(mixture, np.random.default_rng(seed)))
    before = Quantize(samples(graph, seed=seed))(graph)
    after = FuseEpilogues()(before)
    verify(after)
    inputs = encoded(before, samples(graph, 1, seed + 1)[0])
    for want, got in zip(interpret(before, *inputs), interpret(after, *inputs), strict=True):
        np.testing.assert_array_equal(got, want)


def sums(b: Builder, depth: int = 4) -> tuple[Node, Node]:
    """An input of codes, and a ternary product of it."""
    x = input_node("x", Type("i8", (3, depth)))
    return x, make("ternary_dot", x, b.ternary("w", 6, depth), name="sums")


def as_codes(b: Builder, of: Node, dtype: str = "i8") -> Node:
    factor = b.constant("factor", np.array(3, np.int16), "i16")
    return make("requantize", of, factor, shift=4, dtype=dtype, name="codes")


def test_what_is_read_twice_stays() -> None:
    """Sums, or codes in front of a table, that something else reads."""
    b = Builder(None)
    x, product = sums(b)
    table = b.constant("table", np.arange(-128, 128).clip(-127), "i8")
    codes = as_codes(b, product)
    looked = make("lookup", codes, table, name="looked")
    for outputs, left in (((looked, product), "ternary_dot"), ((looked, codes), "lookup")):
        before = Graph("g", (x,), outputs, b.store)
        after = FuseEpilogues()(before)
        assert_same_bits(before, after)
        assert count(after)[left] == 1


def test_what_no_kernel_serves_stays() -> None:
    """Ternary products whose codes have 16 bits."""
    b = Builder(None)
    x, product = sums(b, 8)
    graph = Graph("g", (x,), (as_codes(b, product, "i16"),), b.store)
    assert FuseEpilogues()(graph) == graph


def test_residuals_that_repeat_stay() -> None:
    """A row that is added to every row of a product is no residual."""
    b = Builder(None)
    x = input_node("x", Type("i8", (3, 4)))
    weights = b.constant("w", np.ones((4, 4), np.int8), "i8")
    codes = as_codes(b, make("integer_linear", x, weights, name="sums"), "i16")
    row = b.constant("row", np.arange(4), "i16")
    graph = Graph("g", (x,), (make("saturating_add", codes, row, name="y"),), b.store)
    after = FuseEpilogues()(graph)
    assert_same_bits(graph, after)
    assert count(after)["saturating_add"] == 1
