"""The kernels for rotations of many layers compute what the op means, by Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.gpu.activations import NAMES
from butterflyc.kernels.gpu.layer import DEEP_OPERANDS
from butterflyc.kernels.gpu.turn_combine import KERNEL, OP

from .harness import GPU, LIMITS, Array, Call, error, rounded, run

dtypes = pytest.mark.parametrize("dtype", LIMITS)


class DeepCall(Call):
    """Rotations of so many layers on either side, in which any two channels may be partners.

    Of x the last ``missing`` channels are not there, and of the outputs as many are not kept.
    """

    op = OP
    names = DEEP_OPERANDS

    def __init__(
        self, seed: int = 0, layers: tuple[int, int] = (3, 4), missing: int = 0, **options: Any
    ) -> None:
        kept = options.get("outputs", 32) - missing
        super().__init__(seed, **options, kept=kept)
        rng = np.random.default_rng(seed + 1)
        experts, arrays = options.get("experts", 3), dict(self.arrays)
        for side, count, width in zip(("in", "out"), layers, arrays["w"].shape[::-1], strict=True):
            pairs, partners = turns(experts, count, width, rng)
            arrays[f"pairs_{side}"] = rounded(pairs, self.dtypes[f"pairs_{side}"])
            arrays[f"partners_{side}"] = partners
            self.dtypes[f"partners_{side}"] = "i32"
        arrays["x"] = arrays["x"][:, : arrays["x"].shape[1] - missing]
        if "w_down" in arrays:
            arrays["w_down"] = arrays["w_down"][:, :kept]
        self.arrays = {name: arrays[name] for name in self.names if name in arrays}


def turns(experts: int, layers: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Pairs [E, L, n, 2] of random angles, and partners [L, n]; one channel may have none."""
    pairs = np.zeros((experts, layers, width, 2))
    pairs[..., 0] = 1
    partners = np.tile(np.arange(width, dtype=np.int32), (layers, 1))
    for layer in range(layers):
        one, other = rng.permutation(width)[: width // 2 * 2].reshape(2, -1)
        partners[layer, one], partners[layer, other] = other, one
        angles = rng.standard_normal((experts, one.size))
        pairs[:, layer, one] = np.stack([np.cos(angles), -np.sin(angles)], -1)
        pairs[:, layer, other] = np.stack([np.cos(angles), np.sin(angles)], -1)
    return pairs, partners


def check(call: DeepCall, limit: float | None = None) -> Array:
    """What the kernels make of the call, which agrees with the op."""
    assert KERNEL.supports(call.spec(), GPU)
    result = run(KERNEL, call, GPU)
    assert error(result, call.wanted()) < (limit or LIMITS[call.attributes["dtype"]])
    return result


@dtypes
@pytest.mark.parametrize("layers", range(1, 7))
def test_any_number_of_layers(layers, dtype):
    """One to six layers, of which the other side has more."""
    check(DeepCall(layers=(layers, layers + 1), dtype=dtype, activation="gelu"))


@dtypes
@pytest.mark.parametrize("activation", NAMES)
def test_every_activation(activation, dtype):
    """All activations, before and after the rotation, with and without a bias and w_down."""
    last = NAMES.index(activation) % 2 == 1
    attributes = {"activation": activation, "activate_last": last, "biased": not last}
    call = DeepCall(dtype=dtype, down=12 * last, per_output=last, missing=3, **attributes)
    if (activation, dtype) == ("gelu_poly", "f32"):
        assert not KERNEL.supports(call.spec(), GPU), "GELU is not near enough to it"
    else:
        check(call)


@pytest.mark.parametrize("chosen", [1, 2, 3, 4, 9])
def test_any_number_of_experts(chosen):
    """One to nine experts a token."""
    check(DeepCall(dtype="f32", chosen=chosen, experts=11, tokens=15, activation="gelu"))


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_activations_as_codes(dtype):
    """With 8-bit activations: as the op in that mode, and near the op without."""
    call = DeepCall(
        dtype=dtype, activation_bits=8, activation="gelu", tokens=9, channels=36, outputs=44
    )
    call.arrays["x"][3] = 0  # a row without any code
    result = check(call, limit=2e-3)
    assert error(result, call.wanted(activation_bits=0)) < 2e-2


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_float32_around_halves(dtype):
    """x and y in float32 with rows of halves, and gates and pairs of float32."""
    check(DeepCall(dtype=dtype, outer="f32", pairs="f32", numbers="i32", activation="silu"))
    check(DeepCall(dtype=dtype, outer="f32", down=0, activation="tanh", missing=5))


def test_experts_without_tokens():
    """All tokens on the last of many experts."""
    call = DeepCall(experts=40, tokens=11, dtype="f32")
    call.arrays["experts"][:] = 39
    check(call)


sizes = st.integers(1, 70)


@settings(max_examples=15, deadline=None)
@given(sizes, st.integers(4, 70), st.integers(4, 70), sizes, st.integers(0, 3), st.data())
def test_any_shape(tokens, channels, outputs, down, missing, data):
    """Widths that nothing divides, with channels that are not there."""
    layers = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    bits = data.draw(st.sampled_from([0, 8]))
    # `Call` makes groups of four, of which `DeepCall` keeps as many channels as are asked for.
    call = DeepCall(
        tokens=tokens, channels=channels // 4 * 4, outputs=outputs // 4 * 4, down=down,
        layers=layers, missing=missing, dtype="f32", activation_bits=bits, activation="gelu",
    )  # fmt: skip
    check(call, limit=2e-3 if bits else None)


def test_more_rows_than_programs():
    """A program goes on with other rows, and so its place is written again."""
    small = replace(GPU, multiprocessors=1)
    for width in (16, 1028):
        call = DeepCall(tokens=70, channels=width, outputs=32, activation="gelu", dtype="f32")
        assert error(run(KERNEL, call, small), call.wanted()) < LIMITS["f32"]


def test_the_same_again():
    """The same input gives the same bits."""
    call = DeepCall(tokens=13, outputs=100, activation="gelu")
    np.testing.assert_array_equal(run(KERNEL, call, GPU), run(KERNEL, call, GPU))


def test_what_is_not_served():
    """The op for two layers, rows too long for registers, and bfloat16 of old GPUs."""
    spec = DeepCall(activation="gelu").spec()
    old = replace(GPU, capability=75, shared_bytes=65536)
    assert KERNEL.supports(spec, GPU)
    assert KERNEL.supports(spec, old)
    assert not KERNEL.supports(replace(spec, op="butterfly_layer"), GPU)
    assert not KERNEL.supports(DeepCall(dtype="bf16").spec(), old)
    long = DeepCall(tokens=1, channels=4, outputs=8196, experts=1, down=4).spec()
    assert not KERNEL.supports(long, GPU)
