"""quantize: floats become integers, within a measured error; what it cannot do is told."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given

from butterflyc.compiler.codes import encode, interpret_real
from butterflyc.compiler.errors import BadInput, Unsupported
from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, result, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.kernels.lanes import Lanes
from butterflyc.passes.budget import DEFAULT
from butterflyc.passes.quantize import Quantize
from butterflyc.targets.parts import integer_passes

from .graphs import Array, Builder, Mixture, Rotation, build, mixtures, some
from .meaning import GOLDEN, Golden


def in_front(graph: Graph) -> Graph:
    """What the passes in front of this one make of a graph."""
    steps = integer_passes((), DEFAULT, Lanes(), keep_routing=False)
    for step in takewhile(lambda step: step.name != "quantize", steps):
        graph = step(graph)
    return graph


def samples(graph: Graph, count: int = 6, seed: int = 0) -> list[tuple[Array, ...]]:
    rng = np.random.default_rng(seed)
    shapes = [node.type.shape for node in graph.inputs]
    return [tuple(rng.standard_normal(s).astype(np.float32) for s in shapes) for _ in range(count)]


def encoded(graph: Graph, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """Floats as the codes of the inputs of an integer graph."""
    return tuple(encode(x, node.type) for x, node in zip(inputs, graph.inputs, strict=True))


def block(rng: np.random.Generator | None = None, causal: bool = False) -> Graph:
    """A transformer block on 5 tokens of 8 channels, two heads, a mean over tokens at the end."""
    b = Builder(rng)
    x = input_node("x", Type("f32", (1, 5, 8)))

    def linear(x: Node, name: str, rows: int) -> Node:
        width = x.type.shape[-1]
        operands = x, b.numbers(f"{name}.weight", rows, width), b.numbers(f"{name}.bias", rows)
        return make("linear", *operands, name=name)

    def norm(x: Node, name: str) -> Node:
        operands = x, b.numbers(f"{name}.weight", 8), b.numbers(f"{name}.bias", 8)
        return make("layer_norm", *operands, name=name)

    def heads(x: Node, name: str) -> Node:
        split = make("reshape", linear(x, name, 8), shape=(1, 5, 2, 4), name=f"{name}.split")
        return make("transpose", split, order=(0, 2, 1, 3), name=f"{name}.heads")

    position = b.numbers("position", 1, 5, 8)
    stream = make("add", x, position, name="stream")
    inner = norm(stream, "norm1")
    parts = (heads(inner, name) for name in ("q", "k", "v"))
    y = make("attention", *parts, scale=0.5, causal=causal, name="attention")
    y = make("reshape", make("transpose", y, order=(0, 2, 1, 3)), shape=(1, 5, 8))
    stream = make("add", stream, linear(y, "proj", 8), name="stream2")
    hidden = make("gelu", linear(norm(stream, "norm2"), "up", 16), name="gelu")
    stream = make("add", stream, linear(hidden, "down", 8), name="stream3")
    pooled = make("mean", norm(stream, "norm3"), axes=(1,), name="pooled")
    return Graph("block", (x,), (linear(pooled, "head", 3),), b.store)


def test_golden(golden: Golden) -> None:
    """A mixture and a transformer block, before and after."""
    texts = []
    mixture = Mixture(rotation_in=Rotation(8, 1), rotation_out=None, softmax=True)
    for graph in (in_front(build(mixture, np.random.default_rng(0))), block()):
        after = Quantize(samples(graph))(graph)
        verify(after)
        texts.append(f"{graph}\n\n==> quantize\n\n{after}\n")
    golden(GOLDEN / "quantize.txt", "\n----\n\n".join(texts))


@some
@given(mixtures())
def test_every_mixture_has_an_integer_form(mixture: Mixture) -> None:
    """No float is left; results are near the real ones wherever the same experts are chosen."""
    graph = in_front(build(mixture, np.random.default_rng(0)))
    given_inputs = samples(graph, 8)
    after = Quantize(given_inputs)(graph)
    verify(after)
    assert not any(type.is_float for node in after.nodes for type in node.types)
    errors, sizes = 0.0, 0.0
    for inputs in given_inputs:
        if _experts(graph, inputs) != _experts(after, encoded(after, inputs)):
            continue
        (wanted,), (found,) = interpret(graph, *inputs), interpret_real(after, *inputs)
        errors += float(np.square(found - wanted).sum())
        sizes += float(np.square(wanted).sum())
    assert errors <= 0.16 * sizes + 1e-9  # 8 dB: rows of two channels may have few levels


def _experts(graph: Graph, inputs: tuple[Array, ...]) -> list[list[int]]:
    chosen: list[list[int]] = []

    def observe(node: Node, value: object) -> None:
        if node.op == "top_k" and isinstance(value, tuple):
            chosen.append(np.sort(value[1]).ravel().tolist())

    interpret(graph, *inputs, observe=observe)
    return chosen


@pytest.mark.parametrize("causal", [False, True])
def test_a_transformer_block_is_near_the_real_one(causal: bool) -> None:
    """Attention, norms, GELU, residuals and pooling lose about one part in thirty."""
    graph = block(np.random.default_rng(1), causal)
    after = Quantize(samples(graph, 16))(graph)
    verify(after)
    fresh = samples(graph, 16, seed=5)
    pairs = [(interpret(graph, *x)[0], interpret_real(after, *x)[0]) for x in fresh]
    error = sum(np.square(found - wanted).sum() for wanted, found in pairs)
    assert error <= 0.002 * sum(np.square(wanted).sum() for wanted, _ in pairs)


@pytest.mark.parametrize(
    "zero", ["norm1.bias", "norm2.weight", "up.bias", "down.weight", "q.weight"]
)
def test_constants_of_zeros_are_as_good_as_others(zero: str) -> None:
    """A bias of zeros, as of a fresh norm, or a matrix of zeros takes no bits from the others."""
    graph = block(np.random.default_rng(1))
    digest = next(str(n["digest"]) for n in graph.nodes if n.name == zero)
    graph.constants[digest][:] = 0  # type: ignore[index]
    after = Quantize(samples(graph, 16))(graph)
    pairs = [
        (interpret(graph, *x)[0], interpret_real(after, *x)[0]) for x in samples(graph, 16, seed=5)
    ]
    error = sum(np.square(found - wanted).sum() for wanted, found in pairs)
    assert error <= 0.002 * sum(np.square(wanted).sum() for wanted, _ in pairs)


def test_what_is_added_up_has_one_scale_of_16_bits() -> None:
    """The residual stream has one scale throughout, and so has all that is added to it."""
    after = Quantize(samples(block(np.random.default_rng(1))))(block(np.random.default_rng(1)))
    added = [node for node in after.nodes if node.op == "saturating_add"]
    types = {(x.type.dtype, x.type.scale) for node in added for x in (node, *node.operands)}
    assert len(added) == 3
    assert len(types) == 1
    assert types.pop()[0] == "i16"


def test_ops_without_an_integer_form_are_listed_at_once() -> None:
    """All of them, with their lines, and what to do."""
    x = input_node("x", Type("f32", (2, 4)))
    y = make("exp", x, name="e", source="model.py:3")
    y = make("sin", make("exp", y, source="model.py:4"), source="model.py:5")
    with pytest.raises(Unsupported) as caught:
        Quantize([(np.zeros((2, 4), np.float32),)])(Graph("g", (x,), (y,), {}))
    assert "exp: model.py:3, model.py:4" in str(caught.value)
    assert "sin: model.py:5" in str(caught.value)
    assert caught.value.where == "model.py:3"
    assert "f32" in str(caught.value.help)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_activations_within_a_product_are_not_lost(activation: str) -> None:
    """A linear op with its activation is a product and a table."""
    b = Builder(np.random.default_rng(3))
    x = input_node("x", Type("f32", (6, 8)))
    y = make("linear", x, b.numbers("w", 5, 8), b.numbers("b", 5), activation=activation)
    graph = Graph("g", (x,), (y,), b.store)
    after = Quantize(samples(graph, 20))(graph)
    verify(after)
    assert sum(node.op == "lookup" for node in after.nodes) == 1
    for inputs in samples(graph, 5, seed=9):
        (wanted,), (found,) = interpret(graph, *inputs), interpret_real(after, *inputs)
        assert np.abs(found - wanted).max() <= 0.05 * np.abs(wanted).max()


def test_integers_and_constants_stay_what_they_are() -> None:
    """Numbers of experts are computed with as before; a constant output has no codes."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (3, 8)))
    numbers = result(make("top_k", x, k=2, name="top"), 1)
    more = make("add", numbers, b.constant("one", np.array(1), "i64"), name="more")
    graph = Graph("g", (x,), (more, b.numbers("c", 4), make("neg", more)), b.store)
    after = Quantize(samples(graph))(graph)
    verify(after)
    inputs = samples(graph, 1)[0]
    pairs = zip(interpret(graph, *inputs), interpret_real(after, *inputs), strict=True)
    for wanted, found in pairs:
        np.testing.assert_array_equal(found, wanted)


def test_forms_of_an_op_that_have_no_integers() -> None:
    """Products by what is computed, softmax down a column, and rows that would overflow."""
    x = input_node("x", Type("f32", (2, 8)))
    wide = input_node("x", Type("f32", (300, 300)))
    cases: list[tuple[str, Graph]] = [
        ("linear by what is computed", Graph("g", (x,), (make("linear", x, x),), {})),
        ("another axis", Graph("g", (x,), (make("softmax", x, axis=0),), {})),
        ("sum of 90000 numbers", Graph("g", (wide,), (make("sum", wide, axes=(0, 1)),), {})),
    ]
    for what, graph in cases:
        zeros = (np.zeros(graph.inputs[0].type.shape, np.float32),)
        with pytest.raises(Unsupported, match=what):
            Quantize([zeros])(graph)


def test_no_samples_are_refused() -> None:
    """Scales are chosen by samples: without any there are none."""
    with pytest.raises(BadInput, match="no samples"):
        Quantize([])(block())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    """The sample and the value where it shows are named."""
    graph = block(np.random.default_rng(1))
    bad = samples(graph, 3)
    bad[1][0][0, 2, 3] = value
    if value == 1e30:  # finite itself, and infinite once it is squared
        graph = Graph("g", graph.inputs, (make("mul", *graph.inputs * 2, name="square"),), {})
    with pytest.raises(BadInput, match=r"on sample 1, '.*' is not finite"):
        Quantize(bad)(graph)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_one_sample_and_constant_ones_will_do(size: float) -> None:
    """One sample of zeros, or of ones, gives scales: all results are those of the real graph."""
    graph = block(np.random.default_rng(1))
    sample = (np.full((1, 5, 8), size, np.float32),)
    after = Quantize([sample])(graph)
    verify(after)
    (wanted,), (found,) = interpret(graph, *sample), interpret_real(after, *sample)
    assert np.abs(found - wanted).max() <= 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("tail", [1, 2, 3, 30])
def test_codes_are_clipped_where_that_loses_less(tail: int) -> None:
    """Of heavy-tailed samples the chosen scale loses no more than that of the largest value."""
    x = input_node("x", Type("f32", (100, 100)))
    w = Builder(np.random.default_rng(0))
    graph = Graph("g", (x,), (make("linear", x, w.numbers("w", 4, 100)),), w.store)
    sample = np.random.default_rng(2).standard_t(tail, (100, 100)).astype(np.float32)
    scale = Quantize([(sample,)])(graph).inputs[0].type.scale
    assert scale is not None
    largest = float(np.abs(sample).max()) / 127
    chosen, unclipped = (
        np.square(np.clip(np.rint(sample / s), -127, 127) * s - sample).mean()
        for s in (scale, largest)
    )
    assert scale <= largest * (1 + 1e-6)
    assert chosen <= unclipped * (1 + 1e-6)
