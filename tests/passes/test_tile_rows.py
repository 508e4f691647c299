"""tile_rows: which ops are computed together, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.compiler.ir.rows import read_by_rows, rows_type
from butterflyc.compiler.ir.schedule import is_computed, reads, steps_of
from butterflyc.compiler.ir.views import root_of
from butterflyc.passes.fuse_epilogues import FuseEpilogues
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.tile_rows import TileRows

from .graphs import Builder, Mixture, build, mixtures, some
from .meaning import Golden, check_golden
from .test_quantize import block, in_front, samples


def fused(graph: Graph) -> Graph:
    graph = in_front(graph)
    return FuseEpilogues()(Quantize(samples(graph))(graph))


def check_order(graph: Graph) -> None:
    """Every op comes once, after all that it reads; by rows only where a row is all it needs."""
    done: set[Node] = set()
    for step in steps_of(graph):
        for node in step.nodes:
            assert (node.notes.get("rows", 0), node.notes.get("tile", 0)) == (step.rows, step.tile)
            for (root, _), whole in reads(node):
                assert root in done or not is_computed(root)
                assert not (whole and step.rows and root in step.nodes)
            done.add(node)
        assert step.rows or len(step.nodes) == 1
    assert done == {node for node in graph.nodes if is_computed(node)}


def test_golden(golden: Golden) -> None:
    """A transformer block: a loop a head, one for the rest, and keys and values before them."""
    check_golden(golden, TileRows(), fused(block()))


def test_a_block_goes_by_rows() -> None:
    """Each head's queries, attention and projection are a step, as is the whole of the MLP."""
    graph = TileRows()(fused(block()))
    check_order(graph)
    loops = [[node.op for node in step.nodes] for step in steps_of(graph) if step.rows]
    head = ["quantized_linear", "integer_attention", "quantized_linear"]
    mlp = ["integer_layer_norm", "quantized_linear", "lookup", "quantized_linear"]
    assert loops == [["requantize", "saturating_add"], head, head, mlp]
    names = [step.name for step in steps_of(graph)]
    keys = [next(i for i, name in enumerate(names) if name.endswith(f"k{h}")) for h in (0, 1)]
    assert keys[0] < names.index("stream2.0") < keys[1], "keys are made when they are needed"


@some
@given(mixtures(), st.integers(1, 4))
def test_any_mixture(mixture: Mixture, tile: int) -> None:
    """Whatever the layer: an order that can be computed, in tiles that cover all rows."""
    graph = TileRows(tile)(fused(build(mixture, np.random.default_rng(0))))
    check_order(graph)
    for step in steps_of(graph):
        rows = [r for first, n, some in step.tiles for r in range(first, first + n * some)]
        assert rows == list(range(step.rows))
        assert not step.rows or (step.tile == tile and step.rows > tile)


def test_causal_attention_is_whole() -> None:
    """Which keys a query meets depends on its row."""
    graph = TileRows()(fused(block(causal=True)))
    check_order(graph)
    whole = [s for s in steps_of(graph) if any(n.op == "integer_attention" for n in s.nodes)]
    assert [step.rows for step in whole] == [0, 0]


Made = tuple[list[Type], dict[str, object], str, int, set[int] | None]
I8, I16 = Type("i8", (1, 6, 4)), Type("i16", (1, 6, 4))
CASES: dict[str, Made] = {
    "rows of a product": ([I8, Type("i8", (3, 4))], {}, "integer_linear", 6, {0}),
    "what it sums": ([Type("i8", (2, 6)), Type("i8", (3, 6))], {}, "integer_linear", 6, None),
    "a whole batch": ([Type("i8", (2, 6, 4)), Type("i8", (3, 4))], {}, "integer_linear", 12, None),
    "elements": ([I16, I16], {}, "saturating_add", 6, {0, 1}),
    "a row for each": ([I16, Type("i16", (4,))], {}, "saturating_add", 6, {0}),
    "a factor a row": ([Type("i16", (6, 4)), Type("i16", (6, 1))], {}, "integer_mul", 6, None),
    "a move": ([I8], {"order": (0, 2, 1)}, "transpose", 6, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_by_rows(name: str) -> None:
    """Operands that are read a row at a time, if the op can be computed so."""
    types, attributes, op, rows, wanted = CASES[name]
    inputs = [input_node(f"x{i}", type) for i, type in enumerate(types)]
    found = read_by_rows(make(op, *inputs, **attributes), rows)
    assert found == wanted


def test_types_of_rows() -> None:
    """The axis that counts rows is cut, and no other."""
    assert rows_type(I8, 6, 2) == Type("i8", (1, 2, 4))
    assert rows_type(Type("i64", (6, 2)), 6, 1) == Type("i64", (1, 2))


def test_what_is_asked_for_is_whole() -> None:
    """An output that the next op reads by rows is no part of its step."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (1, 6, 8)))
    first = make("gelu", make("linear", x, b.numbers("w", 8, 8), name="w"), name="first")
    second = make("linear", first, b.numbers("v", 8, 8), name="second")
    graph = TileRows()(fused(Graph("g", (x,), (second, first), b.store)))
    check_order(graph)
    steps = {node.name: step for step in steps_of(graph) for node in step.nodes}
    output = root_of(graph.outputs[1])[0].name
    assert steps[output] is not steps[root_of(graph.outputs[0])[0].name]
