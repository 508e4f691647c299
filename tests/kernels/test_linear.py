"""linear against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels.layout import pack, unpack
from butterflyc.kernels.linear import KERNEL
from butterflyc.kernels.record import Spec, Tensor

from .harness import EVERY_LANES, relative_error, run, tensor


def linear(x, w, bias, activation, parameters=()):
    """A spec for these arrays."""
    operands = tuple(tensor(a) for a in (x, w, bias) if a is not None)
    result = Tensor("f32", (*x.shape[:-1], w.shape[0]))
    return Spec("linear", (("activation", activation),), operands, (result,), parameters)


def check(lanes, lead, depth, outputs, has_bias, activation, parameters=()):
    rng = np.random.default_rng(depth * 1000 + outputs)
    x = rng.standard_normal((*lead, depth), np.float32)
    w = rng.standard_normal((outputs, depth), np.float32) / np.float32(depth**0.5)
    bias = rng.standard_normal(outputs, np.float32) if has_bias else None
    arrays = [a for a in (x, w, bias) if a is not None]
    result = run(KERNEL, linear(x, w, bias, activation, parameters), arrays, lanes)[0]
    wanted = OPS["linear"].meaning(*(a.astype(np.float64) for a in arrays), activation=activation)
    assert relative_error(result, wanted) < 2e-6


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=15)
@given(
    lead=st.lists(st.integers(1, 7), max_size=2).map(tuple),
    depth=st.integers(1, 37),
    outputs=st.integers(1, 75),
    has_bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu", "relu"]),
)
@example(lead=(), depth=1, outputs=1, has_bias=True, activation="none")
@example(lead=(13,), depth=5, outputs=17, has_bias=False, activation="tanh")
@example(lead=(7,), depth=6, outputs=16, has_bias=True, activation="gelu_tanh")
@example(lead=(1,), depth=6, outputs=75, has_bias=True, activation="silu")
def test_every_shape(lanes, lead, depth, outputs, has_bias, activation):
    """Odd rows, depths and widths give the interpreter's result."""
    check(lanes, lead, depth, outputs, has_bias, activation)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_many_rows_go_in_chunks(lanes):
    """Rows beyond two chunks, with a partial last chunk, give the interpreter's result."""
    check(lanes, (200,), 9, 11, True, "sigmoid")


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_every_choice_in_the_space(lanes):
    """Each parameter choice that the kernel offers works, and gives the same bits."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((11, 13), np.float32), rng.standard_normal((29, 13), np.float32)
    results = []
    for choice in KERNEL.space(linear(x, w, None, "none"), lanes):
        spec = linear(x, w, None, "none", tuple(choice.items()))
        results.append(run(KERNEL, spec, [x, w], lanes)[0])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@given(outputs=st.integers(1, 40), depth=st.integers(1, 9), panel=st.integers(1, 24))
def test_panels_unpack_to_what_was_packed(outputs, depth, panel):
    """unpack(pack(w)) is w at every shape, and the panel's padding is zero."""
    w = np.random.default_rng(0).uniform(1, 2, (outputs, depth)).astype(np.float32)
    packed = pack(f"panel{panel}", w)
    assert packed.shape == (-(-outputs // panel), depth, panel)
    assert np.count_nonzero(packed) == w.size
    np.testing.assert_array_equal(unpack(f"panel{panel}", packed, w.shape), w)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_unpacked_weights_are_refused(lanes):
    """build says which layout it wants when the weights come without one."""
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"wants its weights as panel\d+, got f32"):
        KERNEL.build(linear(x, x, None, "none"), lanes, "f")


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_what_is_not_supported(lanes):
    """Other dtypes, empty tensors and unknown activations are not supported."""
    x = np.zeros((2, 3), np.float32)
    assert KERNEL.supports(linear(x, x, None, "none"), lanes)
    assert not KERNEL.supports(linear(x.astype(np.int8), x, None, "none"), lanes)
    assert not KERNEL.supports(linear(x[:0], x, None, "none"), lanes)
    assert not KERNEL.supports(linear(x, x, None, "cube"), lanes)
