"""A graph run by torch is the graph; nodes with plans get their buffers as the launcher is told."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import BadInput, UnknownName, Unsupported, UsageError
from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make, result
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.run.torch_graph import TorchGraph, float32_sums
from butterflyc.compiler.run.torch_ops import evaluate, tensor_of
from butterflyc.compiler.run.torch_types import TORCH
from butterflyc.kernels.gpu.launch import Plan, Unpack
from butterflyc.kernels.layout import pack
from butterflyc.kernels.record import Tensor
from butterflyc.passes.force_routing import ForceRouting
from butterflyc.passes.half_products import HalfProducts
from butterflyc.passes.merge_rotations import MergeRotations
from butterflyc.passes.quantize_activations import QuantizeActivations

from ..digits import digits_model
from ..ir.samples import op_samples, values
from ..passes.graphs import Builder, Mixture, build, mixtures, some
from ..passes.meaning import inputs_of
from ..passes.test_canonicalize import random_graphs

Array = np.ndarray
NOTHING = Plan(())


def tensors(graph: Graph, inputs: tuple[Array, ...]) -> list[torch.Tensor]:
    return [tensor_of(x, node.type) for x, node in zip(inputs, graph.inputs, strict=True)]


def assert_same(graph: Graph, limit: float, *, seed: int = 0) -> None:
    """Outputs differ by no more than ``limit``, or that share of the largest: by round-off."""
    inputs = inputs_of(graph, seed)
    wanted = interpret(graph, *inputs)
    found = TorchGraph(graph, "cpu")(*tensors(graph, inputs))
    for x, y, node in zip(found, wanted, graph.outputs, strict=True):
        assert (tuple(x.shape), x.numpy().dtype) == (node.type.shape, node.type.storage)
        largest = max(float(np.abs(y).max(initial=0)), 1)
        np.testing.assert_allclose(x.numpy(), y, rtol=0, atol=limit * largest)


@given(random_graphs())
def test_random_graphs(graph: Graph) -> None:
    """Any graph of generic ops gives what the interpreter gives, in double precision."""
    with np.errstate(all="ignore"):
        wanted = interpret(graph, *inputs_of(graph))
    found = TorchGraph(graph, "cpu")(*tensors(graph, inputs_of(graph)))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x.numpy(), y, rtol=1e-9, atol=1e-9, equal_nan=True)


@some
@given(mixtures(), st.integers(0, 99))
def test_mixtures(mixture: Mixture, seed: int) -> None:
    """Any mixture gives what the interpreter gives, its rotations merged or not."""
    graph = build(mixture, np.random.default_rng(seed))
    assert_same(graph, 1e-5, seed=seed)
    assert_same(MergeRotations()(graph), 1e-5, seed=seed)


@some
@given(mixtures(), st.integers(0, 99))
def test_mixtures_on_codes(mixture: Mixture, seed: int) -> None:
    """A mixture on 8-bit codes is off by no more than a code or two that fell beside a tie."""
    graph = QuantizeActivations()(build(mixture, np.random.default_rng(seed)))
    assert_same(graph, 2e-2, seed=seed)


@pytest.mark.parametrize("dtype", [None, "f16", "bf16"])
def test_a_model(dtype: str | None) -> None:
    """The trained model gives the interpreter's logits, and routes alike but for near ties."""
    images = torch.rand(4, 1, 8, 8, generator=torch.manual_seed(0))
    graph = capture(digits_model(turned=True), (images,)).graph
    graph = graph if dtype is None else HalfProducts(dtype)(graph)
    wanted_routing, routing = list[Array](), list[Array]()

    def watch(into: list[Array]) -> Any:
        return lambda node, value: into.append(value[1]) if node.op == "top_k" else None

    (wanted,) = interpret(graph, images.numpy(), observe=watch(wanted_routing))
    TorchGraph(graph, "cpu")(images, observe=watch(routing))
    assert len(routing) == len(wanted_routing) > 0
    for mine, other in zip(routing, wanted_routing, strict=True):
        # Sums in another order are rounded to halves on the other side now and then.
        assert (np.asarray(mine) == other).mean() >= (1 if dtype is None else 0.97)
    forced = ForceRouting()(graph)
    (found,) = TorchGraph(forced, "cpu")(images, *map(torch.from_numpy, wanted_routing))
    error = np.linalg.norm(found.numpy() - wanted) / np.linalg.norm(wanted)
    assert error <= {None: 1e-5, "f16": 2e-3, "bf16": 1.6e-2}[dtype]


def test_every_node_is_observed_in_order() -> None:
    """Inputs, constants and results are seen too, by the names they have in the graph."""
    graph = build(Mixture(), np.random.default_rng(0))
    seen = dict[str, Any]()
    TorchGraph(graph, "cpu")(
        *tensors(graph, inputs_of(graph)),
        observe=lambda node, value: seen.update({node.name: value}),
    )
    assert list(seen) == [node.name for node in graph.nodes]
    torch.testing.assert_close(seen["routing"][1], seen["experts"])


def test_what_nobody_reads_any_more_is_freed() -> None:
    """At each node of a chain, all values but the last two are gone."""
    x = input_node("x", Type("f32", (64,)))
    node: Node = x
    for _ in range(6):
        node = make("exp", node)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = []

    def watch(node: Node, value: torch.Tensor) -> None:
        if node.op == "exp":
            alive.append(weakref.ref(value))
            most.append(sum(ref() is not None for ref in alive))

    graph = TorchGraph(Graph("g", (x,), (node,), {}), "cpu")
    y = graph(torch.zeros(64), observe=watch)
    assert max(most) == 2
    assert len(y) == 1


def test_inputs_that_do_not_fit_are_refused() -> None:
    """A wrong count, shape, dtype or device is named, with what is wanted."""
    x = input_node("x", Type("bf16", (2, 3)))
    graph = TorchGraph(Graph("g", (x,), (make("exp", x),), {}), "cpu")
    good = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert graph(good)[0].dtype == torch.bfloat16
    with pytest.raises(BadInput, match="g takes 1 inputs, got 2"):
        graph(good, good)
    for bad in (good.float(), good.reshape(3, 2), good.to("meta")):
        with pytest.raises(
            BadInput, match=r"input 'x' is .*the graph wants torch.bfloat16\[2, 3\]"
        ):
            graph(bad)


def test_integer_mode_is_refused() -> None:
    """A graph with an op of integer mode is refused, and the op named, before anything runs."""
    types, attributes = op_samples()["saturating_add"][0]
    a, b = (input_node(name, type) for name, type in zip("ab", types, strict=True))
    y = make("saturating_add", a, b, name="sum", source="model.py:3", **attributes)
    with pytest.raises(Unsupported, match=r"'sum' is saturating_add(.|\n)*model.py:3"):
        TorchGraph(Graph("g", (a, b), (y,), {}), "cpu")


def test_plans_need_a_node_and_a_launcher() -> None:
    """A plan of no node is refused with the nearest names; plans without a launcher are, too."""
    graph = layers(1)
    with pytest.raises(UnknownName, match=r"unknown node 'layer1'(.|\n)*nearest: layer0"):
        TorchGraph(graph, "cpu", {"layer1": NOTHING}, Recorder(graph))
    with pytest.raises(UsageError, match="1 nodes of g have plans"):
        TorchGraph(graph, "cpu", {"layer0": NOTHING})


LAYOUT = "ternary4x4"


def layers(count: int) -> Graph:
    """Layers after one another, whose ternary weights are packed; the last rows are a slice."""
    types, attributes = op_samples()["butterfly_layer"][1]
    rng, b = np.random.default_rng(0), Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (7, 8)))
    gates = input_node("gates", Type("f32", (3, 2)))
    experts = input_node("experts", Type("i64", (3, 2)))
    rows = make("slice", x, axis=0, start=1, stop=7, step=2)
    w = values(types[2], rng)
    packed = constant(b.store, pack(LAYOUT, w), "w", replace(types[2], layout=LAYOUT))
    pairs = [b.constant(f"pairs{i}", values(types[i], rng), "f16") for i in (1, 7)]
    scale, bias = b.constant("scale", np.array(0.5), "bf16"), b.numbers("bias", 12)
    down = b.constant("down", rng.normal(size=(8, 12)), "f16")
    for i in range(count):
        operands = (rows, pairs[0], packed, scale, bias, gates, experts, pairs[1], down)
        rows = make("butterfly_layer", *operands, name=f"layer{i}", **attributes)
    return Graph("g", (x, gates, experts), (make("neg", rows, name="y"),), b.store)


class Recorder:
    """Computes planned nodes by torch ops, and keeps the buffers that it was given."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.loaded: dict[str, dict[str, torch.Tensor]] = {}
        self.given: dict[str, dict[str, torch.Tensor]] = {}

    def load(self, name: str, buffers: dict[str, torch.Tensor]) -> None:
        assert name not in self.loaded, "done once"
        self.loaded[name] = dict(buffers)
        buffers["dense"] = torch.full((12, 8), len(self.loaded), dtype=torch.int8)

    def run(self, name: str, buffers: dict[str, torch.Tensor]) -> None:
        self.given[name] = dict(buffers)
        for label, buffer in buffers.items():
            assert buffer.is_contiguous()
            assert buffer.data_ptr() % 16 == 0
            if label.startswith("scratch"):
                buffer.view(torch.uint8).fill_(255)  # NaN, for whoever relies on its contents
        node = self.graph.find(name)
        operands = [buffers[label] for label in LABELS]
        w = node.operands[2]
        (weights,) = interpret(Graph("w", (), (w,), self.graph.constants))
        operands[2] = torch.from_numpy(np.array(weights))
        buffers["y"].copy_(evaluate(node, operands)[0])


LABELS = ["x", "pairs_in", "w", "scale", "bias", "gates", "experts", "pairs_out", "w_down"]
SCRATCH = (Tensor("f16", (6, 8)), Tensor("i8", (12, 8)), Tensor("f32", (5,)))


def given_inputs() -> tuple[Array, ...]:
    rng = np.random.default_rng(1)
    experts = rng.integers(0, 4, (3, 2))
    return (*(rng.normal(size=s).astype(np.float32) for s in ((7, 8), (3, 2))), experts)


def planned(graph: Graph, plans: Mapping[str, Plan]) -> tuple[Recorder, TorchGraph]:
    recorder = Recorder(graph)
    scratch = dict.fromkeys(plans, SCRATCH)
    return recorder, TorchGraph(graph, "cpu", plans, recorder, scratch)


def test_planned_nodes_are_run_by_the_launcher() -> None:
    """Results are the interpreter's; operands come by name, aligned, packed ones as stored."""
    graph = layers(2)
    recorder, program = planned(graph, {"layer0": NOTHING, "layer1": NOTHING})
    (found,) = program(*tensors(graph, given_inputs()))
    (wanted,) = interpret(graph, *given_inputs())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert list(recorder.given) == ["layer0", "layer1"]
    for buffers in recorder.given.values():
        assert set(buffers) == {*LABELS, "y", "scratch0", "scratch1", "scratch2"}
        stored = graph.value(graph.find("w"))
        np.testing.assert_array_equal(buffers["w"].numpy(), stored)
        assert buffers["scale"].dtype == torch.bfloat16
        for i, tensor in enumerate(SCRATCH):
            assert tuple(buffers[f"scratch{i}"].shape) == tensor.shape
        assert buffers["scratch1"].dtype == torch.int8
    one, two = recorder.given.values()
    assert one["w"].data_ptr() == two["w"].data_ptr()
    assert one["scratch0"].data_ptr() == two["scratch0"].data_ptr()
    assert recorder.loaded == {}


def test_what_is_made_once_stays() -> None:
    """`load` gets constants and scratch, once; every run finds what it added, for its own node."""
    graph = layers(2)
    unpack = Plan((), (Unpack("w", "dense", (12, 8), "i8"),))
    recorder, program = planned(graph, {"layer0": unpack, "layer1": unpack})
    for _ in range(2):
        program(*tensors(graph, given_inputs()))
    assert list(recorder.loaded) == ["layer0", "layer1"]
    constants = set(LABELS) - {"x", "gates", "experts"}
    assert set(recorder.loaded["layer0"]) == constants | {"scratch0", "scratch1", "scratch2"}
    for i, buffers in enumerate(recorder.given.values()):
        assert (buffers["dense"] == i + 1).all()


def test_scratch_of_one_node_does_not_overlap() -> None:
    """Tensors of one plan lie apart; nodes share memory for as much as the largest needs."""
    graph = layers(2)
    recorder = Recorder(graph)
    scratch = {"layer0": SCRATCH, "layer1": SCRATCH[::-1]}
    plans = dict.fromkeys(scratch, NOTHING)
    TorchGraph(graph, "cpu", plans, recorder, scratch)(*tensors(graph, given_inputs()))
    for name, wanted in scratch.items():
        buffers = [recorder.given[name][f"scratch{i}"] for i in range(len(wanted))]
        for i, (buffer, tensor) in enumerate(zip(buffers, wanted, strict=True)):
            assert (buffer.dtype, tuple(buffer.shape)) == (TORCH[tensor.dtype], tensor.shape)
            buffer.zero_()
            for other in buffers[:i]:
                assert (other == 1).all()
            buffer.fill_(1)


def test_one_planned_node_among_others() -> None:
    """A node without a plan reads its packed constant unpacked, beside one that has it packed."""
    graph = layers(2)
    recorder, program = planned(graph, {"layer1": NOTHING})
    (found,) = program(*tensors(graph, given_inputs()))
    (wanted,) = interpret(graph, *given_inputs())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert list(recorder.given) == ["layer1"]


def test_settings_of_the_process_come_back() -> None:
    """Products are in full float32 while a graph runs, also if it fails; then as before."""
    matmul = torch.backends.cuda.matmul
    names = ("fp32_precision", "allow_fp16_reduced_precision_reduction")
    before = [getattr(matmul, name) for name in names]
    with float32_sums():
        assert [getattr(matmul, name) for name in names] == ["ieee", False]
    with pytest.raises(ZeroDivisionError), float32_sums():
        raise ZeroDivisionError
    assert [getattr(matmul, name) for name in names] == before


def test_gradients_are_not_kept() -> None:
    """An input that wants a gradient gives outputs that have none."""
    x = input_node("x", Type("f32", (2,)))
    top = make("top_k", x, k=1)
    graph = Graph("g", (x,), (result(top, 0), result(top, 1)), {})
    values, where = TorchGraph(graph, "cpu")(torch.tensor([1.0, 2.0], requires_grad=True))
    assert not values.requires_grad
    assert where.tolist() == [1]
