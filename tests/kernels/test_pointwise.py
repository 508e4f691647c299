"""The pointwise kernel computes what the elementwise table means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import elementwise
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.pointwise import KERNEL
from butterflyc.kernels.record import Spec, Tensor

from .batch import UNSHRUNK, Case, check_close, check_exact, run_batch
from .harness import EVERY_LANES, NUMPY

INTEGERS = ("i8", "u8", "i16", "i32", "i64")
COMPUTED = ("bool", *INTEGERS, "f32")
ORDERS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")

SPECIAL = np.float32(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 0.5, -0.5, 1.5, -1.5, 2.5, 3, -3, 0.49999997]
)
LARGE = np.float32([8388607.5, -8388607.5, 8388609, 2e9, -2e9, 1e30, -1e30, 3e38, 1e-30, 1e-40])
FLOATS = np.concatenate([SPECIAL, LARGE, np.random.default_rng(0).normal(0, 8, 40).astype("f4")])

# IEEE 754 leaves these no choice.
EXACT_UNARY = ("neg", "abs", "sign", "round", "floor", "ceil", "sqrt", "relu")
EXACT_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", *ORDERS)
CLOSE = (
    "rsqrt",
    "exp",
    "log",
    "tanh",
    "erf",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "gelu_poly",
    "sin",
    "cos",
)


def integers(dtype, rng, shape):
    """Random integers of a dtype, often extreme, zero or minus one."""
    limits = np.iinfo(NUMPY[dtype])
    values = rng.integers(limits.min, limits.max, shape, NUMPY[dtype], endpoint=True)
    odd = np.array([limits.min, limits.max, 0, 1, limits.max if limits.min == 0 else -1])
    extreme = odd.astype(NUMPY[dtype])[rng.integers(0, 5, shape)]
    return np.where(rng.random(shape) < 0.3, extreme, values)


def sample(dtype, rng, shape):
    """Random elements of a dtype; floats with NaN and infinities among them."""
    if dtype == "f32":
        return np.asarray(rng.choice(FLOATS, shape), np.float32)
    return rng.random(shape) < 0.5 if dtype == "bool" else integers(dtype, rng, shape)


def test_every_op_is_served():
    """The kernel serves every op of the elementwise table."""
    assert set(KERNEL.ops) == {op.name for op in elementwise.OPS}


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_floats_are_exact_where_they_can_be(lanes):
    """Arithmetic, order and rounding of floats are NumPy's bit for bit, specials included."""
    a, b = (side.ravel() for side in np.meshgrid(FLOATS, FLOATS))
    cases = [Case(name, [FLOATS]) for name in EXACT_UNARY]
    cases += [Case(name, [a, b]) for name in EXACT_BINARY]
    limits = [(-1.5, 2.0), (0, np.inf), (-np.inf, 0.1), (3.0, -3.0)]
    cases += [Case("clip", [FLOATS], {"low": low, "high": high}) for low, high in limits]
    check_exact(KERNEL, cases, lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_functions_of_floats_are_close(lanes):
    """Transcendental functions are within 2e-6 of float64 and keep NaN; GELU absolutely so."""
    rng = np.random.default_rng(1)
    x = np.concatenate([[np.nan], np.linspace(-80, 80, 801), rng.normal(0, 1, 200)])
    cases = [Case(name, [x.astype(np.float32)]) for name in CLOSE]
    a, b = (side.ravel() for side in np.meshgrid(FLOATS, FLOATS))
    wide = rng.uniform(-1, 1, 2000) * 10.0 ** rng.integers(-30, 30, 2000)
    b2 = rng.uniform(-6, 6, 2000)
    b2[::3] = np.rint(b2[::3])
    cases += [Case("pow", [a, b]), Case("pow", [np.float32(wide), np.float32(b2)])]
    cases += [Case("atan2", [a, b]), Case("atan2", [np.float32(wide), np.float32(wide[::-1])])]

    def limit(case, wanted):
        size = np.maximum(1, np.abs(case.arrays[0]))
        if case.name.startswith("gelu"):
            return 5e-7 * size
        absolute = 4e-7 if case.name in ("sin", "cos", "erf", "atan2") else 1e-30
        return 2e-6 * np.abs(wanted) + absolute

    check_close(KERNEL, cases, lanes, limit)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_integers_and_bools_are_exact(lanes):
    """Every op of every integer dtype and of bool is exact, wrapping included."""
    rng, n = np.random.default_rng(2), 203
    cases = []
    for dtype in (*INTEGERS, "bool"):
        a, b = sample(dtype, rng, n), sample(dtype, rng, n)
        binary = ["add", "mul", "maximum", "minimum", *ORDERS]
        if dtype == "bool":
            cases += [Case("logical_and", [a, b]), Case("logical_or", [a, b])]
            cases += [Case("logical_not", [a])]
        else:
            unary = ["neg", "sign", "relu", *([] if dtype == "u8" else ["abs"])]
            cases += [Case(name, [a]) for name in unary]
            cases += [Case("clip", [a], {"low": 3, "high": 90})]
            cases += [Case("div", [a, np.where(b == 0, b.dtype.type(3), b)])]
            binary += ["sub"]
        cases += [Case(name, [a, b]) for name in binary]
        cases += [Case("where", [rng.random(n) < 0.5, a, b])]
    check_exact(KERNEL, cases, lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_division_by_zero_does_not_trap(lanes):
    """An integer over zero is zero, and the smallest over minus one wraps."""
    for dtype in ("i8", "i32", "i64"):
        smallest = np.iinfo(NUMPY[dtype]).min
        a = np.array([5, -5, 0, smallest] * 3, NUMPY[dtype])
        b = np.array([0, 0, 0, -1] * 3, NUMPY[dtype])
        ((found,),) = run_batch(KERNEL, [Case("div", [a, b])], lanes)
        np.testing.assert_array_equal(found, [0, 0, 0, smallest] * 3)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_casts(lanes):
    """Every dtype casts to every other; floats are cut towards zero."""
    rng = np.random.default_rng(3)
    cases = []
    for source in COMPUTED:
        for target in COMPUTED:
            x = sample(source, rng, 37)
            if source == "f32":
                low = 0 if target == "u8" else -120
                x = rng.uniform(low, 120, 37).astype(np.float32)
                x[:3] = 0, -0.75, 0.75
            cases.append(Case("cast", [x], {"dtype": target}))
    wide = np.float32([2e9, -2e9, 16777217, -0.5, 1e-40, 0, -3.99])
    cases += [Case("cast", [wide], {"dtype": dtype}) for dtype in ("i32", "i64", "bool")]
    cases += [Case("cast", [np.float32([9e18, np.nan])], {"dtype": "bool"})]
    check_exact(KERNEL, cases, lanes)


@st.composite
def broadcasts(draw):
    """Two or three shapes that broadcast with each other."""
    sizes = st.sampled_from([1, 2, 3, 5, 8, 9, 17])
    shape = draw(st.lists(sizes, max_size=4).filter(lambda s: np.prod(s) < 3000))
    shapes = []
    for _ in range(3):
        kept = [draw(st.booleans()) for _ in shape]
        dims = [n if keep else 1 for n, keep in zip(shape, kept, strict=True)]
        shapes.append(tuple(dims[draw(st.integers(0, len(dims))) :]))
    return shapes


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(
    shapes=st.lists(broadcasts(), min_size=6, max_size=6),
    dtypes=st.lists(st.sampled_from(COMPUTED), min_size=6, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=6, phases=UNSHRUNK)
def test_operands_broadcast(shapes, dtypes, seed, lanes):
    """Operands of any shapes that fit broadcast as in NumPy, for every dtype."""
    rng = np.random.default_rng(seed)
    cases = []
    for (first, second, third), dtype in zip(shapes, dtypes, strict=True):
        a, b = sample(dtype, rng, first), sample(dtype, rng, second)
        cases.append(Case("add", [a, b]))
        cases.append(Case("where", [np.asarray(rng.random(third) < 0.5), a, b]))
        cases.append(Case("less_equal", [b, a]))
        cases.append(Case("maximum", [b, a]))
    check_exact(KERNEL, cases, lanes)


@pytest.mark.parametrize(
    ("op", "dtype", "layout"),
    [("add", "f64", None), ("sub", "bool", None), ("exp", "i32", None), ("neg", "f32", "panel16")],
)
def test_refuses_what_it_does_not_serve(op, dtype, layout):
    """Doubles, packed tensors and ops that a dtype does not have are not supported."""
    x = Tensor(dtype, (16,), layout)
    operands = (x,) if op in ("exp", "neg") else (x, x)
    assert not KERNEL.supports(Spec(op, (), operands, (x,)), Lanes())
