"""Programs NAME-run of small graphs, for this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from butterflyc.build import ports
from butterflyc.compiler.ir import Graph
from butterflyc.passes.base import Pass
from butterflyc.targets import cpu
from butterflyc.targets.registry import load_core

HOST = load_core("host")
# Those that give a graph its kernels and its arena.
LAST = ("select_kernels", "pack_weights", "plan_memory")


def command_of(graph: Graph, folder: Path, splits: bool = True) -> Path:
    """The program of ``graph``, in ``folder``."""
    steps: Sequence[Pass] = [step for step in cpu.passes(HOST, "f32") if step.name in LAST]
    for step in steps:
        graph = step(graph)
    files = cpu.emit(graph, HOST, graph.name)
    manifest = {"name": graph.name, "target": "host", "splits": splits, **ports(graph)}
    ((name, code),) = cpu.programs(HOST, manifest, files).items()
    path = folder / name
    path.write_bytes(code)
    path.chmod(0o755)
    return path


def run(path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """How a program ends, and what it says."""
    command = [str(path), *map(str, words)]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
