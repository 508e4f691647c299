"""C of microcontrollers, built for this machine: loops over rows, and memory that is shared."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, constant, input_node, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.schedule import steps_of
from butterflyc.kernels import all_kernels
from butterflyc.passes.fuse_epilogues import FuseEpilogues
from butterflyc.passes.pack_weights import PackWeights
from butterflyc.passes.plan_memory import PlanMemory
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.passes.tile_rows import TileRows
from butterflyc.targets import mcu
from butterflyc.targets.registry import load_core

from ..passes.graphs import Mixture, build, mixtures
from ..passes.test_quantize import block, in_front, samples

FEW = settings(max_examples=15, deadline=None)
GUARD = 64
# The instructions of cortex-m4 stand for themselves in C elsewhere.
CORES = st.sampled_from(["c99", "cortex-m4"])


def planned(graph: Graph, tile: int, core: str = "c99") -> Graph:
    """An integer graph as microcontrollers get it, with tiles of this many rows."""
    kernels, lanes = all_kernels(), mcu.machine(load_core(core)).lanes
    for step in (
        FuseEpilogues(),
        TileRows(tile),
        SelectKernels(kernels, lanes),
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes, sharing=True),
    ):
        graph = step(graph)
    return graph


def in_c(graph: Graph, core: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """What the C of a planned graph gives here, from an arena full of rubbish."""
    files = mcu.emit(graph, load_core(core), "m")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file, content in files.items():
            (folder / Path(file).name).write_bytes(content)
        sources = sorted(path.name for path in folder.glob("*.c"))
        flags = ["-std=c99", "-O1", "-fwrapv", "-shared", "-fPIC", "-Wall", "-Werror"]
        subprocess.run(["cc", *flags, "-o", "m.so", *sources], cwd=folder, check=True)
        run = ctypes.CDLL(str(folder / "m.so")).m_run
    size = int(graph.notes["arena_bytes"])  # type: ignore[arg-type]
    memory = np.full(size + 64 + GUARD, 0xA7, np.uint8)
    start = -memory.ctypes.data % 64
    outputs = [np.full(n.type.shape, 77, n.type.storage) for n in graph.outputs]
    status = run(_pointers(inputs), _pointers(outputs), ctypes.c_void_p(memory.ctypes.data + start))
    assert status == 0
    assert (memory[start + size :] == 0xA7).all(), "written behind the arena"
    return outputs


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def check(graph: Graph, tile: int, seed: int = 0, core: str = "c99") -> Graph:
    """The C of an integer graph gives what the graph means."""
    graph = planned(graph, tile, core)
    rng = np.random.default_rng(seed)
    types = [node.type for node in graph.inputs]
    inputs = [rng.integers(-127, 128, t.shape).astype(t.storage) for t in types]
    for wanted, found in zip(interpret(graph, *inputs), in_c(graph, core, *inputs), strict=True):
        np.testing.assert_array_equal(found, wanted)
    return graph


def quantized(graph: Graph) -> Graph:
    graph = in_front(graph)
    return Quantize(samples(graph))(graph)


@FEW
@given(mixtures(), st.integers(1, 4), st.integers(0, 99), CORES)
def test_any_mixture(mixture: Mixture, tile: int, seed: int, core: str) -> None:
    """Whatever is tiled, and wherever results lie, they are those of the interpreter."""
    graph = quantized(build(mixture, np.random.default_rng(seed)))
    if all(node.type.dtype in ("i8", "i16") for node in graph.inputs):
        check(graph, tile, seed, core)


@FEW
@given(st.integers(1, 6), st.booleans(), st.integers(0, 99), CORES)
def test_a_transformer_block(tile: int, causal: bool, seed: int, core: str) -> None:
    """Tiles that divide the rows, that do not, and that hold them all."""
    graph = check(quantized(block(np.random.default_rng(seed), causal)), tile, seed, core)
    assert any(step.rows for step in steps_of(graph)) == (tile < 5)


def test_the_stream_stays_where_it_is() -> None:
    """All sums of a residual stream lie in one place, and no more is alive than that and a head."""
    graph = planned(quantized(block()), 2)
    stream = [n for n in graph.nodes if n.type.dtype == "i16" and n.type.size == 40]
    whole = [n for n in stream if "at" in n.notes and "tiled" not in n.notes]
    assert [node.name for node in whole] == ["stream", "stream2.0", "stream2", "stream3"]
    assert len({node.notes["at"] for node in whole}) == 1
    assert ["in_place" in node.notes for node in whole] == [False, True, True, True]


def joined(outer: int) -> Graph:
    """Two products of an input, a constant and the input itself, one behind the other."""
    store: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    x = input_node("x", Type("i8", (outer, 3, 4)))
    parts = [x]
    for name in ("first", "second"):
        w = constant(store, rng.integers(-9, 10, (4, 4)).astype(np.int8), f"{name}.w")
        factor = constant(store, np.array(77, np.int16), f"{name}.m")
        sums = make("integer_linear", x, w, name=f"{name}.sums")
        parts.append(make("requantize", sums, factor, shift=9, name=name))
    parts.append(constant(store, rng.integers(-9, 10, (outer, 1, 4)).astype(np.int8), "row"))
    whole = make("concat", *parts, axis=1, name="whole")
    turned = make("transpose", whole, order=(0, 2, 1), name="turned")
    return Graph("joined", (x,), (turned, parts[1]), store)


def test_parts_are_made_in_their_place() -> None:
    """What is put together along the first axis is not copied, unless it is needed elsewhere."""
    graph = check(joined(1), 2)
    whole, second = graph.find("whole"), graph.find("second")
    assert "kernel" not in whole.notes
    offset = int(second.notes["at"][0]) - int(whole.notes["at"][0])  # type: ignore[index]
    assert offset == 2 * 12
    apart = check(joined(2), 2)
    assert apart.find("whole").notes["kernel"] == "move"


def test_parts_of_an_output_are_copied() -> None:
    """An output is not in the arena: its parts go there one after the other."""
    graph = joined(1)
    whole = graph.find("whole")
    check(Graph("joined", graph.inputs, (whole,), graph.constants), 2)
