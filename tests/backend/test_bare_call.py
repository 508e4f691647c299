"""A kernel called on a bare machine: its results, what it costs there, and how it may fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from butterflyc.compiler.errors import ToolFailed, UsageError
from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.ir.types import STORAGE
from butterflyc.compiler.run.bare_call import BareCall, call_on_machine
from butterflyc.compiler.run.bare_metal import Output, ProgramFailed, available
from butterflyc.compiler.run.kernel import spec_for
from butterflyc.compiler.run.kernel_count import kernel_instructions
from butterflyc.compiler.run.machine import machine_names
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec, Tensor
from butterflyc.targets import mcu
from butterflyc.targets.registry import load_core

KERNELS = {kernel.name: kernel for kernel in all_kernels()}
# Seconds in which no machine has even started.
SOON = 0.02


def spec(op: str, result: Tensor, *operands: Tensor, **attributes: Any) -> Spec:
    return spec_for(op, operands, [result], **attributes)


X, W = Tensor("i8", (3, 37)), Tensor("i8", (11, 37))
SUMS = Tensor("i32", (3, 11))
DOT = spec("ternary_dot", SUMS, X, Tensor("ternary", W.shape))
LINEAR = spec("integer_linear", SUMS, X, W, Tensor("i32", (11,)))
ADD = spec("saturating_add", *[Tensor("i16", (3, 5))] * 3)
ROTATED = Tensor("i8", (2, 2, 8))
ROTATE = spec(
    "integer_rotate", ROTATED, Tensor("i8", (2, 1, 8)), Tensor("i16", (3, 2, 4, 4)),
    Tensor("i64", (2, 2)), shift=15,
)  # fmt: skip
TOP = spec_for(
    "top_k", [Tensor("i16", (3, 9))], [Tensor("i16", (3, 2)), Tensor("i64", (3, 2))], k=2
)
CASES = [
    pytest.param("ternary_dot_table", DOT.with_parameters({"trits": 4}), id="table of 4"),
    pytest.param("ternary_dot_table", DOT.with_parameters({"trits": 5}), id="table of 5"),
    pytest.param("integer_products", LINEAR, id="products"),
    pytest.param("integer_products", ROTATE, id="rotations"),
    pytest.param("integer_elements", ADD, id="elements"),
    pytest.param("top_k", TOP, id="two results"),
]
PAIRS = [("integer_pairs", LINEAR), ("integer_pairs", ROTATE)]


@pytest.fixture(params=machine_names())
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    need(str(request.param), needs_tool)
    return str(request.param)


def need(machine: str, needs_tool: Callable[..., str]) -> None:
    for missing in available(machine):
        needs_tool(missing.tool)


def lanes_of(machine: str) -> Lanes:
    return mcu.machine(load_core(machine)).lanes


def drawn(asked: Spec) -> list[np.ndarray]:
    """Numbers of every size, of which none is out of place."""
    rng, arrays = np.random.default_rng(0), []
    for tensor in asked.operands:
        most = {"ternary": 1, "i8": 127, "i16": 32767, "i32": 1 << 20, "i64": 2}[tensor.dtype]
        least = 0 if tensor.dtype == "i64" else -most
        array = rng.integers(least, most + 1, tensor.shape)
        arrays.append(array.astype(STORAGE[tensor.dtype]))
    return arrays


def called(machine: str, kernel: Kernel, asked: Spec, **options: float) -> BareCall:
    return call_on_machine(machine, kernel, asked, drawn(asked), lanes_of(machine), **options)


def check(machine: str, name: str, asked: Spec) -> None:
    """Results are the op's, and a second call costs what the first did."""
    attributes: Mapping[str, Any] = dict(asked.attributes)
    meant = OPS[asked.op].meaning(*drawn(asked), **attributes)
    first, again = (called(machine, KERNELS[name], asked) for _ in range(2))
    wanted = meant if isinstance(meant, tuple) else (meant,)
    for found, array, tensor in zip(first.results, wanted, asked.results, strict=True):
        assert found.dtype == STORAGE[tensor.dtype]
        np.testing.assert_array_equal(found, array)
    assert first.instructions == again.instructions > 0


@pytest.mark.parametrize(("name", "asked"), CASES)
def test_results_and_counts(machine: str, name: str, asked: Spec) -> None:
    """On every machine a kernel gives what its op means, at a cost that is always the same."""
    check(machine, name, asked)


@pytest.mark.parametrize(("name", "asked"), PAIRS)
def test_pairs_on_a_cortex_m4(name: str, asked: Spec, needs_tool: Callable[..., str]) -> None:
    """So do kernels of instructions that only this machine has."""
    need("cortex-m4", needs_tool)
    check("cortex-m4", name, asked)


@pytest.mark.parametrize(
    ("name", "asked"), [("ternary_dot_table", DOT), ("integer_products", LINEAR)]
)
def test_what_data_do_not_change(machine: str, name: str, asked: Spec, tmp_path: Path) -> None:
    """A kernel whose loops data do not steer costs the same on any operands."""
    kernel = KERNELS[name]
    count = kernel_instructions(machine, kernel, asked, lanes_of(machine), tmp_path)
    assert called(machine, kernel, asked).instructions == count


def test_sizes(machine: str) -> None:
    """The bytes of what is beside operands and results, and of code: more where it is unrolled."""
    kernel = KERNELS["ternary_dot_table"]
    few, many = (
        called(machine, kernel, DOT.with_parameters({"trits": 4, "groups": 8, "unroll": u}))
        for u in (2, 8)
    )
    # Two rows of 64 columns, 8 tables of 81 and the sums of 11 outputs.
    assert few.scratch_bytes == many.scratch_bytes == 4 * (64 + 8 * 81 + 11)
    assert 100 < few.code_bytes < many.code_bytes < 20_000


def built_for(kernel: Kernel, other: Spec) -> Kernel:
    """A wrong kernel: whatever it is asked for, it computes ``other``."""
    return replace(kernel, build=lambda _, lanes, name: kernel.build(other, lanes, name))


def test_a_kernel_that_traps(machine: str) -> None:
    """Reading where nothing is ends the program, and is told."""

    def part(start: int) -> Spec:
        x, numbers = Tensor("i8", (start + 16,)), {"axis": 0, "step": 1}
        return spec("slice", Tensor("i8", (8,)), x, start=start, stop=start + 8, **numbers)

    wrong = built_for(KERNELS["move"], part(0x18000000))  # behind all memory
    with pytest.raises(ProgramFailed, match="the program trapped"):
        called(machine, wrong, part(0))


def test_a_kernel_that_does_not_end(machine: str) -> None:
    """What is not over in time is ended."""
    with pytest.raises(ProgramFailed, match="look for a loop that does not end"):
        called(machine, KERNELS["integer_products"], LINEAR, timeout=SOON)


def test_a_kernel_that_writes_behind_its_result(machine: str) -> None:
    """One byte is enough to be found."""

    def of(count: int) -> Spec:
        x = Tensor("i8", (count,))
        return spec("lookup", x, x, Tensor("i8", (256,)))

    wrong = built_for(KERNELS["lookup"], of(16))
    with pytest.raises(ProgramFailed, match="lookup wrote behind its result 0"):
        called(machine, wrong, of(15))


def test_a_kernel_that_writes_behind_its_scratch(machine: str) -> None:
    """So is a buffer that is smaller than the kernel says it needs."""
    kernel = KERNELS["ternary_dot_table"]

    def scratch(asked: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
        *others, sums = kernel.scratch(asked, lanes)
        return *others, Tensor("i32", (sums.shape[0] - 1,))

    wrong = replace(kernel, scratch=scratch)
    with pytest.raises(ProgramFailed, match="ternary_dot_table wrote behind its scratch 2"):
        called(machine, wrong, DOT)


def test_a_program_that_writes_otherwise(
    needs_tool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output of another length is no results."""
    need("rv32imc", needs_tool)
    cut = Output(0, bytes(7))
    monkeypatch.setattr("butterflyc.compiler.run.bare_call.run", lambda *_: cut)
    with pytest.raises(ProgramFailed, match="integer_elements wrote 7 bytes, not 48"):
        called("rv32imc", KERNELS["integer_elements"], ADD)


def test_more_than_can_be_counted() -> None:
    """What might take more instructions than a clock counts is refused before it is built."""
    x, w = Tensor("i8", (400, 2048)), Tensor("i8", (1024, 2048))
    much = spec("integer_linear", Tensor("i32", (400, 1024)), x, w)
    with pytest.raises(UsageError, match=r"a call of integer_products is .* that can be counted"):
        called("rv32imc", KERNELS["integer_products"], much)


def test_what_does_not_fit(needs_tool: Callable[..., str]) -> None:
    """A machine with too little memory is told of by its linker."""
    need("cortex-m4", needs_tool)
    many = Tensor("i8", (5 << 20,))
    asked = spec("lookup", many, many, Tensor("i8", (256,)))
    with pytest.raises(ToolFailed, match="overflowed"):
        called("cortex-m4", KERNELS["lookup"], asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:1], "1 arrays, saturating_add has 2 operands here"),
        (lambda a: [a[0], a[1][:1]], r"operand 1 is int16\[1, 5\], the kernel is asked for i16"),
        (lambda a: [a[0].astype(np.int32), a[1]], r"operand 0 is int32\[3, 5\]"),
    ],
)
def test_other_arrays(change: Callable[[Any], Any], message: str) -> None:
    """Arrays that are not what the spec says are refused before anything is built."""
    with pytest.raises(UsageError, match=message):
        call_on_machine(
            "rv32imc", KERNELS["integer_elements"], ADD, change(drawn(ADD)), lanes_of("rv32imc")
        )
