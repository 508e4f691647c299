"""The fused expert layer agrees with its meaning for every attribute and shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.butterfly import rotate_meaning
from butterflyc.kernels.butterfly_experts import KERNEL, sizes_of
from butterflyc.kernels.pointwise_math import ACTIVATIONS
from butterflyc.targets.lanes_neon import Neon
from butterflyc.targets.lanes_x86 import Avx2

from .harness import INTEGER_LANES
from .meaning import blocks, floats, meaning, relative_error, results_of, spec_of, ternary

NAME = "butterfly_experts"


def operands(seed, tokens=5, chosen=2, groups_in=8, groups_out=8, b=4, experts=3, **options):
    """Operands of the op; `per_output` scales, `outputs` where nothing rotates them."""
    rng = np.random.default_rng(seed)
    channels, outputs = groups_in * b, options.get("outputs", groups_out * b)
    scale = np.asarray(np.float32(0.05))
    arrays = [
        floats(rng, tokens, channels),
        blocks(rng, experts, groups_in, b),
        ternary(rng, outputs, channels),
        np.abs(floats(rng, outputs)) if options.get("per_output") else scale,
        floats(rng, outputs),
        floats(rng, tokens, chosen),
        rng.integers(0, experts, (tokens, chosen)),
    ]
    return arrays if "outputs" in options else [*arrays, blocks(rng, experts, groups_out, b)]


def near_a_tie(arrays, attributes):
    """Whether a rotated activation is so near to a tie that float32 may round it the other way."""
    x, turn, experts = arrays[0].astype(np.float64), arrays[1], arrays[6]
    rotated = rotate_meaning(x[:, None], turn, experts, attributes.get("lanes_in", 1))
    most = 2 ** (attributes["activation_bits"] - 1) - 1
    scaled = np.abs(rotated * (most / np.abs(rotated).max(-1, keepdims=True)))
    return np.abs(scaled % 1 - 0.5).min() < 1e-4


def check(make, attributes, lanes, parameters=None, limit=1e-5):
    """Compare on the first of the operands ``make(seed)`` that no rounding can flip."""
    seeds = range(100)
    if attributes.get("activation_bits"):
        arrays = next(a for a in map(make, seeds) if not near_a_tie(a, attributes))
    else:
        arrays = make(0)
    (result,) = results_of(KERNEL, NAME, arrays, lanes, attributes, parameters or {})
    (wanted,) = meaning(NAME, arrays, attributes, double=True)
    assert relative_error(result, wanted) < limit


BITS = pytest.mark.parametrize("bits", [0, 7, 8])


@pytest.mark.parametrize("lanes", INTEGER_LANES)
@BITS
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (8, 8), (1, 8), (8, 1)]),
    st.sampled_from([2, 4]),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=6)
def test_agrees_with_its_meaning(lanes, bits, tokens, chosen, apart, b, name, last, per_output):
    """Tokens, chosen experts, forms of rotation, activations and scales: as the op says."""
    groups_in, groups_out = (11 if n == 1 else 16 for n in apart)
    attributes = {
        "activation": name,
        "activate_last": last,
        "activation_bits": bits,
        "lanes_in": apart[0],
        "lanes_out": apart[1],
    }
    sizes = {"tokens": tokens, "chosen": chosen, "b": b, "per_output": per_output}
    sizes |= {"groups_in": groups_in, "groups_out": groups_out}
    check(lambda seed: operands(seed, **sizes), attributes, lanes)


@pytest.mark.parametrize("lanes", INTEGER_LANES)
@BITS
def test_rotates_only_the_inputs_without_blocks_out(lanes, bits):
    """Without blocks_out any number of outputs is served, and k blocks of 300 values."""
    attributes = {"activation_bits": bits, "activation": "gelu"}
    check(lambda seed: operands(seed, groups_in=75, outputs=43), attributes, lanes)


@BITS
@pytest.mark.parametrize("lanes", [Avx2(), Neon()], ids=["avx2", "neon"])
def test_many_tokens_pass_in_chunks(bits, lanes):
    """More rows than a chunk holds, in chunks of two sizes, give the same as one by one."""
    attributes = {"activation_bits": bits, "activation": "relu"}
    check(lambda seed: operands(seed, tokens=163, chosen=1, groups_in=2), attributes, lanes)


@BITS
@pytest.mark.parametrize("lanes", [Avx2(), Neon()], ids=["avx2", "neon"])
def test_every_way_agrees(bits, lanes):
    """Every choice of parameters computes the same."""
    attributes = {"activation_bits": bits, "lanes_out": lanes.float_lanes}
    spec = spec_of(NAME, operands(0), attributes)
    for parameters in KERNEL.space(spec, lanes):
        check(lambda seed: operands(seed, tokens=17), attributes, lanes, parameters)


@pytest.mark.parametrize(("tokens", "chosen"), [(1, 1), (1, 2), (3, 1), (9, 1), (13, 2)])
def test_tables_of_any_rows(tokens, chosen):
    """By tables: one row, chunks of which the last is one row, more than a strip of outputs."""
    attributes = {"activation_bits": 7, "activation": "gelu", "lanes_out": 4}
    sizes = {"tokens": tokens, "chosen": chosen, "groups_in": 20, "groups_out": 44}
    arrays = operands(0, **sizes)
    assert sizes_of(spec_of(NAME, arrays, attributes), Neon()).tables is not None
    for parameters in ({}, {"chunk_rows": 2 * chosen}, {"strip_vectors": 1}):
        check(lambda seed: operands(seed, **sizes), attributes, Neon(), parameters)


def test_strips_hold_whole_groups():
    """A strip of outputs is a multiple of a rotation's groups, whatever is asked for."""
    arrays = operands(0, groups_out=16)
    for wanted in (1, 3, 4, 5):
        spec = spec_of(NAME, arrays, {"lanes_out": 8}, {"strip_vectors": wanted})
        assert sizes_of(spec, Avx2()).strip % 32 == 0


def test_unserved_specs_are_told():
    """Groups that no vector can hold, and other dtypes, are left to other kernels."""
    spec = spec_of(NAME, operands(0), {"lanes_out": 1})
    assert KERNEL.supports(spec, Avx2())
    odd = spec_of(NAME, operands(0), {"lanes_out": 4})
    assert not KERNEL.supports(odd, Avx2())
    doubles = (replace(spec.operands[0], dtype="f64"), *spec.operands[1:])
    assert not KERNEL.supports(replace(spec, operands=doubles), Avx2())
