"""The meanings of ops where NumPy's own function is not already the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.ir.ops.elementwise import cast, erf

from .samples import op_samples


def meaning(op: str, *arrays: np.ndarray, **attributes: object) -> np.ndarray:
    return OPS[op].meaning(*arrays, **OPS[op].complete(attributes))


@pytest.mark.parametrize(
    ("op", "torch_op"),
    [
        ("gelu", functional.gelu),
        ("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh")),
        ("silu", functional.silu),
        ("sigmoid", torch.sigmoid),
        ("erf", torch.erf),
        ("round", torch.round),
        ("rsqrt", torch.rsqrt),
    ],
)
def test_activations_are_those_of_torch(op: str, torch_op: object) -> None:
    """An activation agrees with PyTorch in double precision."""
    x = np.concatenate([np.linspace(0.01, 30, 999), [0.5, 1.5, 2.5]])
    x = x if op == "rsqrt" else np.concatenate([-x, x])
    wanted = torch_op(torch.from_numpy(x)).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(meaning(op, x), wanted, rtol=1e-13, atol=1e-15)


def test_conv2d_is_that_of_torch() -> None:
    """conv2d agrees with PyTorch, stride, padding and bias included."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s) for s in [(2, 3, 9, 8), (4, 3, 3, 2), (4,)])
    got = meaning("conv2d", x, w, b, stride=(2, 1), padding=(1, 2))
    wanted = functional.conv2d(*map(torch.from_numpy, (x, w, b)), stride=(2, 1), padding=(1, 2))
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_torch(causal: bool) -> None:
    """attention, and qkv_attention on the packed tensor, agree with PyTorch."""
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((2, 5, 3 * 2 * 4))
    q, k, v = qkv.reshape(2, 5, 3, 2, 4).transpose(2, 0, 3, 1, 4)
    wanted = functional.scaled_dot_product_attention(
        *(torch.from_numpy(np.ascontiguousarray(t)) for t in (q, k, v)), is_causal=causal
    ).numpy()
    got = meaning("attention", q, k, v, scale=0.5, causal=causal)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    packed = meaning("qkv_attention", qkv, heads=2, scale=0.5, causal=causal)
    np.testing.assert_allclose(packed, wanted.transpose(0, 2, 1, 3).reshape(2, 5, 8), rtol=1e-12)


def test_of_equal_scores_the_first_expert_wins() -> None:
    """Ties of top_k go to the lower index, and the order is from the largest down."""
    values, where = OPS["top_k"].meaning(np.array([[1.0, 3.0, 3.0, 2.0]]), k=3)
    np.testing.assert_array_equal(where, [[1, 2, 3]])
    np.testing.assert_array_equal(values, [[3, 3, 2]])


def test_shuffle_pads_with_zero_and_strips() -> None:
    """-1 in the order gives a zero channel; channels that are not named are dropped."""
    x = np.array([[1.0, 2.0, 3.0]])
    order = np.array([2, -1, 0], np.int32)
    np.testing.assert_array_equal(meaning("shuffle", x, order), [[3, 0, 1]])


@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 1), (2, 3), (4, 2), (4, 1)]))
def test_lanes_only_move_channels(seed: int, shape: tuple[int, int]) -> None:
    """A rotation with lanes is the neighbouring form between two shuffles."""
    b, lanes = shape
    rng = np.random.default_rng(seed)
    groups = 2 * lanes
    blocks = rng.standard_normal((3, groups, b, b))
    x, experts = rng.standard_normal((5, b * groups)), rng.integers(0, 3, 5)
    g, i = np.divmod(np.arange(b * groups), b)  # channel g * b + i: member i of group g
    place = g // lanes * b * lanes + i * lanes + g % lanes
    plain = meaning("rotate", x[:, place], blocks, experts, lanes=1)
    np.testing.assert_allclose(
        meaning("rotate", x, blocks, experts, lanes=lanes)[:, place], plain, rtol=1e-12
    )


def test_codes_round_ties_to_even_and_zero_rows_stay_zero() -> None:
    """quantize_rows: the largest magnitude becomes 127, halves go to even, a zero row to zeros."""
    rows = np.array([[127.0, -0.5, 1.5, 2.5], [0, 0, 0, 0]])
    codes, scales = OPS["quantize_rows"].meaning(rows, bits=8)
    np.testing.assert_array_equal(codes, [[127, 0, 2, 2], [0, 0, 0, 0]])
    np.testing.assert_allclose(scales, [[1], [0]])


def test_codes_of_seven_bits_are_no_larger_than_63() -> None:
    """quantize_rows on 7 bits: the largest magnitude becomes 63, halves go to even."""
    rows = np.array([[-63.0, -0.5, 1.5, 2.5], [0, 0, 0, 0]])
    codes, scales = OPS["quantize_rows"].meaning(rows, bits=7)
    np.testing.assert_array_equal(codes, [[-63, 0, 2, 2], [0, 0, 0, 0]])
    np.testing.assert_allclose(scales, [[1], [0]])


@pytest.mark.parametrize(
    ("name", "attribute", "wanted"),
    [
        ("quantize_rows", "bits", "7 or 8"),
        ("ternary_dot", "bits", "7 or 8"),
        ("butterfly_experts", "activation_bits", "0 or 7 or 8"),
    ],
)
def test_other_bits_are_refused(name: str, attribute: str, wanted: str) -> None:
    """An op that says codes of 6 bits is told which there are."""
    (types, _), *_ = op_samples()[name]
    with pytest.raises(ValueError, match=f"{attribute} is {wanted}, not 6"):
        OPS[name].result(*types, **{attribute: 6})


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_rounded_as_torch_rounds_it(x: float) -> None:
    """cast to bf16 rounds to nearest even, as PyTorch does."""
    got = cast(np.array([x], np.float32), "bf16")
    wanted = torch.tensor([x], dtype=torch.float32).bfloat16().float().numpy()
    np.testing.assert_array_equal(got, wanted)


def test_erf_is_the_error_function() -> None:
    """erf agrees with the C library's."""
    x = np.linspace(-6, 6, 101)
    np.testing.assert_array_equal(erf(x), [math.erf(v) for v in x])


def test_nan_stays_nan_as_bf16() -> None:
    """Also one whose bits are all ones, which the hardware of GPUs makes."""
    ones = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(cast(ones, "bf16")).all()


def test_top_k_ranks_the_ends_of_integers() -> None:
    """0 of what has no sign, and the least of what has one, come last."""
    for dtype, least in ((np.uint8, 0), (np.int8, -128)):
        x = np.array([3, least, 7], dtype)
        values, order = OPS["top_k"].meaning(x, k=3)
        assert values.tolist() == [7, 3, least]
        assert order.tolist() == [2, 0, 1]
