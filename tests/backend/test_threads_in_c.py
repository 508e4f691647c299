"""The driver for several threads with kernels in C, so that sanitizers see every load and store."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from butterflyc.compiler.ir import Graph
from butterflyc.compiler.ir.schedule import steps_of
from butterflyc.compiler.lower.link import c_compiler
from butterflyc.compiler.lower.model_c import threads_of
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.passes.pack_weights import PackWeights
from butterflyc.passes.plan_memory import PlanMemory
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.passes.split_work import SplitWork
from butterflyc.targets import mcu
from butterflyc.targets.registry import load_core

from ..ir.part_cases import CASES, graph_of, values
from ..passes.test_quantize import block
from .test_driver import quantized

MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "m.h"

static const size_t in_bytes[] = {%s}, out_bytes[] = {%s};
#define COUNT(list) (int)(sizeof list / sizeof *list)
enum { INPUTS = COUNT(in_bytes), OUTPUTS = COUNT(out_bytes) };

static void *aligned(size_t bytes) {
  void *place = NULL;
  if (posix_memalign(&place, 64, bytes + 1) != 0) exit(3);
  memset(place, 0xA7, bytes);
  return place;
}

int main(void) {
  void *in[INPUTS], *wanted[OUTPUTS], *found[OUTPUTS];
  void *const arena = aligned(M_ARENA_BYTES), *const more = aligned(M_MT_ARENA_BYTES);
  for (int i = 0; i < INPUTS; i++) {
    in[i] = aligned(in_bytes[i]);
    if (fread(in[i], 1, in_bytes[i], stdin) != in_bytes[i]) return 2;
  }
  for (int i = 0; i < OUTPUTS; i++) wanted[i] = aligned(out_bytes[i]);
  if (m_run((const void *const *)in, wanted, arena) != 0) return 4;
  for (int threads = 1; threads <= 5; threads++) {
    m_pool *const pool = m_pool_create(threads);
    for (int turn = 0; turn < 3; turn++) {
      for (int i = 0; i < OUTPUTS; i++) found[i] = aligned(out_bytes[i]);
      if (m_run_mt((const void *const *)in, found, more, pool) != 0) return 5;
      for (int i = 0; i < OUTPUTS; i++) {
        if (memcmp(found[i], wanted[i], out_bytes[i]) != 0) return 6;
        free(found[i]);
      }
    }
    if (m_run_mt((const void *const *)in, found, (char *)more + 1, pool) != -2) return 7;
    if (m_run_mt(NULL, found, more, pool) != -1) return 7;
    m_pool_destroy(pool);
  }
  if (m_run_mt((const void *const *)in, wanted, more, NULL) != -1) return 7;
  for (int i = 0; i < INPUTS; i++) free(in[i]);
  for (int i = 0; i < OUTPUTS; i++) free(wanted[i]);
  free(arena), free(more);
  return 0;
}
"""


def split(graph: Graph, threads: int) -> Graph:
    kernels, lanes = all_kernels(), Lanes()
    for step in (
        SelectKernels(kernels, lanes),
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes),
        SplitWork(kernels, lanes, threads),
    ):
        graph = step(graph)
    return graph


def check(graph: Graph, sanitizer: str) -> None:
    """The graph in C gives the same in several threads as in one, and the sanitizer is content."""
    rng = np.random.default_rng(0)
    data = b"".join(values(node.type, rng).tobytes() for node in graph.inputs)
    ends = [[str(n.type.bytes) for n in nodes] for nodes in (graph.inputs, graph.outputs)]
    files = mcu.emit(graph, load_core("c99"), "m") | {
        "m_pool.c": threads_of(graph, "m").pool().encode(),
        "main.c": (MAIN % tuple(map(", ".join, ends))).encode(),
    }
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / Path(file).name).write_bytes(content)
        flags = ["-std=gnu99", "-O1", "-g", "-fwrapv", "-Wall", "-Werror", "-pthread"]
        flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
        sources = sorted(Path(file).name for file in files if file.endswith(".c"))
        command = [*c_compiler(), *flags, *sources, "-lm", "-o", "main"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode and "lib" in done.stderr and sanitizer:
            pytest.skip(f"the C compiler has no -fsanitize={sanitizer}")
        assert done.returncode == 0, done.stderr
        run = subprocess.run([Path(folder) / "main"], input=data, capture_output=True)
        assert run.returncode == 0, run.stderr.decode()[-3000:]


# These hold an infinity or a square root, which are not printed in C.
NOT_IN_C = ("softmax", "attention", "qkv_attention", "layer_norm")
IN_C = [name for name in CASES if name not in NOT_IN_C]
SANITIZERS = ["", "thread", "address"]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("threads", [2, 4])
def test_every_op(threads: int, sanitizer: str) -> None:
    """No two parts of any op meet in memory."""
    check(split(graph_of((2, 3), IN_C, np.random.default_rng(1)), threads), sanitizer)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_transformer_block(causal: bool, sanitizer: str) -> None:
    """Ops that use memory again wait for those that still read it, and only for them."""
    graph = split(quantized(block(np.random.default_rng(2), causal)), 3)
    phases = {step.nodes[0].notes["phase"] for step in steps_of(graph)}
    assert len(phases) < len(steps_of(graph))
    check(graph, sanitizer)
