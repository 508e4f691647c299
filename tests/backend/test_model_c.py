"""The generated driver: its C interface, odd outputs, and what it refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from butterflyc.compiler.errors import BadInput, Incompatible, ToolMissing, Unsupported, UsageError
from butterflyc.compiler.ir import Graph, Type, constant, input_node, make, result, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.lower.driver import Called
from butterflyc.compiler.lower.link import LinkFailed, c_compiler, run
from butterflyc.compiler.lower.model_c import check_name, write_model
from butterflyc.compiler.run.native import Native, aligned_buffer, check_cpu
from butterflyc.kernels import all_kernels
from butterflyc.passes.pack_weights import PackWeights
from butterflyc.passes.plan_memory import PlanMemory
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.targets import cpu
from butterflyc.targets.registry import load_core

HOST = load_core("host")
LANES = cpu.machine(HOST).lanes


def planned(graph: Graph) -> Graph:
    kernels = all_kernels()
    for step in (
        SelectKernels(kernels, LANES),
        PackWeights(kernels, LANES),
        PlanMemory(kernels, LANES, keep_routing=True),
    ):
        graph = step(graph)
        verify(graph, after=step.name)
    return graph


def native(graph: Graph, name: str = "m") -> tuple[Native, dict[str, bytes], Graph]:
    graph = planned(graph)
    files = cpu.emit(graph, HOST, name)
    arena = int(graph.notes["arena_bytes"])  # type: ignore[arg-type]
    types = [n.type for n in graph.inputs], [n.type for n in graph.outputs]
    return Native(files[f"lib{name}.so"], name, *types, arena), files, graph


def small() -> Graph:
    """relu(x @ w.T) + x, and the sums of its rows."""
    store: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    x = input_node("x", Type("f32", (5, 12)))
    w = constant(store, rng.standard_normal((12, 12)).astype(np.float32), "w")
    y = make("add", make("relu", make("linear", x, w, name="h")), x, name="y")
    return Graph("m", (x,), (y, make("sum", y, axes=(1,))), store)


def test_a_compiled_graph_computes_what_it_means() -> None:
    """Outputs of the library agree with the interpreter."""
    graph = small()
    model, _, _ = native(graph)
    x = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    for got, wanted in zip(model(x), interpret(graph, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_outputs_may_be_inputs_constants_views_or_the_same() -> None:
    """An output that no kernel writes is copied; one value may leave twice."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("f32", (2, 6)))
    c = constant(store, np.arange(3, dtype=np.float32), "c")
    y = make("neg", x)
    top = make("top_k", y, k=2)
    outputs = (
        y,
        make("reshape", y, shape=(12,)),
        x,
        c,
        y,
        result(top, 1),
        make("reshape", x, shape=(3, 4)),
    )
    graph = Graph("m", (x,), outputs, store)
    model, _, _ = native(graph)
    data = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    for got, wanted in zip(model(data), interpret(graph, data), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_chosen_experts_can_be_read_after_a_run() -> None:
    """The arena keeps the indices of top_k until the end of the run."""
    x = input_node("x", Type("f32", (4, 8)))
    top = make("top_k", x, k=2)
    y = make("relu", make("neg", make("exp", result(top, 0))))
    index = make("cast", result(top, 1), dtype="f32")
    model, _, graph = native(Graph("m", (x,), (make("add", y, index),)))
    data = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    model(data)
    node = next(n for n in graph.nodes if n.op == "top_k")
    at = node.notes["at"][1]  # type: ignore[index]
    wanted = np.argsort(-data, axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(model.peek(at, node.types[1]), wanted)  # type: ignore[arg-type]


def test_only_the_interface_is_exported_and_no_library_is_needed(
    needs_tool: Callable[..., str], tmp_path: Path
) -> None:
    """The library exports NAME_run and NAME_predict, and needs nothing but libc."""
    x = input_node("x", Type("f32", (8,)))
    _, files, _ = native(Graph("one", (x,), (make("relu", x),)), "one")
    path = tmp_path / "lib.so"
    path.write_bytes(files["libone.so"])
    nm = needs_tool("nm")
    defined = subprocess.run(
        [nm, "-D", "--defined-only", str(path)], capture_output=True, text=True
    )
    assert {line.split()[-1] for line in defined.stdout.splitlines()} == {"one_run", "one_predict"}
    dynamic = subprocess.run(
        [needs_tool("readelf"), "-d", str(path)], capture_output=True, text=True
    )
    needed = [line.split("[")[1] for line in dynamic.stdout.splitlines() if "NEEDED" in line]
    assert set(needed) <= {"libc.so.6]"}


C_MAIN = """
#include "m.h"
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  static float x[60], y[60], s[5];
  for (int i = 0; i < 60; i++) x[i] = (float)(i % 7) - 3;
  unsigned char *arena = aligned_alloc(64, M_ARENA_BYTES + 64);
  const void *in[1] = {x};
  void *out[2] = {y, s};
  if (m_run(0, out, arena) != -1 || m_run(in, 0, arena) != -1 || m_run(in, out, 0) != -1) return 1;
  if (m_run(in, out, arena + 4) != -2) return 2;
  if (m_run(in, out, arena) != 0) return 3;
  printf("%.6f %d %d\\n", s[4], M_INPUT0_BYTES, M_OUTPUT1_BYTES);
  return 0;
}
"""


@pytest.mark.parametrize("language", ["-std=c99", "-xc++"])
def test_the_interface_works_from_c_and_cxx(tmp_path: Path, language: str) -> None:
    """A C (and C++) program links to the library, and the driver reports misuse."""
    graph = small()
    model, files, _ = native(graph)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = C_MAIN.replace("unsigned char *arena =", "unsigned char *arena = (unsigned char *)")
    (tmp_path / "main.c").write_text(source)
    flags = [language, "-D_ISOC11_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1"]
    command = [*c_compiler(), *flags, "main.c", "-xnone", "-L.", "-lm", f"-Wl,-rpath,{tmp_path}"]
    run([*command, "libm.so", "-o", "main"], str(tmp_path))
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    x = (np.arange(60, dtype=np.float32) % 7 - 3).reshape(5, 12)
    total, bytes_in, bytes_out = printed.split()
    assert float(total) == pytest.approx(float(model(x)[1][4]), abs=1e-5)
    assert (int(bytes_in), int(bytes_out)) == (240, 20)


def test_two_builds_are_identical() -> None:
    """Emitting the same graph twice gives the same bytes."""
    assert native(small())[1] == native(small())[1]


@pytest.mark.parametrize("name", ["", "9x", "a-b", "a b", "é", "a/b"])
def test_names_that_are_no_c_identifiers_are_refused(name: str) -> None:
    """--name must be able to prefix C symbols."""
    with pytest.raises(UsageError, match="cannot be the name"):
        check_name(name)


def test_ops_without_kernel_are_all_listed() -> None:
    """Unsupported names every op that has no kernel, with counts and source lines."""
    x = input_node("x", Type("f64", (3,)))
    y = make("exp", make("exp", x, source="a.py:1"), source="a.py:1")
    graph = Graph("g", (x,), (make("tanh", y, source="b.py:2"),))
    with pytest.raises(Unsupported, match=r"exp\(f64\[3\]\) \(2x\); tanh") as caught:
        planned(graph)
    assert "a.py:1" in str(caught.value.where)
    assert "b.py:2" in str(caught.value.where)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler the error says what was looked for and what to install."""
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(ToolMissing, match="no-such-compiler") as caught:
        c_compiler()
    assert "CC" in str(caught.value.help)


def test_a_failing_tool_shows_what_it_printed(tmp_path: Path) -> None:
    """A compiler that fails gives its message and the command."""
    with pytest.raises(LinkFailed, match="nothing"):
        run([*c_compiler(), "nothing.c"], str(tmp_path))


def test_wrong_arrays_are_refused() -> None:
    """The library never sees an array of another shape or dtype."""
    model, _, _ = native(small())
    for bad in (np.zeros((5, 11), np.float32), np.zeros((5, 12))):
        with pytest.raises(BadInput, match="the model wants"):
            model(bad)


def test_a_cpu_that_lacks_a_feature_is_refused() -> None:
    """An artefact for another CPU is refused before its code runs."""
    with pytest.raises(Incompatible, match="feature warp9"):
        check_cpu(["warp9"])


def test_buffers_are_aligned() -> None:
    """Arenas start at a multiple of 64, whatever their size."""
    for size in (0, 1, 63, 64, 1000):
        assert aligned_buffer(size).ctypes.data % 64 == 0


def test_comments_cannot_end_early() -> None:
    """A name or source line with a comment mark in it leaves the driver valid C."""
    x = input_node("x", Type("f32", (4,)))
    graph = planned(Graph("m", (x,), (make("relu", x, source="*/ evil.py:1 /*"),)))
    symbols = {(n, 0): Called("k") for n in graph.nodes if "kernel" in n.notes}
    source = write_model(graph, "m", symbols).source
    assert "*/ evil" not in source
