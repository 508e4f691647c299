"""Whether two graphs mean the same, and the text of a golden file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from butterflyc.compiler.ir import Graph, parse_graph, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.base import Pass

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[[Path, str], None]


def inputs_of(graph: Graph, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=n.type.shape).astype(n.type.storage) for n in graph.inputs)


def assert_same_meaning(before: Graph, after: Graph, limit: float = 1e-12) -> None:
    """``after`` is valid, reads back from its text, and computes what ``before`` does in f64."""
    verify(after)
    assert parse_graph(str(after), after.constants) == after
    read = {str(node["digest"]) for node in after.nodes if node.op == "constant"}
    assert set(after.constants) == read, "constants that nothing reads"
    inputs = inputs_of(before)
    wanted = interpret(before, *inputs, precision="f64")
    found = interpret(after, *inputs, precision="f64")
    for want, got in zip(wanted, found, strict=True):
        assert want.dtype == got.dtype
        largest = np.abs(want).max(initial=0)
        assert np.abs(want - got).max(initial=0) <= limit * max(largest, 1e-3)


def check_golden(golden: Golden, apply: Pass, *graphs: Graph) -> None:
    """The golden file of a pass shows each graph before and after."""
    texts = []
    for graph in graphs:
        after = apply(graph)
        verify(after)
        texts.append(f"{graph}\n\n==> {apply!r}\n\n{after}\n")
    golden(GOLDEN / f"{apply.name}.txt", "\n----\n\n".join(texts))


def count(graph: Graph) -> Counter[str]:
    """How often each op stands in ``graph``."""
    return Counter(node.op for node in graph.nodes)
