"""spread_rotations: the members of a group lie in one lane of successive vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import UsageError
from butterflyc.passes.fold_permutations import FoldPermutations
from butterflyc.passes.merge_rotations import MergeRotations
from butterflyc.passes.spread_rotations import SpreadRotations

from .graphs import Mixture, Rotation, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count


def test_golden(golden: Golden) -> None:
    """A rotation whose groups fill the lanes is spread, with a shuffle at each end."""
    mixture = Mixture(k=1, rotation_in=Rotation(8, 1), hidden=4, rotation_out=Rotation(4, 1))
    check_golden(golden, SpreadRotations(4), build(mixture))


@some
@given(mixtures(), st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 99))
def test_means_the_same(mixture: Mixture, lanes: int, seed: int) -> None:
    """Any mixture computes the same with its rotations spread, merged or not."""
    graph = build(mixture, np.random.default_rng(seed))
    assert_same_meaning(graph, SpreadRotations(lanes)(graph))
    assert_same_meaning(graph, SpreadRotations(lanes)(MergeRotations()(graph)))


def test_groups_that_leave_lanes_empty_stay() -> None:
    """16 channels in groups of 4 are 4 groups: over 8 lanes they stay as they are."""
    graph = MergeRotations()(build(Mixture(width=16, rotation_in=Rotation(16), rotation_out=None)))
    assert SpreadRotations(8)(graph) == graph
    assert SpreadRotations(4)(graph) != graph


def test_behind_a_product_spreading_is_free() -> None:
    """Between two products the shuffles of a spread rotation fold away, all of them."""
    mixture = Mixture(hidden=64, rotation_out=Rotation(64), activation="gelu", up_bias=True)
    spread = SpreadRotations(8)(MergeRotations()(build(mixture)))
    folded = FoldPermutations()(spread)
    assert count(folded)["shuffle"] == 0
    assert {n["lanes"] for n in folded.nodes if n.op == "rotate"} == {1, 8}


def test_lanes_are_checked() -> None:
    """No lanes at all is refused."""
    with pytest.raises(UsageError, match="lanes"):
        SpreadRotations(0)
