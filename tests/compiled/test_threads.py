"""``NAME_run_mt`` gives the bits of ``NAME_run``, for every op and for whole models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import butterflyc as bc
from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.compiler.lower.model_c import threads_of
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.passes.pack_weights import PackWeights
from butterflyc.passes.plan_memory import PlanMemory
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.passes.split_work import SplitWork
from butterflyc.targets import cpu
from butterflyc.targets.registry import load_core

from ..ir.part_cases import CASES, graph_of, values
from .threaded import Threaded, of_graph, of_program

HOST = load_core("host")
POOLS = (1, 2, 3, 4, 5)


def planned(graph: Graph, threads: int, lanes: Lanes) -> Graph:
    kernels = all_kernels()
    for step in (
        SelectKernels(kernels, lanes),
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes, keep_routing=True),
        SplitWork(kernels, lanes, threads),
    ):
        graph = step(graph)
    return graph


def built(graph: Graph, threads: int) -> Threaded:
    graph = planned(graph, threads, cpu.machine(HOST).lanes)
    return of_graph(graph, cpu.emit(graph, HOST, "m"), threads_of(graph, "m").bytes)


@settings(max_examples=3, deadline=None)
@example((2, 13), 4, 0)  # 26 rows at once go through a panel, 6 or 7 of them would not
@example((1,), 3, 0)
@example((3,), 4, 0)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=2).map(tuple),
    st.integers(2, 4),
    st.integers(0, 9),
)
def test_every_op_has_the_same_bits_in_parts(lead: tuple[int, ...], parts: int, seed: int) -> None:
    """All ops side by side, of any leading axes: parts are the whole, whoever computes them."""
    rng = np.random.default_rng(seed)
    graph = graph_of(lead, list(CASES), rng)
    samples = [tuple(values(x.type, rng) for x in graph.inputs) for _ in range(3)]
    built(graph, parts).check(POOLS, samples)


def test_two_callers_at_once() -> None:
    """Two threads of a program run the same library, each with a pool and an arena of its own."""
    rng = np.random.default_rng(0)
    graph = graph_of((3, 3), list(CASES)[:12], rng)
    model = built(graph, 3)
    samples = [tuple(values(x.type, rng) for x in graph.inputs) for _ in range(30)]
    with ThreadPoolExecutor(2) as callers:
        for done in [callers.submit(model.check, (3, 2), samples) for _ in range(2)]:
            done.result()


def test_a_part_is_no_less_than_a_vector() -> None:
    """Of 27 elements in 9 rows a part would be less than a vector, which rounds otherwise."""
    x = input_node("x", Type("f32", (9, 3)))
    outputs = tuple(make(op, x, name=op) for op in ("gelu", "exp", "tanh", "silu", "sin"))
    rng = np.random.default_rng(0)
    samples = [(rng.standard_normal((9, 3)).astype(np.float32),) for _ in range(20)]
    built(Graph("g", (x,), outputs), 4).check(POOLS, samples)


@pytest.mark.parametrize("mode", ["f32", "a8"])
def test_more_channels_than_a_block_of_sums(mode: str) -> None:
    """Experts of 300 channels, where a product of many rows adds up its sums in blocks."""
    torch.manual_seed(0)
    config = ButterflyConfig(d_model=300, d_ff=40, experts=3, top_k=2, angle_std=0.8)
    x = torch.randn(7, 300)
    program = bc.compile(ButterflyMoE(config).eval(), (x,), mode=mode, threads=4)
    of_program(program).check(POOLS, [(x.numpy(),), (2 * x.numpy(),)])
