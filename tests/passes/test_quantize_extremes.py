"""quantize at the ends: tiny and huge numbers, constants in odd places, nothing at all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.codes import interpret_real
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, result, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.ir.ops.integer import exp2
from butterflyc.kernels.integer_numbers import exp2_table
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.quantize_codes import Quantizer, decay_of
from butterflyc.passes.quantize_norms import eps_of
from butterflyc.passes.quantize_weights import coded

from .graphs import Array, Builder
from .test_quantize import block, samples

OCTAVE = np.array(exp2_table())
SOME = settings(max_examples=60, deadline=None)
X = input_node("x", Type("f32", (6, 8)))


def graph_of(output: Node, b: Builder | None = None) -> Graph:
    inputs = tuple(n for n in Graph("g", (), (output,), {}).nodes if n.op == "input") or (X,)
    return Graph("g", inputs, (output,), b.store if b else {})


def share_lost(graph: Graph, given_samples: list[tuple[Array, ...]], fresh: Array) -> float:
    """The energy of the error on ``fresh`` as a share of that of the results."""
    after = Quantize(given_samples)(graph)
    verify(after)
    assert not any(type.is_float for node in after.nodes for type in node.types)
    (wanted,), (found,) = interpret(graph, fresh), interpret_real(after, fresh)
    wanted = wanted.astype(np.float64)
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@SOME
@given(st.floats(-40, 8), st.sampled_from([254, 65534, 2 * 64 * 127**2]), st.integers(0, 2**16))
def test_decays_of_any_size_are_near_the_real_ones(octaves: float, most: int, seed: int) -> None:
    """For scores of any scale, powers fit 32 bits and are within a hundredth of the real ones."""
    unit = 2.0**octaves
    decay = decay_of(unit, most)
    assert 0 < decay["cap"] < 2**31
    assert 0 <= decay["multiplier"] <= 32767
    assert (decay["cap"] * decay["multiplier"]) >> decay["shift"] < 32 * 256 - 1
    below = np.random.default_rng(seed).integers(0, most + 1, 50)
    below[:2] = 0, most
    powers = exp2(below, OCTAVE, **decay) / 2**14
    assert np.abs(powers - np.exp(-below * unit)).max() <= 0.01


def test_scores_that_are_all_alike_weigh_alike() -> None:
    """A scale of 0 divides by nothing: all powers are 1, as of an attention that looks nowhere."""
    decay = decay_of(0.0, 65534)
    assert exp2(np.array([0, 1, 65534]), OCTAVE, **decay).tolist() == [2**14] * 3
    heads = make("reshape", X, shape=(1, 1, 6, 8))
    y = make("attention", heads, heads, heads, scale=0.0, name="y")
    assert share_lost(graph_of(y), samples(graph_of(y), 8), samples(graph_of(y))[0][0]) < 0.01


def test_a_negative_scale_of_attention_is_refused() -> None:
    """The op, its scale and its line are told."""
    heads = make("reshape", X, shape=(1, 1, 6, 8))
    y = make("attention", heads, heads, heads, scale=-0.5, name="y", source="model.py:7")
    with pytest.raises(Unsupported, match=r"negative scale -0.5: model.py:7"):
        Quantize(samples(graph_of(y)))(graph_of(y))


@pytest.mark.parametrize("value", [40000.0, -40000.0, 1e30])
def test_constants_saturate(value: float) -> None:
    """A number beyond the largest code becomes it, and does not come out at the other end."""
    quantizer = Quantizer(Graph("g", (X,), (X,), {}), {}, 40.0, {})
    held = quantizer.constant(np.array([value, 3.0]), "i16", "c")
    assert quantizer.store[str(held["digest"])].tolist() == [math.copysign(32767, value), 3]
    held = quantizer.constant(np.array([value]), "i32", "c", most=1000)
    assert quantizer.store[str(held["digest"])].tolist() == [math.copysign(1000, value)]


@pytest.mark.parametrize("op", ["transpose", "broadcast", "slice", "reshape", "shuffle"])
def test_constants_that_are_moved_have_codes(op: str) -> None:
    """A constant that is moved and then added is codes like any other value."""
    b = Builder(np.random.default_rng(4))
    c = (
        b.numbers("c", 8, 6)
        if op == "transpose"
        else b.numbers("c", 1 if op == "broadcast" else 6, 8)
    )
    moved = {
        "transpose": lambda: make("transpose", c, order=(1, 0)),
        "broadcast": lambda: make("broadcast", c, shape=(6, 8)),
        "slice": lambda: make("slice", c, axis=0, start=0, stop=6),
        "reshape": lambda: make("reshape", c, shape=(6, 8)),
        "shuffle": lambda: make("shuffle", c, b.constant("order", np.arange(8)[::-1], "i32")),
    }[op]()
    graph = graph_of(make("add", X, moved, name="y"), b)
    assert share_lost(graph, samples(graph), samples(graph, seed=1)[0][0]) < 1e-3


def test_ops_of_constants_alone_have_codes() -> None:
    """Means, softmax, norms and choices of constants are as those of what is computed."""
    b = Builder(np.random.default_rng(4))
    c, one = b.numbers("c", 6, 8), b.numbers("w", 8)
    chosen = result(make("top_k", c, k=8, name="top"), 0)
    for y in (
        make("mean", c, axes=(0,)),
        make("softmax", c),
        make("layer_norm", c, one, one),
        chosen,
    ):
        graph = graph_of(make("add", X, y, name="y"), b)
        assert share_lost(graph, samples(graph), samples(graph, seed=1)[0][0]) < 2e-3


def test_conversions_are_made_once_and_named_after_what_they_convert() -> None:
    """`x.i16` is x in 16 bits; a value that several products read is converted once."""
    graph = block(np.random.default_rng(1))
    after = Quantize(samples(graph))(graph)
    made = [node for node in after.nodes if node.op == "requantize"]
    assert not any(node.name.rpartition("_")[2].isdigit() for node in made)
    assert after.find("x.i16").operands[0] is after.find("x")
    b = Builder(np.random.default_rng(1))
    stream = make("add", X, b.numbers("c", 8), name="stream")
    products = [make("linear", stream, b.numbers(f"w{i}", 8, 8), name=f"y{i}") for i in range(3)]
    after = Quantize(samples(graph_of(stream)))(Graph("g", (X,), tuple(products), b.store))
    assert [node.name for node in after.nodes if node.name.startswith("stream.i8")] == [
        "stream.i8.multiplier",
        "stream.i8",
    ]


def test_the_last_node_of_a_value_has_its_name() -> None:
    """Where a table's codes are widened, the table is `y.i8`, and y what is added."""
    graph = graph_of(make("add", make("gelu", X, name="y"), X, name="z"))
    after = Quantize(samples(graph))(graph)
    assert (after.find("y").type.dtype, after.find("y.i8").op) == ("i16", "lookup")


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-4, 1.0, 1e6])
def test_biases_outweigh_tiny_activations(size: float) -> None:
    """A bias is kept however small the activations are; rows without one lose little by it."""
    b = Builder(np.random.default_rng(5))
    w, bias = np.random.default_rng(6).normal(size=(5, 8)), np.array([3.0, -2, 0.5, 0, 1e-3])
    w[2] = 0
    y = make("linear", X, b.constant("w", w), b.constant("bias", bias), name="y")
    graph = graph_of(y, b)
    given_samples = [(size * x,) for (x,) in samples(graph, 16)]
    fresh = size * samples(graph, seed=9)[0][0]
    assert share_lost(graph, given_samples, fresh.astype(np.float32)) < 1e-3


@SOME
@given(st.floats(-20, 40), st.integers(0, 2**16))
def test_rows_with_large_biases_are_within_half_a_code(octaves: float, seed: int) -> None:
    """Each row is within a thousandth of its bias, plus the half codes of its weights."""
    rng = np.random.default_rng(seed)
    weights, added = rng.normal(size=(5, 16)), rng.normal(size=5) * 2.0**octaves
    scale = coded(weights, added, math.inf).scale
    found = coded(weights, added, math.inf).rows * scale[:, None]
    assert (np.abs(np.rint(added / scale)) <= 2**30).all()
    assert (np.abs(np.rint(added / scale) * scale - added) <= scale / 2 * (1 + 1e-9)).all()
    half = np.abs(weights).max(1) / 242
    allowed = np.maximum(half, np.abs(added) / 1000 / 121)
    assert (np.sqrt(np.square(found - weights).mean(1)) <= allowed * (1 + 1e-9)).all()


def norm_graph() -> Graph:
    b = Builder(None)
    ones, zeros = b.constant("w", np.ones(8)), b.constant("b", np.zeros(8))
    return graph_of(make("layer_norm", X, ones, zeros, eps=1e-5, name="y"), b)


@pytest.mark.parametrize("bits", [0, 2, 4, 8, 12])
def test_eps_counts_where_the_variance_is_small(bits: int) -> None:
    """Rows of any variance, beside one of variance 1, are within one and a half codes."""
    rows = np.random.default_rng(0).normal(size=(6, 8)) * np.array([[2.0**-bits]] * 5 + [[1]])
    b = Builder(None)
    c = b.constant("c", rows)
    ones, zeros = b.constant("w", np.ones(8)), b.constant("b", np.zeros(8))
    stream = make("add", make("mul", X, b.constant("none", np.zeros(8))), c, name="stream")
    graph = graph_of(make("layer_norm", stream, ones, zeros, eps=1e-3, name="y"), b)
    seen: dict[str, Array] = {}
    after = Quantize(samples(graph))(graph)
    (found,) = interpret_real(
        after, *samples(graph)[0], observe=lambda node, value: seen.update({node.name: value})
    )
    codes = seen["stream"] * (after.find("stream").type.scale or 0)
    wanted = OPS["layer_norm"].meaning(codes, np.ones(8), np.zeros(8), eps=1e-3)
    last = after.find("y.i8").type.scale
    assert last is not None
    assert np.abs(found - wanted).max() <= 1.6 * last


@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e-5, 1e-3, 1e-2, 1.0, 1e4])
def test_norms_of_tiny_rows_are_those_of_the_model(size: float) -> None:
    """An eps beyond all variances makes a norm a product, whose results are as small as real."""
    graph = norm_graph()
    given_samples = [(size * x,) for (x,) in samples(graph, 8)]
    assert share_lost(graph, given_samples, given_samples[0][0].astype(np.float32)) < 2e-3


@SOME
@given(
    st.sampled_from([0.0, 1e-12, 1e-5, 1e-3, 10.0]),
    st.integers(1, 4096),
    st.floats(-60, 20),
    st.sampled_from(["i8", "i16"]),
)
def test_eps_has_15_bits(eps: float, width: int, octaves: float, dtype: str) -> None:
    """Root and shift are eps in the units of a norm's length, but for the share."""
    scale = 2.0**octaves
    root, shift, share = eps_of(eps, width, scale, dtype)
    assert 0 <= root < 2**15
    assert -15 <= shift < 31
    real = width**1.5 * math.sqrt(eps) / scale * share
    assert abs(root * 2.0**shift - real) <= max(real / 2**14, 2.0**-15)


def test_infinite_constants_are_refused() -> None:
    """A mask of infinities has no codes: the constant is told, not a sample."""
    b = Builder(None)
    mask = b.constant("mask", np.where(np.eye(6, 8) > 0, -np.inf, 0.0))
    graph = graph_of(make("softmax", make("add", X, replace(mask, source="m.py:3"))), b)
    with pytest.raises(Unsupported, match="constant 'mask', which holds") as caught:
        Quantize(samples(graph))(graph)
    assert caught.value.where == "m.py:3"


def test_empty_tensors_have_a_scale() -> None:
    """A tensor of no elements is seen on no sample, and compiles all the same."""
    x = input_node("x", Type("f32", (0, 8)))
    graph = graph_of(make("add", make("gelu", x, name="y"), x, name="z"))
    after = Quantize([(np.zeros((0, 8), np.float32),)])(graph)
    verify(after)
    assert interpret_real(after, np.zeros((0, 8), np.float32))[0].shape == (0, 8)


def test_outliers_do_not_take_all_levels() -> None:
    """One number in 4,096 that is 20 times larger is kept; the error is still below -25 dB."""
    x = input_node("x", Type("f32", (64, 64)))
    b = Builder(np.random.default_rng(0))
    graph = graph_of(make("linear", x, b.numbers("w", 8, 64), name="y"), b)
    sample = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    sample[3, 5] = 20.0
    assert share_lost(graph, [(sample,)], sample) < 0.003
