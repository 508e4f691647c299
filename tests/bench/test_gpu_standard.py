"""All standard mixtures that a Butterfly layer is timed against compute the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.bench.gpu.contender import draws_for
from butterflyc.bench.gpu.device import Rehearsal, launches_of
from butterflyc.bench.gpu.problem import Shape, difference
from butterflyc.bench.gpu.standard import Mixtures, route, tiled_plan
from butterflyc.kernels.gpu.grouped_product import most_tiles, plan, space

DEVICE = Rehearsal()
LIMITS = {"f32": 1e-5, "f16": 5e-3, "bf16": 3e-2}
SMALL = {"rows": 16, "outputs": 32, "depth": 16, "warps": 4, "stages": 2}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("routing", ["uniform", "zipf", "one expert"])
def test_all_ways_agree(dtype, routing):
    """The loop, gathered matrices, the library's product and our kernels, on any routing."""
    shape = Shape(32, 48, 6, 7)
    draws = draws_for(DEVICE, shape, routing)
    mixtures = Mixtures(shape, dtype, DEVICE, 6)
    made = [
        mixtures.gathered(),
        mixtures.library(),
        mixtures.library(routed=True),
        mixtures.tiled({**SMALL, "split": 0}),
        mixtures.tiled({**SMALL, "split": 2}, routed=True),
    ]
    right = mixtures.loop()
    with torch.no_grad():
        for copy, draw in enumerate(draws):
            wanted = right.call(copy, draw)
            for contender in made:
                error = difference(contender.call(copy, draw), wanted)
                assert error < LIMITS[dtype], (contender.name, contender.note)


@given(
    st.integers(1, 40),
    st.integers(2, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 3),
)
@settings(max_examples=6, deadline=None)
def test_our_kernels_at_any_shape(tokens, experts, groups_in, groups_out, split):
    """Tokens, widths and depths that no tile divides, and K in parts that are not of one size."""
    shape = Shape(4 * groups_in, 4 * groups_out, experts, tokens)
    draws = draws_for(DEVICE, shape, "uniform")
    mixtures = Mixtures(shape, "f32", DEVICE, experts)
    made = mixtures.tiled({**SMALL, "split": split})
    assert difference(made.once(draws), mixtures.loop().once(draws)) < 1e-5


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True), min_size=1),
    st.integers(10, 12),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_tiles_hold_every_row_once(chosen, count, height):
    """Each tile is of one expert and no higher than it may be; the last ones are not needed."""
    experts = torch.tensor(chosen)
    found = route(experts, count, height)
    held = []
    for expert, first, end in zip(found.expert, found.first, found.end, strict=True):
        if expert >= 0:
            rows = found.order[first:end]
            assert 0 < len(rows) <= height
            assert bool((experts.flatten()[rows.long()] == expert).all())
            held += rows.tolist()
    assert sorted(held) == list(range(experts.numel()))
    assert len(found.expert) == most_tiles(experts.numel(), count, height)


def test_ways_have_launches_of_their_own():
    """Every way is another plan, and all have two products."""
    for tokens in (1, 4096):
        plans = [plan(way, tokens, 2, 8, 256, 1024, "bf16") for way in space(tokens)]
        assert len(set(plans)) == len(plans)
        functions = [[step.function for step in launches_of(each)] for each in plans]
        assert all(names[:2] == ["grouped_product"] * 2 for names in functions)


def test_what_is_compiled_by_torch_is_the_same():
    """Gathered matrices under torch.compile, traced on this CPU."""
    shape = Shape(16, 32, 4, 3)
    draws = draws_for(DEVICE, shape, "uniform")
    mixtures = Mixtures(shape, "f32", DEVICE, 4)
    made = mixtures.gathered(compiled=True)
    assert difference(made.once(draws), mixtures.loop().once(draws)) < 1e-5
    assert made.name.endswith("compiled")


def test_one_compiled_kernel_serves_many_shapes():
    """Symbols depend neither on experts nor, but where rows are placed, on tokens."""

    def symbols(split, tokens, experts):
        shape = Shape(1024, 4096, experts, tokens)
        way = {"rows": 16, "outputs": 64, "depth": 64, "warps": 4, "stages": 4, "split": split}
        return [launch.symbol for launch in launches_of(tiled_plan(way, shape, "bf16"))]

    assert symbols(4, 1, 8) == symbols(4, 32, 64) == symbols(4, 7, 9)
    assert symbols(0, 32, 8) == symbols(0, 32, 64) != symbols(0, 1, 64)
