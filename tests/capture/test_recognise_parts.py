"""The instruments of recognition one by one, and whole layers in hand-built IR, without torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.capture.recognise import recognise
from butterflyc.compiler.capture.recognise_probe import (
    OutOfReach,
    Probe,
    fold_constants,
    separators,
)
from butterflyc.compiler.capture.recognise_rotation import (
    Activation,
    Bias,
    Blocks,
    RowProbe,
    Shuffle,
    Step,
    Unknown,
    classify,
    run_step,
    simplified,
)
from butterflyc.compiler.capture.recognise_routers import with_top_k
from butterflyc.compiler.capture.recognise_rows import layouts
from butterflyc.compiler.capture.recognise_ternary import as_ternary, is_selection
from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make, result
from butterflyc.compiler.ir.interpret import interpret

Array = np.ndarray
seeds = st.integers(0, 2**16)


# --- rows ---


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.permutations(range(3)))
def test_rows_are_found_whatever_the_order_of_axes(
    seed: int, tokens: int, slots: int, channels: int, order: list[int]
) -> None:
    """Of all layouts of a transposed tensor, one reads the rows, and each writes what it read."""
    rows = np.random.default_rng(seed).standard_normal((tokens, slots, channels))
    value = rows.transpose(order)
    found = list(layouts(value.shape, tokens, slots))
    assert any(np.array_equal(each.read(value), rows) for each in found)
    assert all(np.array_equal(each.write(each.read(value)), value) for each in found)


def test_rows_are_found_in_a_shared_axis() -> None:
    """Tokens and slots in one axis, either first, and slots and channels in one axis."""
    rows = np.arange(3 * 2 * 4.0).reshape(3, 2, 4)
    for value in (rows.reshape(6, 4), rows.swapaxes(0, 1).reshape(6, 4), rows.reshape(3, 8)):
        assert any(np.array_equal(each.read(value), rows) for each in layouts(value.shape, 3, 2))


# --- maps ---


def map_of(steps: list[Step]) -> RowProbe:
    def run(rows: Array, experts: Array) -> Array:
        for step in steps:
            rows = run_step(step, rows, experts)
        return rows

    return run


def givens(rng: np.random.Generator, experts: int, pairs: int) -> Array:
    angle = rng.normal(size=(experts, pairs))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


@given(seeds, st.integers(1, 12), st.integers(1, 5))
def test_a_layer_of_rotations_is_factored(seed: int, pairs: int, experts: int) -> None:
    """Order, 2x2 blocks, order come out as steps that compute the same map, blocks of size 2."""
    rng = np.random.default_rng(seed)
    n = 2 * pairs
    blocks = givens(rng, experts, pairs)
    run = map_of([Shuffle(rng.permutation(n)), Blocks(blocks), Shuffle(rng.permutation(n))])
    found = classify(run, n, experts, rng)
    assert isinstance(found, list)
    factored = simplified(found, n)
    x, e = rng.standard_normal((6, n)), rng.integers(experts, size=6)
    assert np.allclose(map_of(factored)(x, e), run(x, e), atol=1e-12)
    (kept,) = [step for step in factored if isinstance(step, Blocks)]
    assert kept.blocks.shape == blocks.shape


def test_a_zero_angle_hides_no_pair() -> None:
    """A pair that some experts leave alone is still one pair, for those that turn it."""
    rng = np.random.default_rng(0)
    blocks = givens(rng, 3, 4)
    blocks[:2, 1] = np.eye(2)
    found = classify(map_of([Blocks(blocks)]), 8, 3, rng)
    assert isinstance(found, list)
    (kept,) = [step for step in simplified(found, 8) if isinstance(step, Blocks)]
    assert np.array_equal(kept.blocks, blocks)


def test_two_reflections_of_the_same_pairs_are_one_rotation() -> None:
    """Two of three reflections become one layer, unless an order of channels lies between them."""
    rng = np.random.default_rng(0)
    mirrors = [Blocks(givens(rng, 3, 4) * np.array([1.0, -1.0])) for _ in range(3)]
    x, e = rng.standard_normal((6, 8)), rng.integers(3, size=6)
    both = simplified([*mirrors[:2]], 8)
    assert [type(step) for step in both] == [Blocks]
    assert np.allclose(map_of(both)(x, e), map_of([*mirrors[:2]])(x, e), atol=1e-12)
    assert len(simplified([*mirrors], 8)) == 2
    apart: list[Step] = [mirrors[0], Shuffle(np.arange(8)[::-1]), mirrors[1]]
    assert simplified(apart, 8) == apart


@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_an_order_is_read_from_one_probe(seed: int, channels: int, outputs: int) -> None:
    """Permutation, padding, stripping and repetition are orders of channels."""
    rng = np.random.default_rng(seed)
    order = rng.integers(-1, channels, size=outputs)
    found = classify(map_of([Shuffle(order)]), channels, 3, rng)
    assert isinstance(found, list)
    assert [type(step) for step in found] == [Shuffle]
    assert isinstance(found[0], Shuffle)
    assert np.array_equal(found[0].order, order)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid"])
def test_activations_are_told_by_their_values(name: str) -> None:
    """An elementwise function is named after the op that computes it."""
    found = classify(map_of([Activation(name)]), 5, 2, np.random.default_rng(0))
    assert found == [Activation(name)]


def test_a_bias_is_kept_apart() -> None:
    """A constant vector is a step of its own, whatever linear map it follows."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(6)
    found = classify(map_of([Bias(values)]), 6, 2, rng)
    assert isinstance(found, list)
    assert isinstance(found[-1], Bias)
    assert np.array_equal(found[-1].values, values)


def test_other_maps_are_unknown() -> None:
    """Dense maps, other orders for other experts, and maps that are not linear get a reason."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((40, 40))
    orders = np.stack([rng.permutation(40) for _ in range(3)])
    offsets = rng.standard_normal((3, 40))
    cases: list[tuple[RowProbe, str]] = [
        (lambda x, e: x @ dense, "mixes more than"),
        (lambda x, e: np.take_along_axis(x, orders[e], 1), "mixes more than"),
        (lambda x, e: x * np.abs(x), "not linear"),
        (lambda x, e: x + offsets[e], "adds something else"),
        (lambda x, e: x / np.abs(x).max(1, keepdims=True), "of zero"),
        (lambda x, e: x * np.inf, "finite"),
        (lambda x, e: (x + x[:, ::-1]) * (np.count_nonzero(x) > len(x)), "depends on no channel"),
    ]
    for run, reason in cases:
        with np.errstate(all="ignore"):
            found = classify(run, 40, 3, rng)
        assert isinstance(found, Unknown)
        assert reason in found.reason


# --- matrices ---


@given(seeds, st.booleans())
def test_ternary_matrices_are_exact(seed: int, per_row: bool) -> None:
    """codes * scale is the matrix, for one scale and for a scale a row."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (5, 9))
    scale = rng.uniform(0.1, 2, 5 if per_row else ()).astype(np.float32)
    w = (codes * (scale[:, None] if per_row else scale)).astype(np.float32)
    found = as_ternary(w)
    if not codes.any():
        assert found is None
        return
    assert found is not None
    assert found.drift == 0
    assert np.array_equal(found.value.astype(np.float32), w)


def test_straight_through_rounding_is_measured() -> None:
    """w + (quantised - w) in float32 is ternary up to a drift; five levels are not."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 30)).astype(np.float32)
    quantised = (0.7 * np.sign(w) * (np.abs(w) > 0.4)).astype(np.float32)
    found = as_ternary(w + (quantised - w))
    assert found is not None
    assert 0 < found.drift < 1e-6
    assert np.array_equal(found.codes, np.sign(quantised))
    assert as_ternary(np.clip(np.rint(2 * w), -2, 2)) is None
    assert as_ternary(w) is None
    assert is_selection(np.eye(4))
    assert not is_selection(np.ones((2, 2)))


# --- graphs ---


def test_constants_fold_in_their_own_precision() -> None:
    """What depends on no input is computed in float32, as eager does, and the rest is kept."""
    store: dict[str, Array] = {}
    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    x = input_node("x", Type("f32", (2, 4)))
    angles = make("cos", constant(store, w, "w"), name="cosines", source="m.py:3")
    graph = Graph("g", (x,), (make("linear", x, angles),), store)
    folded = fold_constants(graph)
    assert [node.op for node in folded.nodes] == ["input", "constant", "linear"]
    kept = folded.find("cosines")
    assert kept.source == "m.py:3"
    assert np.array_equal(folded.value(kept), np.cos(w))
    assert len(folded.constants) == 1


def test_a_probe_lifts_what_it_is_given() -> None:
    """Given floats are double precision through every op; constants alone stay float32."""
    store: dict[str, Array] = {}
    x = input_node("x", Type("f32", (2,)))
    third = constant(store, np.array([1, 1], np.float32) / np.float32(3), "third")
    root = make("sqrt", third)
    y = make("mul", make("add", x, third), root)
    probe = Probe(store)
    value, fixed = probe.run([y, root], {x: np.array([1.0, 2.0])})
    assert value.dtype == np.float64
    assert fixed.dtype == np.float32
    with pytest.raises(OutOfReach, match="'x'"):
        probe.run([y], {})


def test_separators_are_the_nodes_on_every_path() -> None:
    """Branches that meet again hide nothing but themselves; given nodes are no way round."""
    x = input_node("x", Type("f32", (2,)))
    first = make("neg", x, name="first")
    left, right = make("exp", first, name="left"), make("sin", first, name="right")
    joined = make("add", left, right, name="joined")
    beside = input_node("beside", Type("f32", (2,)))
    end = make("mul", joined, beside, name="end")
    found = separators(Probe({}), x, end, {beside})
    assert [node.name for node in found] == ["x", "first", "joined", "end"]


def test_routing_forms_become_a_top_k() -> None:
    """argmax with its maximum, and a sort of which k are read, are top_k; other argmax stay."""
    store: dict[str, Array] = {}
    scores = input_node("scores", Type("f32", (5, 4)))
    table = constant(store, np.arange(8, dtype=np.float32).reshape(4, 2), "table")
    best = make("argmax", scores, axis=-1, name="best")
    chosen = make("take", table, best, name="chosen")
    gate = make("reshape", make("max", scores, axes=(1,), name="gate"), shape=(5, 1))
    order = make("top_k", scores, k=4, name="order")
    two = make("slice", result(order, 1, "numbers"), axis=1, stop=2, name="two")
    outputs = (make("mul", chosen, gate, name="y"), make("take", table, two, name="z"))
    graph = Graph("g", (scores,), (*outputs, make("argmax", scores, axis=0, name="other")), store)
    changed = with_top_k(graph)
    assert sorted(int(n["k"]) for n in changed.nodes if n.op == "top_k") == [1, 2]
    assert [n.name for n in changed.nodes if n.op == "argmax"] == ["other"]
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    for was, now in zip(interpret(graph, x), interpret(changed, x), strict=True):
        assert np.array_equal(was, now)
    plain = Graph("g", (scores,), (make("argmax", scores, axis=-1),))
    assert with_top_k(plain) is plain


# --- whole layers, built by hand ---


class Hand:
    """A linear Butterfly layer in plain ops: T = 5, d = 4, F = 6, E = 3, k = 2, L = 1."""

    def __init__(self, seed: int, slot_first: bool, factor: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.store: dict[str, Array] = {}
        x = input_node("x", Type("f32", (1, 5, 4)))
        scores = make("linear", x, self.number(3, 4), name="scores")
        top = make("top_k", scores, k=2, name="top")
        numbers, gates = result(top, 1, "numbers"), result(top, 0, "values")
        order = (1, 0) if slot_first else (0, 1)
        numbers = make("transpose", make("reshape", numbers, shape=(5, 2)), order=order)
        gates = make("transpose", make("reshape", gates, shape=(5, 2)), order=order)
        rows = make("reshape", x, shape=(1, 5, 4) if slot_first else (5, 1, 4))
        rows = self.turned(rows, numbers, 4)
        codes = self.rng.integers(-1, 2, (6, 4)) * 0.3
        codes[0, 0] = 0.3 * factor
        w = constant(self.store, codes.astype(np.float32), "w")
        rows = self.turned(make("linear", rows, w, name="product"), numbers, 6)
        gates = make("reshape", gates, shape=(*gates.type.shape, 1))
        axis = 0 if slot_first else 1
        y = make("sum", make("mul", rows, gates), axes=(axis,), name="y", source="layer.py:7")
        self.graph = Graph("hand", (x,), (make("exp", y),), self.store)

    def number(self, *shape: int) -> Node:
        return constant(self.store, self.rng.standard_normal(shape).astype(np.float32))

    def turned(self, rows: Node, numbers: Node, width: int) -> Node:
        """Channel j with channel j + width / 2, by the angles of each row's expert."""
        angles = self.rng.normal(size=(3, width // 2)).astype(np.float32)
        cos, sin = (
            make("take", constant(self.store, f(angles)), numbers) for f in (np.cos, np.sin)
        )
        a, b = (
            make("slice", rows, axis=2, start=i * width // 2, stop=(i + 1) * width // 2)
            for i in range(2)
        )
        first = make("sub", make("mul", a, cos), make("mul", b, sin))
        second = make("add", make("mul", a, sin), make("mul", b, cos))
        return make("concat", first, second, axis=2)


@pytest.mark.parametrize("slot_first", [False, True])
def test_a_layer_in_plain_ops_is_recognised(slot_first: bool) -> None:
    """Without torch, names or classes, token-major or slot-major, the layer is found exactly."""
    graph = Hand(0, slot_first).graph
    found = recognise(graph)
    (report,) = found.layers
    assert (report.recognised, report.source, report.path) == ("full", "layer.py:7", "hand")
    assert (report.experts_found, report.experts, report.k) == (3, 3, 2)
    ops = [node.op for node in found.graph.nodes]
    assert (ops.count("rotate"), ops.count("ternary_matmul"), ops.count("exp")) == (4, 2, 1)
    assert "take" not in ops
    x = np.random.default_rng(1).standard_normal((1, 5, 4)).astype(np.float32)
    (was,), (now,) = (interpret(each, x, precision="f64") for each in (graph, found.graph))
    assert np.allclose(was, now, rtol=1e-12)


def test_one_weight_off_is_not_ternary() -> None:
    """A single weight a hundredth off its level is enough to leave the layer as it is."""
    graph = Hand(0, False, factor=1.01).graph
    found = recognise(graph)
    assert found.layers[0].recognised == "none"
    assert found.graph == graph
