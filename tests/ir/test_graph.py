"""Graphs: names, equality, rebuilding, the verifier, the text form, the interpreter's checks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import BadInput, InvalidGraph
from butterflyc.compiler.ir import (
    Graph,
    Node,
    Type,
    constant,
    input_node,
    make,
    parse_graph,
    print_graph,
    rebuild,
    remake,
    result,
    type_of,
    verify,
)
from butterflyc.compiler.ir.interpret import interpret


def small() -> Graph:
    """relu(x @ w.T + x) with a repeated name."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("f32", (3, 3)))
    w = constant(store, np.eye(3, dtype=np.float32) * 2, "layer.weight")
    y = make("linear", x, w, name="x", source="m.py:4")
    z = make("add", y, x, name="sum")
    return Graph("small", (x,), (make("relu", z, name="out"),), store)


def test_types_round_trip_and_refuse_nonsense() -> None:
    """A type parses from its own text; a malformed one raises ValueError."""
    for type in (
        Type("f32", ()),
        Type("i8", (2, 3), 0.125),
        Type("ternary", (4, 8), None, "ternary8x4"),
        Type("i32", (0,), 1e-9, "a"),
    ):
        assert Type.parse(str(type)) == type
    for text in ("f32", "f32[", "f99[2]", "f32[a]", ""):
        with pytest.raises(ValueError, match=r"not a type|unknown dtype"):
            Type.parse(text)
    with pytest.raises(ValueError, match="non-negative"):
        Type("f32", (-1,))
    with pytest.raises(ValueError, match="no IR dtype"):
        type_of(np.zeros(1, np.complex64))


def test_results_have_names_of_their_own() -> None:
    """Outputs are named by their nodes or by the note, each once, also in the text form."""
    x = input_node("x", Type("f32", (3,)))
    y = make("exp", x, name="y")
    graph = Graph("g", (x,), (y, x, y, y))
    assert graph.results == ("y", "x", "y_2", "y_3")
    named = replace(graph, notes={"results": ("a", "b", "a", "c")})
    assert named.results == ("a", "b", "a_2", "c")
    assert parse_graph(str(named)).results == named.results


def test_names_are_unique_in_a_graph() -> None:
    """Two nodes with one name get different ones; the first keeps it."""
    names = [node.name for node in small().nodes]
    assert names == ["x", "layer.weight", "x_2", "sum", "out"]


def test_order_puts_operands_first_and_inputs_in_order() -> None:
    """nodes lists every operand before its user, and unused inputs too."""
    a, b = input_node("a", Type("f32", (2,))), input_node("b", Type("f32", (2,)))
    graph = Graph("g", (b, a), (make("neg", a),))
    assert [node.name for node in graph.nodes] == ["b", "a", "neg"]


def test_equality_is_of_structure() -> None:
    """Graphs built alike are equal; another name, attribute or constant makes them differ."""
    assert small() == small()
    assert hash(small()) == hash(small())
    renamed = rebuild(small(), lambda n: replace(n, name="other") if n.name == "sum" else n)
    assert renamed != small()
    assert small() != "text"


def test_rebuild_changes_nodes_and_keeps_the_rest() -> None:
    """rebuild gives every change its changed operands and keeps names and sources."""
    changed = rebuild(
        small(), lambda n: remake(n, *n.operands) if n.op != "relu" else n.operands[0]
    )
    assert [node.name for node in changed.outputs] == ["sum"]
    assert changed.find("x_2").source == "m.py:4"
    with pytest.raises(KeyError):
        changed.find("out")


def test_the_text_reads_as_documented() -> None:
    """The text form of a small graph, to the letter."""
    digest = small().find("layer.weight")["digest"]
    assert str(small()) == "\n".join(
        [
            "graph small(%x: f32[3, 3]) {",
            f'  %layer.weight = constant {{digest = "{digest}"}} : f32[3, 3]',
            '  %x_2 = linear(%x, %layer.weight) {activation = "none"} : f32[3, 3]   # m.py:4',
            "  %sum = add(%x_2, %x) : f32[3, 3]",
            "  %out = relu(%sum) : f32[3, 3]",
            "  return %out",
            "}",
        ]
    )


def test_notes_and_several_outputs_round_trip() -> None:
    """Notes on nodes and on the graph, and tuple attributes, survive the text form."""
    x = input_node("x", Type("f32", (4, 4)))
    top = make("top_k", x, k=2).with_notes(kernel="top_k", at=(0, 64))
    outputs = (result(top, 1), make("transpose", x, order=(1, 0)))
    graph = Graph("g", (x,), outputs, {}, {"arena_bytes": 128})
    assert parse_graph(str(graph)) == graph
    assert '@ {kernel = "top_k", at = [0, 64]}' in str(graph)


BROKEN_TEXTS = [
    ("graf g() {", "expected 'graph NAME"),
    ("graph g(%x: f32[2]) {\n  %y = relu(%z) : f32[2]\n  return %y\n}", "used before"),
    ("graph g(%x: f32[2]) {\n  %y = relu(%x) : f32[3]\n  return %y\n}", r"relu gives f32\[2\]"),
    ("graph g(%x: f32[2]) {\n  %y = relu %x\n  return %y\n}", "not an op"),
    ("graph g(%x: f32[2]) {\n  %x = relu(%x) : f32[2]\n  return %x\n}", "defined twice"),
    ("graph g(%x: f32[2]) {\n  %y = relu(%x) : f32[2]\n}", "not an op|no 'return'"),
    ("graph g(%x: f32[2]) {\n  %y = clip(%x) {low = } : f32[2]\n  return %y\n}", "bad attributes"),
    ("graph g(%x: f32[2]) {\n  return %x\n  %y = relu(%x) : f32[2]\n}", "expected '}'"),
    ("graph g(%x: f99[2]) {\n  return %x\n}", "unknown dtype"),
    ("", "expected 'graph NAME"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN_TEXTS)
def test_broken_text_is_refused_with_its_line(text: str, message: str) -> None:
    """Text that is no graph raises InvalidGraph with the number of the line."""
    with pytest.raises(InvalidGraph, match=message) as caught:
        parse_graph(text)
    assert "line" in str(caught.value.where)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text makes the parser fail in another way than InvalidGraph."""
    with pytest.raises(InvalidGraph):
        parse_graph(f"graph g(%x: f32[2]) {{\n  %y = {text}\n  return %x\n}}\nx")


def broken(change: str) -> Graph:
    graph = small()
    relu = graph.outputs[0]
    if change == "type":
        return replace(graph, outputs=(replace(relu, types=(Type("f32", (9,)),)),))
    if change == "constant":
        return replace(graph, constants={})
    if change == "data":
        return replace(graph, constants={k: v[:2] for k, v in graph.constants.items()})
    if change == "dtype":
        return replace(graph, constants={k: v.astype("f8") for k, v in graph.constants.items()})
    if change == "attributes":
        linear = graph.find("x_2")
        return replace(graph, outputs=(replace(linear, attributes={}),))
    if change == "input":
        return replace(graph, inputs=())
    return replace(graph, outputs=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("type", r"its shape rule gives f32\[3, 3\]"),
        ("constant", "no constant with digest"),
        ("data", "its data have shape"),
        ("dtype", "its data are float64"),
        ("attributes", "incomplete"),
        ("input", "does not list"),
        ("outputs", "has no output"),
    ],
)
def test_the_verifier_marks_the_bad_op(change: str, message: str) -> None:
    """A graph that breaks a rule is refused; the message shows it with the op marked."""
    with pytest.raises(InvalidGraph, match=message) as caught:
        verify(broken(change), after="some_pass")
    if change not in ("outputs", "input"):  # there is no line for these
        assert "^^^" in caught.value.what
        assert "after some_pass" in caught.value.what


def test_a_node_can_be_marked_in_the_text() -> None:
    """print_graph underlines one node."""
    graph = small()
    lines = print_graph(graph, mark=graph.find("sum")).splitlines()
    at = next(i for i, line in enumerate(lines) if "^" in line)
    assert "%sum" in lines[at - 1]


def test_a_node_with_several_results_has_no_single_type() -> None:
    """Asking for the type of a two-result node is an error, and so is a result it does not have."""
    top = make("top_k", input_node("x", Type("f32", (4,))), k=1)
    with pytest.raises(ValueError, match="has 2 results"):
        _ = top.type
    with pytest.raises(InvalidGraph, match="no result 2"):
        result(top, 2)


@pytest.mark.parametrize(
    "arrays",
    [
        (),
        (np.zeros((3, 3), np.float64),),
        (np.zeros((3, 4), np.float32),),
        (np.zeros((3, 3), np.float32),) * 2,
    ],
)
def test_the_interpreter_refuses_inputs_that_do_not_fit(arrays: tuple[np.ndarray, ...]) -> None:
    """A wrong count, dtype or shape raises BadInput."""
    with pytest.raises(BadInput):
        interpret(small(), *arrays)


def test_the_interpreter_shows_every_node() -> None:
    """observe sees each node once, in order, and f64 mode widens floats only."""
    seen: list[Node] = []
    x = np.ones((3, 3), np.float32)
    (y,) = interpret(small(), x, precision="f64", observe=lambda node, _: seen.append(node))
    assert [node.name for node in seen] == [node.name for node in small().nodes]
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, 3)
