"""attention and qkv_attention against the interpreter in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels.attention import KERNEL
from butterflyc.kernels.record import Spec, Tensor

from .harness import EVERY_LANES, relative_error, run, tensor


def attention(q, k, v, scale, causal=False):
    attributes = (("scale", scale), ("causal", causal))
    result = Tensor("f32", (*q.shape[:3], v.shape[3]))
    return Spec("attention", attributes, (tensor(q), tensor(k), tensor(v)), (result,))


def qkv_attention(qkv, heads, scale, causal=False):
    attributes = (("heads", heads), ("scale", scale), ("causal", causal))
    result = Tensor("f32", (*qkv.shape[:2], qkv.shape[2] // 3))
    return Spec("qkv_attention", attributes, (tensor(qkv),), (result,))


def error(spec, arrays, lanes):
    result = run(KERNEL, spec, arrays, lanes)[0]
    wide = [a.astype(np.float64) for a in arrays]
    return relative_error(result, OPS[spec.op].meaning(*wide, **dict(spec.attributes)))


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=8)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 20),
    keys=st.integers(1, 40),
    depth=st.integers(1, 20),
    width=st.integers(1, 20),
    causal=st.booleans(),
)
@example(batch=1, heads=1, queries=1, keys=1, depth=1, width=1, causal=True)
@example(batch=2, heads=2, queries=7, keys=33, depth=16, width=24, causal=False)
def test_attention_of_every_shape(lanes, batch, heads, queries, keys, depth, width, causal):
    """Any rows and channels, with and without a causal mask, give the interpreter's result."""
    rng = np.random.default_rng(queries * 100 + keys)
    q = rng.standard_normal((batch, heads, queries, depth), np.float32)
    k = rng.standard_normal((batch, heads, keys, depth), np.float32)
    v = rng.standard_normal((batch, heads, keys, width), np.float32)
    assert error(attention(q, k, v, depth**-0.5, causal), [q, k, v], lanes) < 3e-6


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=6)
@given(
    batch=st.integers(1, 2),
    rows=st.integers(1, 40),
    heads=st.integers(1, 4),
    depth=st.integers(1, 20),
    causal=st.booleans(),
)
@example(batch=1, rows=65, heads=4, depth=16, causal=False)
@example(batch=1, rows=65, heads=2, depth=16, causal=True)
def test_qkv_attention_of_every_shape(lanes, batch, rows, heads, depth, causal):
    """One packed tensor gives what the interpreter makes of it."""
    rng = np.random.default_rng(rows)
    qkv = rng.standard_normal((batch, rows, 3 * heads * depth), np.float32)
    assert error(qkv_attention(qkv, heads, depth**-0.5, causal), [qkv], lanes) < 3e-6


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_a_wide_spread_of_scores(lanes):
    """Scores of up to some hundreds keep the error under 1e-5."""
    qkv = np.random.default_rng(0).standard_normal((1, 65, 96)).astype(np.float32) * 6
    assert error(qkv_attention(qkv, 2, 0.25), [qkv], lanes) < 1e-5


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_what_is_not_supported(lanes):
    """A scale that is not positive, empty rows and other dtypes are not supported."""
    qkv = np.zeros((1, 5, 12), np.float32)
    assert KERNEL.supports(qkv_attention(qkv, 2, 0.5), lanes)
    assert not KERNEL.supports(qkv_attention(qkv, 2, -0.5), lanes)
    assert not KERNEL.supports(qkv_attention(qkv[:, :0], 2, 0.5), lanes)
    assert not KERNEL.supports(qkv_attention(qkv.astype(np.float64), 2, 0.5), lanes)
