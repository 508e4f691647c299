"""The float ternary product agrees with its meaning at any shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.ternary_matmul import KERNEL
from butterflyc.targets.lanes_x86 import Avx2

from .harness import EVERY_LANES
from .meaning import floats, meaning, relative_error, results_of, spec_of, ternary


def operands(rows, outputs, depth, per_output):
    rng = np.random.default_rng(depth)
    scale = np.abs(floats(rng, outputs)) if per_output else np.asarray(np.float32(0.3))
    return [floats(rng, rows, depth), ternary(rng, outputs, depth), scale]


def check(arrays, lanes, **parameters):
    (result,) = results_of(KERNEL, "ternary_matmul", arrays, lanes, parameters=parameters)
    (wanted,) = meaning("ternary_matmul", arrays, double=True)
    assert relative_error(result, wanted) < 1e-5


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(st.integers(1, 130), st.integers(1, 75), st.integers(1, 600), st.booleans())
@settings(max_examples=8)
def test_agrees_with_its_meaning(lanes, rows, outputs, depth, per_output):
    """Relative error <= 1e-5 of float64, scale a scalar or one an output."""
    check(operands(rows, outputs, depth, per_output), lanes)


@pytest.mark.parametrize("rows", [3, 13])
def test_every_way_agrees(rows):
    """Every choice of parameters computes the same product."""
    arrays = operands(rows, 40, 300, True)
    for parameters in KERNEL.space(spec_of("ternary_matmul", arrays), Avx2()):
        check(arrays, Avx2(), **parameters)
