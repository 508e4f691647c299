"""attention_heads: each part is those heads of attention, to the bit, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterflyc.kernels import attention
from butterflyc.kernels.attention_heads import KERNEL

from .harness import EVERY_LANES, run
from .test_attention import error, qkv_attention


def some_heads(spec, first, count):
    more = (("first_head", first), ("part_heads", count))
    return replace(spec, attributes=tuple(sorted((*spec.attributes, *more))))


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=6)
@given(
    batch=st.integers(1, 2),
    rows=st.integers(1, 20),
    heads=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    depth=st.integers(1, 20),
    causal=st.booleans(),
)
@example(batch=1, rows=65, heads=[2, 1, 1], depth=16, causal=False)
def test_parts_are_the_heads_of_the_whole(lanes, batch, rows, heads, depth, causal):
    """What attention gives, head by head; memory of other heads stays as it was."""
    rng = np.random.default_rng(rows)
    qkv = rng.standard_normal((batch, rows, 3 * sum(heads) * depth), np.float32)
    spec = qkv_attention(qkv, sum(heads), depth**-0.5, causal)
    assert error(spec, [qkv], lanes) < 3e-6
    whole = run(attention.KERNEL, spec, [qkv], lanes)[0].reshape(batch, rows, sum(heads), depth)
    first = 0
    for count in heads:
        found = run(KERNEL, some_heads(spec, first, count), [qkv], lanes)[0].reshape(whole.shape)
        mine = np.zeros(sum(heads), bool)
        mine[first : first + count] = True
        assert found[:, :, mine].tobytes() == whole[:, :, mine].tobytes()
        assert set(found[:, :, ~mine].tobytes()) <= {0xAB}
        first += count


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_it_is_never_chosen_for_a_whole(lanes):
    """It serves only specs that say which heads; its cost is their share."""
    qkv = np.zeros((1, 5, 24), np.float32)
    whole = qkv_attention(qkv, 4, 0.5)
    assert not KERNEL.supports(whole, lanes)
    part = some_heads(whole, 0, 1)
    assert KERNEL.supports(part, lanes)
    assert KERNEL.cost(part, lanes) == attention.KERNEL.cost(whole, lanes) / 4
    assert not KERNEL.supports(some_heads(qkv_attention(qkv, 4, -1.0), 0, 1), lanes)


def test_one_function_serves_all_parts_of_a_size():
    """The first head is a number of the call, and no part of the spec that is built."""
    spec = qkv_attention(np.zeros((1, 5, 24), np.float32), 4, 0.5)
    one, other = some_heads(spec, 0, 2), some_heads(spec, 2, 2)
    assert KERNEL.opened(one) == KERNEL.opened(other)
    assert (KERNEL.arguments(one), KERNEL.arguments(other)) == ((0,), (2,))
