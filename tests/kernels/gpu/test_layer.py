"""Every GPU kernel of a layer computes what the op means, by Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from butterflyc.kernels.gpu.activations import NAMES

from .harness import GPU, LIMITS, Call, check, error, kernels, run

dtypes = pytest.mark.parametrize("dtype", LIMITS)


@kernels
@dtypes
@pytest.mark.parametrize("activation", NAMES)
def test_every_activation(kernel, dtype, activation):
    """All activations, before and after the rotation, with and without a bias and w_down."""
    last = NAMES.index(activation) % 2 == 1
    attributes = {"activation": activation, "activate_last": last, "biased": not last}
    call = Call(dtype=dtype, down=12 * last, per_output=last, **attributes)
    if (activation, dtype) == ("gelu_poly", "f32"):
        assert not kernel.supports(call.spec(), GPU), "GELU is not near enough to it"
    else:
        check(kernel, call)


# Not bfloat16, to which Triton's interpreter cuts rows where a GPU rounds them: a steep activation
# shows the difference.
@kernels
@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("size", [1e-4, 100])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
def test_small_and_large_values(kernel, dtype, size, activation):
    """Where an activation is nearly linear, and where it is flat, it is as right as between."""
    call = Call(dtype=dtype, activation=activation, biased=False)
    call.arrays["scale"] = call.arrays["scale"] * np.float32(size)
    check(kernel, call)


@kernels
@dtypes
@pytest.mark.parametrize("chosen", [1, 2, 3, 4])
def test_any_number_of_experts(kernel, dtype, chosen):
    """One to four experts a token, with members in any order on either side."""
    rng = np.random.default_rng(chosen)
    orders = {
        name: tuple(map(int, np.concatenate([rng.permutation(4), rng.permutation(4)])))
        for name in ("order_in", "order_out")
    }
    check(kernel, Call(dtype=dtype, chosen=chosen, tokens=15, activation="gelu", **orders))


@kernels
@pytest.mark.parametrize("chosen", [7, 8, 9])
def test_many_experts(kernel, chosen):
    """Tiles add up to eight rows a token, and serve no more; the library's way adds any number."""
    call = Call(dtype="f32", chosen=chosen, experts=11, tokens=3)
    if chosen > 8 and kernel.name != "gpu_library":
        assert not kernel.supports(call.spec(), GPU)
    else:
        check(kernel, call)


@kernels
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_activations_as_codes(kernel, dtype):
    """With 8-bit activations: as the op in that mode, and near the op without."""
    call = Call(
        dtype=dtype, activation_bits=8, activation="gelu", tokens=9, channels=36, outputs=44
    )
    call.arrays["x"][3] = 0  # a row without any code
    result = check(kernel, call, limit=2e-3)
    assert error(result, call.wanted(activation_bits=0)) < 2e-2


@kernels
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_float32_around_halves(kernel, dtype):
    """x and y in float32 with rows of halves, and gates and pairs of float32."""
    check(kernel, Call(dtype=dtype, outer="f32", pairs="f32", numbers="i32", activation="silu"))
    check(kernel, Call(dtype=dtype, outer="f32", down=0, activation="tanh"))


@kernels
@pytest.mark.parametrize("down", [0, 8])
def test_one_token(kernel, down):
    """One token of one expert, and fewer channels than any tile."""
    check(
        kernel, Call(tokens=1, chosen=1, channels=4, outputs=4, down=down, experts=1, dtype="f32")
    )


@kernels
def test_experts_without_tokens(kernel):
    """All tokens on the last of many experts."""
    call = Call(experts=40, tokens=11, dtype="f32")
    call.arrays["experts"][:] = 39
    check(kernel, call)


@kernels
@pytest.mark.parametrize("bits", [0, 8])
def test_the_same_again(kernel, bits):
    """The same input gives the same bits."""
    call = Call(tokens=13, outputs=100, activation="gelu", activation_bits=bits)
    first, second = (run(kernel, call, GPU) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@kernels
def test_what_is_not_served(kernel):
    """Other ops, bfloat16 and tensor cores of old GPUs, and unknown activations are turned down."""
    spec = Call(activation="gelu").spec()
    assert kernel.supports(spec, GPU)
    assert not kernel.supports(replace(spec, op="butterfly_experts"), GPU)
    assert not kernel.supports(Call(activation="gelu_poly", dtype="f32").spec(), GPU)
    old = replace(GPU, capability=75, shared_bytes=65536)
    assert not kernel.supports(Call(dtype="bf16").spec(), old)
    assert kernel.supports(spec, old) == (kernel.name == "gpu_library")
