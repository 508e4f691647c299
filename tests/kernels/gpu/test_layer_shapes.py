"""Every GPU kernel of a layer serves any shape, by any of its parameters."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from .harness import GPU, LIMITS, Call, check, kernels, run


@kernels
def test_every_way_agrees(kernel):
    """Every choice of parameters computes the op, and the first is the default."""
    call = Call(tokens=7, channels=100, outputs=140, down=36, activation="gelu")
    ways = kernel.space(call.spec(), GPU)
    assert 1 <= len(ways) <= 24
    default = run(kernel, call, GPU)
    np.testing.assert_array_equal(run(kernel, call, GPU, ways[0]), default)
    for parameters in ways[1:]:
        check(kernel, call, parameters)


@kernels
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(0, 80),
    st.booleans(),
    st.sampled_from(list(LIMITS)),
    st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_any_shape(kernel, tokens, chosen, groups_in, groups_out, down, codes, dtype, seed):
    """Numbers of tokens, experts and channels that are no multiples of anything but four."""
    call = Call(
        seed,
        tokens=tokens,
        chosen=chosen,
        channels=4 * groups_in,
        outputs=4 * groups_out,
        down=down,
        dtype=dtype,
        activation="gelu",
        activation_bits=8 if codes else 0,
    )
    assume(kernel.supports(call.spec(), GPU))
    check(kernel, call, limit=max(LIMITS[dtype], 2e-3 if codes else 0))
