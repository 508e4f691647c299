"""A kernel called in QEMU computes what its op means, and its counts are its own."""

from __future__ import annotations

import numpy as np
import pytest

from butterflyc.bench.cases import cases, dense, experts, integer_dense, ternary
from butterflyc.bench.kernels import best
from butterflyc.compiler.errors import VerificationFailed
from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.run.kernel_call import call_kernel
from butterflyc.compiler.run.machine_code import disassemble
from butterflyc.compiler.run.modelled import HARNESS, modelled
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.layout import pack
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.targets.lanes_neon import Neon

A72 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "mattr": ["+neon"]}
A7 = {"kind": "llvm", "mtriple": "armv7a-linux-gnueabihf", "mcpu": "cortex-a7", "mattr": ["+neon"]}
# Debian's linker looks at this, though no kernel takes floats as arguments.
A7 |= {"mfloat-abi": "hard"}
X86 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"}
LANES = Lanes()
SMALL = [ternary(3, 40, 17), dense(3, 40, 17), integer_dense(3, 40, 17), experts(2, LANES)]


def called(case, target=A72):
    kernel = best(case.spec, LANES)
    return call_kernel(kernel, case.spec, case.arrays, LANES, target)


@pytest.mark.parametrize("target", [A72, A7, X86], ids=["aarch64", "arm", "x86_64"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_computes_what_the_op_means(arm, case, target):
    """Results on every architecture are those of the op's meaning."""
    case.check(called(case, target).results)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_other_results_are_refused(case):
    """A result that is wrong by more than the tolerance, or a number that is none, is an error."""
    wanted = case.meaning()
    case.check([wanted])
    for wrong in (wanted + np.abs(wanted).max() / 100, wanted * np.nan):
        with pytest.raises(VerificationFailed, match="differs from its meaning by"):
            case.check([wrong])


def test_counts_the_call_and_nothing_else(arm):
    """Two calls count the same, and but for the instructions that call it all are of the kernel."""
    first, again = called(SMALL[0]), called(SMALL[0])
    assert first.executions.by_address == again.executions.by_address
    assert set(first.executions.executed()) == {"kernel", HARNESS}
    assert first.executions.of(HARNESS) < 20
    assert first.moved_bytes == 3 * 40 + first_weights(SMALL[0]) + 4 * 3 * 17


def first_weights(case) -> int:
    """The bytes of a case's packed weights."""
    kernel = best(case.spec, LANES)
    return pack(kernel.layouts(case.spec, LANES)[1], case.arrays[1]).nbytes


def test_every_instruction_is_in_a_block(arm, tmp_path):
    """Executions of blocks times their lengths are the kernel's instructions."""
    call = called(SMALL[3])
    (tmp_path / "program").write_bytes(call.program)
    code = disassemble(tmp_path / "program", "kernel")
    counts = call.executions.by_address
    for block in code.blocks.values():
        assert len({counts.get(i.address, 0) for i in block.instructions}) == 1
    found = sum(counts.get(a, 0) * len(b.instructions) for a, b in code.blocks.items())
    assert found == call.executions.of("kernel") == modelled(call, "cortex-a72").instructions


def test_parts_are_the_whole(arm):
    """The cycles of the three parts add up to the call's, in which the product is the most."""
    found = modelled(called(dense(9, 256, 64)), "cortex-a72", floats=True)
    assert sum(found.parts.values()) == pytest.approx(found.cycles)
    assert max(found.parts, key=lambda part: found.parts[part]) == "product"
    assert found.loop is not None
    assert found.loop.repeats
    assert found.loop.achieved <= found.loop.bound
    assert found.loop.cost.executions * found.loop.products <= found.products


def test_a_call_without_products_has_no_main_loop(arm):
    """Where nothing multiplies there is no loop to tell of, and all cycles are before a product."""
    found = modelled(called(dense(9, 256, 64)), "cortex-a72", floats=False)
    assert (found.loop, found.products) == (None, 0)
    assert found.parts["before"] == found.cycles


def test_gives_numbers_behind_the_buffers(arm):
    """A kernel that takes attributes as arguments gets their values."""
    sums = np.random.default_rng(0).integers(-9999, 9999, (3, 8)).astype(np.int32)
    multiplier = np.asarray(np.int16(20000))
    attributes = {"drop": 2, "dtype": "i8", "shift": 20}
    operands = Tensor("i32", sums.shape), Tensor("i16", ())
    spec = Spec(
        "requantize", tuple(sorted(attributes.items())), operands, (Tensor("i8", sums.shape),)
    )
    kernel = best(spec, LANES)
    assert kernel.numbers == ("drop", "shift")
    (result,) = call_kernel(kernel, spec, [sums, multiplier], LANES, A72).results
    np.testing.assert_array_equal(result, OPS["requantize"].meaning(sums, multiplier, **attributes))


def test_there_is_a_case_for_each_kernel_at_one_row_and_many():
    """The suite's calls are those that the papers' models make."""
    shapes = [(case.name, case.shape) for case in cases(LANES)]
    assert shapes == [
        ("ternary_dot", "1x256x1024"),
        ("ternary_dot", "65x256x1024"),
        ("butterfly_experts", "130x256x1024"),
        ("linear", "1x256x256"),
        ("linear", "65x256x768"),
        ("integer_linear", "65x256x768"),
    ]
    others = [case for case in cases(Neon()) if (case.name, case.shape) not in shapes]
    assert [(case.name, case.shape) for case in others] == [
        ("ternary_dot_7_bits", "1x256x1024"),
        ("ternary_dot_7_bits", "65x256x1024"),
        ("butterfly_experts_7_bits", "128x256x1024"),
    ]
    assert all(np.abs(case.arrays[0]).max() == 63 for case in others[:2])
    assert dict(others[2].spec.attributes)["activation_bits"] == 7
