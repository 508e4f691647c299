"""Each expression of a lanes record means the same on every record."""

from __future__ import annotations

import numpy as np
import pytest

from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec, Tensor
from butterflyc.kernels.ternary_lanes import zeros
from butterflyc.kernels.tir import DTYPES, Registers, T, broadcast, function, span, store

from .harness import INTEGER_LANES, run

F32 = "f32"


def elementwise(expression, result=F32):
    """A kernel that applies ``expression(lanes, x)`` to a row of whole vectors."""

    def build(spec, lanes, name):
        (count,) = spec.operands[0].shape
        with function(name, {"x": spec.operands[0], "y": spec.results[0]}) as f:
            x, y = f.buffers
            with T.serial(count // lanes.float_lanes) as i:
                where = span(i * lanes.float_lanes, lanes.float_lanes)
                store(y, expression(lanes, x[where]), where)
        return f.result

    return Kernel("elementwise", ("test",), lambda *_: True, build, lambda *_: 0.0)


def apply(expression, x, lanes, result=F32):
    spec = Spec("test", (), (Tensor(F32, x.shape),), (Tensor(result, x.shape),))
    return run(elementwise(expression), spec, [x], lanes)[0]


@pytest.mark.parametrize("lanes", INTEGER_LANES)
def test_rounds_ties_to_even(lanes):
    """round and round_to_int32 agree with np.rint at ties, next to them and far from them."""
    ties = np.arange(-40, 40, dtype=np.float32) + np.float32(0.5)
    near = np.concatenate([np.nextafter(ties, np.float32(s)) for s in (-1e9, 1e9)])
    wide = np.random.default_rng(0).uniform(-2e9, 2e9, 80).astype(np.float32)
    x = np.concatenate([ties, near, wide, np.zeros(8, np.float32)])
    rounded = apply(lambda lanes, v: lanes.round(v), x, lanes)
    np.testing.assert_array_equal(rounded, np.rint(x))
    whole = apply(lambda lanes, v: lanes.round_to_int32(v), x, lanes, "i32")
    np.testing.assert_array_equal(whole, np.rint(x).astype(np.int32))


@pytest.mark.parametrize("lanes", INTEGER_LANES)
def test_powers_of_two_are_exact(lanes):
    """power_of_two gives 2**n for every n that has a normal float."""
    n = np.arange(-126, 122, dtype=np.float32)
    result = apply(lambda lanes, v: lanes.power_of_two(lanes.round_to_int32(v)), n, lanes)
    np.testing.assert_array_equal(result, np.exp2(n))


@pytest.mark.parametrize("lanes", INTEGER_LANES)
def test_orders_and_magnitudes(lanes):
    """maximum, minimum and absolute agree with NumPy."""
    x = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    third = np.float32(1 / 3)

    def limits(lanes, v):
        bound = broadcast(T.float32(float(third)), lanes.float_lanes)
        return lanes.maximum(lanes.minimum(v, bound), lanes.absolute(v) - bound)

    wanted = np.maximum(np.minimum(x, third), np.abs(x) - third)
    np.testing.assert_array_equal(apply(limits, x, lanes), wanted)


def ternary_row(dot, depth, through_panel):
    """A kernel for one vector of outputs: packed codes of ``depth`` k by activations [depth]."""

    def build(spec, lanes, name):
        x, w = spec.operands
        with function(name, {"x": x, "w": w, "y": spec.results[0]}) as f:
            x, w, y = f.buffers
            total = Registers(dot.registers, dot.lanes, dot.dtype)
            panel = T.alloc_buffer((dot.bytes,), DTYPES[dot.stored])
            for i in range(dot.registers):
                total[i] = zeros(dot)
            with T.serial(depth // dot.step) as step:
                for plane in range(4):
                    parts = dot.codes(lambda at, n: w[span(step * dot.bytes + at, n)], plane)
                    size = dot.bytes // len(parts)
                    if through_panel:
                        for i, part in enumerate(parts):
                            store(panel, part, span(i * size, size))
                        parts = dot.panel(lambda at, n: panel[span(at, n)])
                    values = dot.activations(lambda k, n: x[span(k, n)], step * dot.step, plane)
                    before = [total[i] for i in range(dot.registers)]
                    for i, value in dot.add(before, parts, values, plane).items():
                        total[i] = value
            sums = dot.sums([total[i] for i in range(dot.registers)])
            store(y, sums, span(0, dot.outputs))
        return f.result

    return Kernel("ternary_row", ("test",), lambda *_: True, build, lambda *_: 0.0)


@pytest.mark.parametrize("lanes", INTEGER_LANES)
@pytest.mark.parametrize("kind", ["packed", "unpacked"])
@pytest.mark.parametrize("worst", [1, -1, None])
def test_ternary_products_are_exact_over_a_whole_block(lanes, kind, worst):
    """A block of products of codes and int8 is exact, also when every one is extreme."""
    dot = getattr(lanes.ternary, kind)
    assert dot.block % dot.step == 0
    depth, outputs, group = min(dot.block, 4096), dot.outputs, dot.depth
    rng = np.random.default_rng(2)
    codes = np.full((depth, outputs), 2) if worst else rng.integers(0, 3, (depth, outputs))
    x = np.full(depth, 127 * worst) if worst else rng.integers(-127, 128, depth)
    # [step, plane, k in the group, output] -> one byte for each (step, output, k in the group)
    planes = codes.reshape(-1, 4, group, outputs).transpose(0, 3, 2, 1)
    packed = (planes << (2 * np.arange(4))).sum(-1).astype(np.uint8).ravel()
    spec = Spec(
        "test",
        (),
        (Tensor("i8", (depth,)), Tensor("u8", packed.shape)),
        (Tensor("i32", (outputs,)),),
    )
    result = run(ternary_row(dot, depth, kind == "unpacked"), spec, [x, packed], lanes)[0]
    np.testing.assert_array_equal(result, x @ (codes - 1 + dot.offset))


def test_records_are_listed_without_tvm():
    """Importing lanes, records and layouts does not import tvm."""
    import subprocess
    import sys

    code = (
        "import sys, butterflyc.kernels.lanes, butterflyc.kernels.record\n"
        "import butterflyc.targets.lanes_x86, butterflyc.kernels.layout\n"
        "sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert Lanes().float_lanes == 1
