"""matmul against the interpreter in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels.matmul import KERNEL
from butterflyc.kernels.record import Spec, Tensor

from .harness import EVERY_LANES, relative_error, run, tensor


def spec_of(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    result = Tensor("f32", (*batch, a.shape[-2], b.shape[-1]))
    return Spec("matmul", (), (tensor(a), tensor(b)), (result,))


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=12)
@given(
    batch=st.sampled_from([((), ()), ((3,), (3,)), ((2, 1), (3,)), ((), (2,)), ((2, 3), (2, 3))]),
    rows=st.integers(1, 14),
    depth=st.integers(1, 21),
    outputs=st.integers(1, 45),
)
@example(batch=((), ()), rows=1, depth=1, outputs=1)
@example(batch=((), ()), rows=1, depth=9, outputs=81)
@example(batch=((), ()), rows=7, depth=4, outputs=12)
@example(batch=((2,), (2,)), rows=6, depth=5, outputs=16)
def test_every_shape(lanes, batch, rows, depth, outputs):
    """Odd sizes and broadcast batches give the interpreter's result."""
    rng = np.random.default_rng(rows * 1000 + outputs)
    a = rng.standard_normal((*batch[0], rows, depth), np.float32)
    b = rng.standard_normal((*batch[1], depth, outputs), np.float32)
    result = run(KERNEL, spec_of(a, b), [a, b], lanes)[0]
    wanted = OPS["matmul"].meaning(a.astype(np.float64), b.astype(np.float64))
    assert relative_error(result, wanted) < 1e-6


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_what_is_not_supported(lanes):
    """Empty matrices and other dtypes are not supported."""
    a = np.zeros((3, 3), np.float32)
    assert KERNEL.supports(spec_of(a, a), lanes)
    assert not KERNEL.supports(spec_of(a[:0], a), lanes)
    assert not KERNEL.supports(spec_of(a.astype(np.float64), a), lanes)
