"""fewer_digits: the sizes of a graph whose dense weights have fewer digits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, verify
from butterflyc.kernels.integer_numbers import largest_of
from butterflyc.passes.fewer_digits import FewerDigits
from butterflyc.passes.quantize_weights import DENSE, deciding

from .graphs import Mixture, build, mixtures, some
from .meaning import Golden, check_golden
from .test_tile_rows import fused


def planes_of(graph: Graph) -> dict[str, int]:
    return {node.name: int(node["planes"]) for node in graph.nodes if node.op in DENSE}


def test_golden(golden: Golden) -> None:
    """A mixture's down-projection has two digits, its router keeps five."""
    mixture = build(Mixture(), np.random.default_rng(3))
    check_golden(golden, FewerDigits(2), fused(mixture))


@some
@given(mixtures(), st.integers(1, 5), st.integers(0, 9))
def test_any_mixture(mixture: Mixture, planes: int, seed: int) -> None:
    """Nothing but weights and their digits changes, and codes are within what digits hold."""
    before = fused(build(mixture, np.random.default_rng(seed)))
    after = FewerDigits(planes)(before)
    verify(after)
    routers = {node.name for node in deciding(before)}
    for name, had in planes_of(before).items():
        assert planes_of(after)[name] == (had if name in routers else min(had, planes))
    assert [n.types for n in before.nodes] == [n.types for n in after.nodes]
    for node in after.nodes:
        if node.op in DENSE:
            codes = after.value(node.operands[1])
            assert np.abs(codes.astype(int)).max(initial=0) <= largest_of(int(node["planes"]))
