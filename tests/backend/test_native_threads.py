"""A library of several threads, loaded in Python: its pool, and what became of it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from butterflyc.compiler.ir import Graph, Type, constant, input_node, make
from butterflyc.compiler.lower.elf import undefined_symbols
from butterflyc.compiler.lower.model_c import threads_of
from butterflyc.compiler.run import native
from butterflyc.compiler.run.native import Native, RunFailed
from butterflyc.targets import cpu

from ..compiled.test_threads import HOST, planned

LANES = cpu.machine(HOST).lanes
X = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)


def product() -> Graph:
    """gelu(x @ w.T) + x."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("f32", (5, 12)))
    w = constant(store, np.random.default_rng(0).random((16, 12), np.float32), "w")
    h = make("linear", x, w, activation="gelu", name="h")
    return Graph("m", (x,), (make("softmax", h, name="y"),), store)


def load(threads: int) -> Native:
    graph = planned(product(), threads, LANES)
    files = cpu.emit(graph, HOST, "m")
    types = [n.type for n in graph.inputs], [n.type for n in graph.outputs]
    return Native(files["libm.so"], "m", *types, threads_of(graph, "m").bytes, threads=threads)


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def await_tasks(wanted: int) -> None:
    """A thread that has ended may be listed for a moment more."""
    for _ in range(2000):
        if tasks() == wanted:
            return
    assert tasks() == wanted


def test_threads_start_with_the_first_call_and_end_with_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loading starts none, a call starts one less than there are, and none is left behind."""
    monkeypatch.setattr(native, "cores", lambda: 3)
    before = tasks()
    model = load(4)
    assert tasks() == before
    first, second = model(X), model(X)
    assert tasks() == before + 2, "4 threads, but 3 cores"
    np.testing.assert_array_equal(first[0], second[0])
    del model
    gc.collect()
    await_tasks(before)


def test_the_result_is_that_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as there are cores, or more of them, give the same bits."""
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(native, "cores", lambda count=count: count)
        results.append(load(3)(X)[0])
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_a_process_that_is_forked_off_gets_a_pool_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child computes in threads of its own, and ends; the parent goes on."""
    monkeypatch.setattr(native, "cores", lambda: 3)
    model = load(3)
    wanted = model(X)[0]
    child = os.fork()
    if child == 0:
        found = model(X)[0]
        good = np.array_equal(found, wanted) and tasks() == 3
        del model
        gc.collect()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(model(X)[0], wanted)


def test_threads_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how many were wanted, and what to do; a later call may have more luck."""
    monkeypatch.setattr(native, "cores", lambda: 3)
    model = load(3)
    assert model._pool is not None
    create, model._pool._create = model._pool._create, lambda threads: None
    with pytest.raises(RunFailed, match="did not give 2 threads beside this one") as caught:
        model(X)
    assert "ulimit" in str(caught.value.help)
    model._pool._create = create
    assert model(X)[0].shape == (5, 16)


def test_only_the_interface_is_exported(needs_tool: Callable[..., str], tmp_path: Path) -> None:
    """NAME_run, run_mt, predict and the pool's two functions, and nothing of how they work."""
    graph = planned(product(), 2, LANES)
    files = cpu.emit(graph, HOST, "one")
    (tmp_path / "lib.so").write_bytes(files["libone.so"])
    names = subprocess.run(
        [needs_tool("nm"), "-D", "--defined-only", "lib.so"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout.split()[2::3]
    wanted = {"run", "run_mt", "predict", "pool_create", "pool_destroy"}
    assert set(names) == {f"one_{name}" for name in wanted}
    assert undefined_symbols(files["one_kernels.o"]) <= {"memcpy", "memset"}


def test_a_program_ends_with_a_pool_that_is_in_use(tmp_path: Path) -> None:
    """An interpreter that ends while a model is loaded ends at once, and well."""
    program = (
        "from tests.backend.test_native_threads import X, load, native\n"
        "native.cores = lambda: 3\n"
        "model = load(3)\n"
        "print(model(X)[0].shape)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "(5, 16)\n"), done.stderr
