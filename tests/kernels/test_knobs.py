"""Whatever a tuner may choose for a kernel computes what its op means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Type, input_node
from butterflyc.compiler.ir import make as made
from butterflyc.kernels import all_kernels
from butterflyc.kernels.integer_numbers import largest_of
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.layout import pack, storage
from butterflyc.kernels.record import Kernel, Spec, no_knobs
from butterflyc.passes.select_kernels import spec_of
from butterflyc.targets.lanes_dsp import Dsp
from butterflyc.targets.lanes_neon import Neon
from butterflyc.targets.lanes_x86 import Avx2

from ..backend.printed import run_printed
from .batch import UNSHRUNK
from .harness import EVERY_LANES, NUMPY, Array, packed, relative_error, run, tensor
from .meaning import TERNARY, floats, meaning, ternary
from .test_butterfly_experts import check as check_experts
from .test_butterfly_experts import operands as expert_operands

KERNELS = {kernel.name: kernel for kernel in all_kernels()}
SCALAR, AVX2 = EVERY_LANES[:2]
NEON = pytest.param(Neon(), id="neon")


@dataclass(frozen=True)
class Case:
    """An op on arrays; floats may be off by ``limit``, integers by nothing."""

    op: str
    arrays: Sequence[Array]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 0

    @property
    def spec(self) -> Spec:
        types = [tensor(array) for array in self.arrays]
        if self.op in TERNARY:
            types[TERNARY[self.op]] = replace(types[TERNARY[self.op]], dtype="ternary")
        inputs = [input_node(f"x{i}", Type(t.dtype, t.shape)) for i, t in enumerate(types)]
        return spec_of(made(self.op, *inputs, **self.attributes))

    def check(self, found: Array) -> None:
        """Raises AssertionError where ``found`` is not what the op means."""
        (wanted,) = meaning(self.op, self.arrays, self.attributes, double=True)
        if self.limit:
            assert relative_error(found, wanted) < self.limit
        else:
            np.testing.assert_array_equal(found, wanted)


def codes(rng: np.random.Generator, *shape: int, most: int = 127) -> Array:
    return rng.integers(-most, most + 1, shape).astype(np.int8)


def linear(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    arrays = floats(rng, rows, depth), floats(rng, outputs, depth), floats(rng, outputs)
    return Case("linear", arrays, {"activation": "relu"}, 3e-6)


def matmul(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    return Case("matmul", (floats(rng, 2, rows, depth), floats(rng, depth, outputs)), limit=3e-6)


def attention(rng: np.random.Generator, rows: int, depth: int, keys: int) -> Case:
    q, k, v = (floats(rng, 1, 2, n, depth) for n in (rows, keys, keys))
    return Case("attention", (q, k, v), {"scale": depth**-0.5}, 3e-6)


def ternary_matmul(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    scale = np.asarray(np.float32(0.1))
    arrays = floats(rng, rows, depth), ternary(rng, outputs, depth), scale
    return Case("ternary_matmul", arrays, limit=3e-6)


def ternary_dot(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    return Case("ternary_dot", (codes(rng, rows, depth), ternary(rng, outputs, depth)))


def of_7_bits(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    arrays = codes(rng, rows, depth, most=63), ternary(rng, outputs, depth)
    return Case("ternary_dot", arrays, {"bits": 7})


def integer_linear(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    planes = int(rng.integers(1, 6))
    bias = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    w = codes(rng, outputs, depth, most=largest_of(planes))
    return Case("integer_linear", (codes(rng, rows, depth), w, bias), {"planes": planes})


def quantized_linear(rng: np.random.Generator, rows: int, depth: int, outputs: int) -> Case:
    sums = integer_linear(rng, rows, depth, outputs)
    multiplier = rng.integers(-32767, 32768, outputs).astype(np.int16)
    residual = rng.integers(-32767, 32768, (rows, outputs)).astype(np.int16)
    attributes = {**sums.attributes, "dtype": "i16", "drop": 9, "shift": 12}
    return Case("quantized_linear", (*sums.arrays, multiplier, residual), attributes)


# By kernel: rows, depth and outputs to a case, which lanes it serves, and typical sizes.
Make = Callable[[np.random.Generator, int, int, int], Case]
MAKE: list[tuple[str, Make, list[Any], tuple[int, int, int]]] = [
    ("linear", linear, [SCALAR, AVX2, NEON], (65, 256, 768)),
    ("matmul", matmul, [SCALAR, AVX2, NEON], (65, 64, 65)),
    ("attention", attention, [SCALAR, AVX2, NEON], (65, 64, 65)),
    ("ternary_matmul", ternary_matmul, [SCALAR, AVX2, NEON], (65, 256, 1024)),
    ("ternary_dot", ternary_dot, [SCALAR, AVX2, NEON], (65, 256, 1024)),
    ("ternary_dot_pairs", of_7_bits, [NEON], (65, 256, 1024)),
    ("ternary_dot_table", ternary_dot, [SCALAR], (65, 256, 1024)),
    ("ternary_dot_table", quantized_linear, [SCALAR], (65, 256, 768)),
    ("integer_products", integer_linear, [SCALAR], (65, 256, 768)),
    ("integer_products", quantized_linear, [SCALAR], (65, 256, 768)),
]
ON_LANES = [
    pytest.param(KERNELS[name], make, *lanes.values, id=f"{name}-{lanes.id}", marks=lanes.marks)
    for name, make, some, _ in MAKE
    for lanes in some
]
EXPERTS = {"activation": "gelu", "lanes_out": 8}


def sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    """Rows, depth and outputs; now and then one row, or more columns than a part or block holds."""
    rows = 1 if rng.random() < 0.2 else rng.integers(2, 12)
    depth = rng.integers(257, 600) if rng.random() < 0.2 else rng.integers(4, 70)
    return int(rows), int(depth), int(rng.integers(1, 80))


def drawn(rng: np.random.Generator, kernel: Kernel, spec: Spec, lanes: Lanes) -> Spec:
    """The spec with one of the ways to compute it."""
    ways = kernel.ways(spec, lanes)
    return spec.with_parameters(ways[rng.integers(len(ways))])


@pytest.mark.parametrize(("kernel", "make", "lanes"), ON_LANES)
@settings(max_examples=2, phases=UNSHRUNK)
@given(seed=st.integers(0, 2**31))
def test_any_way_computes_what_the_op_means(
    kernel: Kernel, make: Make, lanes: Lanes, seed: int
) -> None:
    """Drawn sizes and parameters give the op's result."""
    rng = np.random.default_rng(seed)
    case = make(rng, *sizes(rng))
    (found,) = run(kernel, drawn(rng, kernel, case.spec, lanes), case.arrays, lanes)
    case.check(found)


@pytest.mark.parametrize("lanes", [SCALAR, AVX2, NEON])
@pytest.mark.parametrize("bits", [0, 7, 8])
@settings(max_examples=2, phases=UNSHRUNK)
@given(seed=st.integers(0, 2**31))
def test_any_way_of_experts(lanes: Lanes, bits: int, seed: int) -> None:
    """Fused experts give the op's result, whatever the parameters."""
    rng = np.random.default_rng(seed)
    shape = {"tokens": int(rng.integers(1, 30)), "chosen": int(rng.integers(1, 4))}
    shape |= {"groups_in": int(rng.integers(1, 80)), "groups_out": 8 * int(rng.integers(1, 5))}
    attributes = {**EXPERTS, "activation_bits": bits}
    spec = Case("butterfly_experts", expert_operands(0, **shape), attributes).spec
    way = drawn(rng, KERNELS["butterfly_experts"], spec, lanes)
    check_experts(lambda s: expert_operands(s, **shape), attributes, lanes, dict(way.parameters))


def test_any_way_in_c(needs_tool: Callable[..., str], tmp_path: Path) -> None:
    """What is printed for the DSP extension, which only C can say, gives the op's integers."""
    rng, lanes = np.random.default_rng(0), Dsp()
    functions, calls, cases = [], [], []
    for i in range(9):
        kernel = KERNELS[("integer_pairs", "integer_products", "ternary_dot_table")[i % 3]]
        case = (quantized_linear, integer_linear)[i % 2](rng, *sizes(rng))
        spec = packed(kernel, drawn(rng, kernel, case.spec, lanes), lanes)
        functions.append(kernel.build(spec, lanes, f"f{i}"))
        arrays = [
            pack(t.layout, a) if t.layout else a
            for t, a in zip(spec.operands, case.arrays, strict=True)
        ]
        written = map(storage, (*spec.results, *kernel.scratch(spec, lanes)))
        arrays += [np.full(t.shape, 77, NUMPY[t.dtype]) for t in written]
        calls.append((f"f{i}", arrays))
        cases.append(case)
    after = run_printed(tmp_path, needs_tool("gcc"), functions, calls)
    for case, arrays in zip(cases, after, strict=True):
        case.check(arrays[len(case.arrays)])


def typical() -> list[Any]:
    """Kernels, specs and lanes as a tuner meets them."""
    rng = np.random.default_rng(0)
    found = [(name, make(rng, *shape).spec, some) for name, make, some, shape in MAKE]
    dsp = [pytest.param(Dsp(), id="dsp")]
    found.append(("integer_pairs", integer_linear(rng, 65, 256, 768).spec, dsp))
    arrays = expert_operands(0, tokens=65, chosen=2, groups_in=64, groups_out=256)
    for bits in (0, 7, 8):
        spec = Case("butterfly_experts", arrays, {**EXPERTS, "activation_bits": bits}).spec
        found.append(("butterfly_experts", spec, [SCALAR, AVX2, NEON]))
    return [
        pytest.param(KERNELS[name], spec, *lanes.values, id=f"{name}-{spec.digest}-{lanes.id}")
        for name, spec, some in found
        for lanes in some
    ]


@pytest.mark.parametrize(("kernel", "spec", "lanes"), typical())
def test_ways(kernel: Kernel, spec: Spec, lanes: Lanes) -> None:
    """They begin with the space, are worth a search, and are supported; each comes to another."""
    ways, space = kernel.ways(spec, lanes), kernel.space(spec, lanes)
    assert ways[: len(space)] == space
    assert 20 <= len(ways) <= 400
    specs = [spec.with_parameters(way) for way in ways]
    assert all(kernel.supports(way, lanes) for way in specs)
    assert len(set(specs)) == len(specs)
    plans = [kernel.plan(way, lanes) for way in specs]
    others = plans[len(space) :]
    assert len(set(others)) == len(others)
    assert not set(others) & set(plans[: len(space)])


@pytest.mark.parametrize(("kernel", "spec", "lanes"), typical())
def test_parameters_are_knobs(kernel: Kernel, spec: Spec, lanes: Lanes) -> None:
    """No way has a parameter of which the knobs say nothing."""
    names = {name for way in kernel.ways(spec, lanes) for name in way}
    assert names <= kernel.knobs(spec, lanes).keys()


def test_without_knobs_the_ways_are_the_space() -> None:
    """A record that has no knobs offers what its space does."""
    spec = ternary_dot(np.random.default_rng(0), 5, 9, 7).spec
    kernel = replace(KERNELS["ternary_dot"], knobs=no_knobs)
    assert kernel.ways(spec, Lanes()) == kernel.space(spec, Lanes())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("linear", {"tile_rows": 0}),
        ("linear", {"unroll_k": 3}),
        ("linear", {"tile_rows": 8, "tile_vectors": 64}),
        ("ternary_dot", {"tile_vectors": 0}),
        ("ternary_dot", {"tile_rows": 64, "tile_vectors": 64}),
        ("ternary_dot_table", {"trits": 6}),
        ("ternary_dot_table", {"trits": 5, "groups": 5}),
        ("ternary_dot_table", {"trits": 1, "groups": 257}),
        ("integer_products", {"rows": 64, "outputs": 64}),
        ("attention", {"tile_vectors": -1}),
        ("matmul", {"tile_rows": 64, "tile_vectors": 64}),
    ],
)
def test_impossible_parameters_are_not_supported(name: str, parameters: dict[str, int]) -> None:
    """Sizes that there are not, and what no stack or byte holds, are refused."""
    make = next(make for other, make, *_ in MAKE if other == name)
    spec = make(np.random.default_rng(0), 65, 300, 512).spec
    assert KERNELS[name].supports(spec, Avx2())
    assert not KERNELS[name].supports(spec.with_parameters(parameters), Avx2())
