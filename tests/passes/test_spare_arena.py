"""spare_arena: scratch that makes no arena larger, and the cheapest way that keeps to it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, input_node, make, verify
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec
from butterflyc.passes.arena import aligned, buffers_of, tensor_bytes
from butterflyc.passes.plan_memory import lower_bound
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.passes.spare_arena import SLACK, SpareArena
from butterflyc.passes.tile_rows import TileRows

from .graphs import Builder, Mixture, build, mixtures, some
from .meaning import GOLDEN, Golden
from .test_tile_rows import fused


def by_tables(kernel: Kernel, spec: Spec, lanes: Lanes) -> float:
    """Prices by which tables win, the larger the better."""
    table = kernel.name == "ternary_dot_table"
    return 10.0 - spec.parameter("trits", 4) - spec.parameter("groups", 4) if table else 100.0


def by_scratch(kernel: Kernel, spec: Spec, lanes: Lanes) -> float:
    """Prices by which what takes the least scratch wins."""
    return float(sum(aligned(tensor_bytes(each)) for each in kernel.scratch(spec, lanes)))


SELECT = SelectKernels(all_kernels(), Lanes(), price=by_tables)


def bound(graph: Graph) -> int:
    return lower_bound(buffers_of(graph, SELECT.kernels, SELECT.lanes, False, True).own)


def one_product() -> Graph:
    """Two products of little data, whose tables are larger than all of it."""
    b = Builder(None)
    rng = np.random.default_rng(0)
    x = input_node("x", Type("i8", (2, 16)))
    first, second = (
        b.constant(name, rng.integers(-13, 14, shape), "i8")
        for name, shape in (("w", (16, 16)), ("v", (400, 16)))
    )
    sums = make("integer_linear", x, first, planes=3, name="sums")
    half = b.constant("half", np.array(1), "i16")
    codes = make("requantize", sums, half, shift=1, name="codes")
    y = make("integer_linear", codes, second, planes=3, name="y")
    return Graph("g", (x,), (y,), b.store)


def test_golden(golden: Golden) -> None:
    """Products give their tables up where these alone would fill the arena."""
    before = SELECT(one_product())
    after = SpareArena(SELECT, sharing=True)(before)
    golden(GOLDEN / "spare_arena.txt", f"{before}\n\n==> spare_arena\n\n{after}\n")


@some
@given(mixtures(), st.integers(0, 9))
def test_any_mixture(mixture: Mixture, seed: int) -> None:
    """The arena is no larger than before, nothing but kernels changes, and twice is once."""
    graph = TileRows()(fused(build(mixture, np.random.default_rng(seed))))
    before = SELECT(graph)
    spare = SpareArena(SELECT, sharing=True)
    after = spare(before)
    verify(after)
    assert spare(after) == after
    assert bound(after) <= bound(before)
    for was, now in zip(before.nodes, after.nodes, strict=True):
        assert (was.name, was.op, was.attributes, was.types) == (
            now.name,
            now.op,
            now.attributes,
            now.types,
        )
    least = SelectKernels(SELECT.kernels, SELECT.lanes, price=by_scratch)(graph)
    assert bound(after) <= bound(least) * (1 + SLACK)
