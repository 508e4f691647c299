"""split_work: which ops have parts, and where parts wait for each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel
from butterflyc.passes.narrow_constants import NarrowConstants
from butterflyc.passes.split_work import SplitWork, part_of, sizes_of

from .graphs import Builder, Mixture, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden
from .test_kernel_passes import Shown, fused, selected

KERNELS, LANES = all_kernels(), Lanes()


def planned(graph: Graph) -> Graph:
    for step in selected():
        graph = step(graph)
    return graph


def split(graph: Graph, threads: int) -> Graph:
    return SplitWork(KERNELS, LANES, threads)(planned(graph))


def block() -> Graph:
    """Half a transformer block: a norm, attention of two heads, a projection and the stream."""
    make_constants = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (1, 5, 16)))
    w, b = (make_constants.numbers(name, 16) for name in ("norm.w", "norm.b"))
    normed = make("layer_norm", x, w, b, eps=1e-5, name="normed")
    qkv = make("linear", normed, make_constants.numbers("qkv.w", 48, 16), name="qkv")
    heads = make("qkv_attention", qkv, heads=2, scale=0.5, name="heads")
    out = make("linear", heads, make_constants.numbers("out.w", 16, 16), name="out")
    y = make("add", x, out, name="y")
    first = make("slice", y, axis=1, start=0, stop=1, step=1, name="first")
    return NarrowConstants()(Graph("block", (x,), (first,), make_constants.store))


def phases(graph: Graph) -> list[list[str]]:
    """The ops of each phase."""
    found: dict[int, list[str]] = {}
    for node in graph.nodes:
        if "phase" in node.notes:
            found.setdefault(int(node.notes["phase"]), []).append(node.op)  # type: ignore[arg-type]
    return [found[number] for number in sorted(found)]


def test_golden(golden: Golden) -> None:
    """Ops get phases, those with parts how many rows, and the graph the scratch of a part."""
    check_golden(golden, Shown(SplitWork(KERNELS, LANES, 3)), planned(block()))


def test_a_phase_goes_on_while_rows_are_enough() -> None:
    """Attention needs all rows of keys, and the slice a row of another part; nothing else waits."""
    assert phases(split(block(), 2)) == [
        ["layer_norm", "linear"],
        ["qkv_attention"],
        ["linear", "add"],
        ["slice"],
    ]


@some
@given(mixtures(), st.integers(0, 99), st.integers(2, 5))
def test_it_means_the_same(mixture: Mixture, seed: int, threads: int) -> None:
    """Notes change no result, and read back from the text."""
    graph = planned(NarrowConstants()(fused(build(mixture, np.random.default_rng(seed)))))
    after = SplitWork(KERNELS, LANES, threads)(graph)
    assert_same_meaning(graph, after)
    assert [node.name for node in after.nodes] == [node.name for node in graph.nodes]


def experts(bits: int, tokens: int = 13) -> Node:
    """Experts of 300 channels, two a token."""
    make_constants = Builder(np.random.default_rng(0))
    x, gates = input_node("x", Type("f32", (tokens, 300))), Type("f32", (tokens, 2))
    chosen = input_node("chosen", Type("i64", (tokens, 2)))
    node = make(
        "butterfly_experts",
        x,
        make_constants.numbers("in", 4, 150, 2, 2),
        make_constants.ternary("w", 8, 300),
        make_constants.numbers("scale"),
        make_constants.numbers("bias", 8),
        input_node("gates", gates),
        chosen,
        activation_bits=bits,
    )
    return node.with_notes(kernel="butterfly_experts")


@pytest.mark.parametrize(
    ("bits", "tokens", "wanted"), [(0, 13, {"panel_rows": 0}), (0, 5, {}), (8, 13, {})]
)
def test_few_rows_are_added_up_as_many_are(bits: int, tokens: int, wanted: dict[str, int]) -> None:
    """Where the whole goes through a panel its parts do: only then sums of floats are the same."""
    _, spec = part_of(experts(bits, tokens), 2, KERNELS)
    assert dict(spec.parameters) == wanted
    assert spec.operands[0].shape == (2, 300)


def test_some_heads_are_asked_of_a_kernel_of_their_own() -> None:
    """A part of attention gets all memory, and is told its heads."""
    node = split(block(), 2).find("heads")
    kernel, spec = part_of(node, 1, KERNELS)
    assert kernel.name == "attention_heads"
    assert (spec.attribute("heads"), spec.attribute("part_heads")) == (2, 1)
    assert spec.operands[0].shape == (1, 5, 48)
    assert sizes_of(node, 5) == ((2, 1),)


def test_what_the_kernel_does_not_take_is_not_split() -> None:
    """An op whose kernel refuses a part of it is computed by one thread."""

    def whole_only(kernel: Kernel) -> Kernel:
        return replace(kernel, supports=lambda spec, lanes: spec.operands[0].shape[1] == 5)

    kernels = tuple(whole_only(k) if k.name == "linear" else k for k in KERNELS)
    graph = SplitWork(kernels, LANES, 2)(planned(block()))
    assert [n.op for n in graph.nodes if "kernel" in n.notes and "split" not in n.notes] == [
        "linear",
        "linear",
        "slice",
    ]
