"""Lowered TIR is printed as C that a person can read and every compiler takes without a word."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.lower.emit_c import emit, emit_header, lower_for_c
from butterflyc.compiler.lower.externs import EXTERNS
from butterflyc.kernels.record import Tensor
from butterflyc.kernels.tir import Registers, T, cast, function, loop, named, store

from . import printed_kernels as kernels
from .printed import C_FLAGS, CXX_FLAGS, run_printed

GOLDEN = Path(__file__).parent / "golden"
I32 = {"x": Tensor("i32", (8,)), "y": Tensor("i32", (8,))}
F32 = {"x": Tensor("f32", (8,)), "y": Tensor("f32", (8,))}


def built(body: Callable[..., Any], parameters: dict[str, Tensor] = I32, name: str = "f") -> Any:
    """A function of these buffers."""
    with function(name, parameters) as f:
        body(*f.buffers)
    return f.result


def printed(body: Callable[..., Any], parameters: dict[str, Tensor] = I32) -> str:
    """The C of the function alone, from its comment to its last bracket."""
    code = emit([lower_for_c(built(body, parameters))])
    return code[code.index("/*") : code.rindex("#ifdef")].rstrip()


def one_store(value: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda x, y: store(y, value(x), 0)


@pytest.mark.parametrize("kernel", [kernels.requantize, kernels.dense_pairs])
def test_text(kernel: Callable[[], Any], golden: Callable[[Path, str], None]) -> None:
    """The whole file of a kernel is as in golden/, down to the last bracket."""
    golden(GOLDEN / f"{kernel.__name__}.c", emit([lower_for_c(kernel())]))


def test_header_text(golden: Callable[[Path, str], None]) -> None:
    """The header declares every function once, between extern "C" brackets."""
    functions = [lower_for_c(f) for f in (kernels.requantize(), kernels.dense_pairs())]
    golden(GOLDEN / "kernels.h", emit_header(functions, "KERNELS_H"))


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [("gcc", C_FLAGS), ("g++", CXX_FLAGS), ("clang-22", C_FLAGS), ("clang++-22", CXX_FLAGS)],
    ids=["gcc", "g++", "clang", "clang++"],
)
def test_no_compiler_warns(
    needs_tool: Callable[..., str], tmp_path: Path, compiler: str, flags: tuple[str, ...]
) -> None:
    """All kernels in one file compile without a warning, and agree with their header."""
    functions = [lower_for_c(f) for f in kernels.every_kernel()]
    (tmp_path / "kernels.h").write_text(emit_header(functions, "KERNELS_H"))
    source = '#include "kernels.h"\n#include "kernels.h"\n' + emit(functions)
    (tmp_path / "kernels.c").write_text(source)
    command = [needs_tool(compiler), *flags, "-O2", "-c", "kernels.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_object_needs_only_memcpy_and_memset(
    needs_tool: Callable[..., str], tmp_path: Path
) -> None:
    """A file of all kernels refers to no other function, and defines each of them."""
    functions = [lower_for_c(f) for f in kernels.every_kernel()]
    (tmp_path / "k.c").write_text(emit(functions))
    flags = "-std=c99", "-O2", "-ffreestanding", "-c"
    subprocess.run([needs_tool("gcc"), *flags, "k.c"], cwd=tmp_path, check=True)
    nm = subprocess.run([needs_tool("nm"), "k.o"], cwd=tmp_path, capture_output=True, text=True)
    rows = [line.split() for line in nm.stdout.splitlines()]
    assert {row[-1] for row in rows if row[-2] == "U"} <= {"memcpy", "memset"}
    names = {str(f.attrs["global_symbol"]) for f in functions}
    assert names == {row[-1] for row in rows if row[-2] == "T"}


def test_no_float_where_the_kernel_has_none() -> None:
    """The C of integer kernels does not name a type that a chip without FPU computes slowly."""
    code = emit([lower_for_c(f()) for f in (kernels.requantize, kernels.first_zero)])
    assert "float" not in code
    assert "double" not in code
    assert "#include <string.h>" not in code


def test_kernels_compute_what_they_mean(needs_tool: Callable[..., str], tmp_path: Path) -> None:
    """Branches, loops that end early, tables, externs and floats agree with NumPy."""
    rng = np.random.default_rng(0)
    x = rng.integers(-90000, 90000, (3, 10), np.int32)
    x[1, 0] -= x[1].sum() + 1
    multiplier = rng.integers(-99, 100, 3).astype(np.int16)
    table = rng.permutation(256).astype(np.uint8).view(np.int8)
    values = rng.integers(-127, 128, 8).astype(np.int8)
    w = rng.integers(-128, 128, (4, 8)).astype(np.int8)
    fours = np.ascontiguousarray(values.reshape(2, 2, 2).transpose(0, 2, 1), np.int16)
    digits = np.array([7, 1, 7, 2, 0, 7, 0, 7], np.int8)
    floats = rng.standard_normal(6).astype(np.float32)
    rows = rng.standard_normal((4, 9)).astype(np.float32)

    def zeros(shape: Any, dtype: Any) -> Any:
        return np.full(shape, 77, dtype)

    calls = [
        ("requantize", [x, multiplier, table, zeros((3, 10), np.int8)]),
        ("dense_pairs", [fours.view(np.int32), w.view(np.int32), zeros(4, np.int32)]),
        ("first_zero", [digits, zeros(2, np.int32)]),
        ("moved", [floats, zeros(6, np.float32), zeros(6, np.int32)]),
        ("quantize_rows", [rows, zeros((4, 9), np.int8), zeros((4, 1), np.float32)]),
    ]
    results = run_printed(tmp_path, needs_tool("gcc"), kernels.every_kernel(), calls)
    got = [after[-1] for after in results]
    scaled = (x.astype(np.int64) * multiplier[:, None] + 256) >> 9
    wanted = table[np.clip(scaled, -127, 127) + 128] * (x.sum(1, keepdims=True) >= 0)
    np.testing.assert_array_equal(got[0], wanted)
    np.testing.assert_array_equal(got[1], w.astype(np.int32) @ values)
    np.testing.assert_array_equal(got[2], [4, 2])
    np.testing.assert_array_equal(got[3], np.where(floats < 0, floats.view(np.int32), 0))
    codes, scales = OPS["quantize_rows"].meaning(rows, bits=8)
    np.testing.assert_array_equal(results[4][1], codes)
    np.testing.assert_array_equal(got[4], scales.reshape(4, 1))


def test_what_is_never_stored_is_const() -> None:
    """A buffer that is only read is const, and so is a value that is set once; the rest is not."""

    def body(x: Any, y: Any) -> None:
        once, twice = (Registers(1, 1, "int32", name) for name in ("once", "twice"))
        once[0] = x[0] * 3
        twice[0] = x[1]
        twice[0] = twice[0] + once[0] * once[0]
        store(y, twice[0], 0)

    assert printed(body) == (
        "/* x[8], y[8] */\n"
        "void f(const int32_t *RESTRICT x, int32_t *RESTRICT y)\n"
        "{\n"
        "    const int32_t once = x[0] * 3;\n"
        "    int32_t twice = x[1];\n"
        "    twice = twice + once * once;\n"
        "    y[0] = twice;\n"
        "}"
    )


def test_what_nobody_reads_is_not_printed() -> None:
    """Values without a use go, with those that only they used; a buffer without one is voided."""

    def body(x: Any, y: Any, z: Any) -> None:
        first = named("first", x[0] * x[0])
        second = Registers(1, 1, "int32")
        second[0] = first + 1
        store(y, x[1], 0)

    code = printed(body, {**I32, "z": Tensor("i8", (2,))})
    assert "first" not in code
    assert "    (void)z;\n    y[0] = x[1];\n}" in code


def test_restrict_only_where_the_kernel_says_so() -> None:
    """Without tirx.noalias no pointer is restricted."""
    assert "RESTRICT x" in printed(one_store(lambda x: x[0]))
    free = built(one_store(lambda x: x[0])).without_attr("tirx.noalias")
    assert "void f(const int32_t *x, int32_t *y)" in emit([lower_for_c(free)])


def test_scalars_are_passed_by_value() -> None:
    """A parameter that is a number is one in C, and not in the comment of shapes."""
    from tvm.script.ir_builder import IRBuilder

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("f")
        T.func_attr({"global_symbol": "f", "tirx.noalias": True})
        y = T.arg("y", T.Buffer((8,), "int32"))
        n = T.arg("n", T.int32())
        with loop("i", n) as i:
            store(y, i * n, i)
    code = emit([lower_for_c(builder.get())])
    assert "/* y[8] */\nvoid f(int32_t *RESTRICT y, int32_t n)\n" in code
    assert "for (int32_t i = 0; i < n; ++i)" in code


def test_names_are_free_of_words_of_c() -> None:
    """Keywords, other kernels, helpers and externs are no names, and each name means one thing."""

    def body(x: Any, y: Any) -> None:
        for name in ("int", "class", "f", "max_i32", "smlad", "x", "größe", "2nd", "_"):
            store(y, named(name, x[1] * x[2]) * named(name, x[3] * x[4]), 0)

    code = printed(body)
    names = re.findall(r"const int32_t (\w+) =", code)
    assert names[:6] == ["int_1", "int_2", "class_1", "class_2", "f_1", "f_2"]
    assert names[6:12] == ["max_i32_1", "max_i32_2", "smlad_1", "smlad_2", "x_1", "x_2"]
    assert names[12:] == ["gr__e", "gr__e_1", "v2nd", "v2nd_1", "v", "v_1"]


def test_names_are_used_again_in_the_next_block() -> None:
    """Two loops after one another have the same variable, one inside the other has another."""

    def body(x: Any, y: Any) -> None:
        with loop("i", 4) as i, loop("i", 2) as j:
            store(y, x[i], i * 2 + j)
        with loop("i", 8) as i:
            store(y, x[i], i)

    heads = re.findall(r"for \(int32_t (\w+) =", printed(body))
    assert heads == ["i", "i_1", "i"]


def test_pointers_of_tables_do_not_meet_names() -> None:
    """A pointer to a table's middle has a name of its own, and stores do not go through it."""

    def body(x: Any, table: Any, y: Any) -> None:
        taken = named("table_3", x[0] * x[1])
        index = cast("int32", x[2], 1)
        store(y, table[index + 3] + taken, index + 1)
        store(y, table[index + 99], named("y_2", x[4] * x[5]))

    code = printed(
        body, {"x": Tensor("i8", (8,)), "table": Tensor("i8", (9,)), "y": Tensor("i8", (99,))}
    )
    assert "    const int8_t *const table_3_1 = table + 3;\n" in code
    assert "y[(int32_t)x[2] + 1] = (int8_t)(table_3_1[x[2]] + table_3);" in code
    assert "= table[(int32_t)x[2] + 99];" in code


def test_the_end_of_a_loop_is_computed_once() -> None:
    """A loop whose body changes its own bound runs as often as TIR says."""

    def body(x: Any, y: Any) -> None:
        end = Registers(1, 1, "int32", "end")
        end[0] = x[0]
        with loop("i", end[0]) as i:
            end[0] = end[0] + x[i]
            store(y, end[0], i)
        with loop("i", x[1]) as i:
            store(y, x[i], i)

    code = printed(body)
    assert "const int32_t i_end = end;\n    for (int32_t i = 0; i < i_end; ++i) {" in code
    assert "const int32_t i_end_1 = x[1];\n    for (int32_t i = 0; i < i_end_1; ++i) {" in code


def test_two_functions_share_a_file() -> None:
    """Helpers stand there once, functions in the order given, and each keeps its own names."""
    largest = built(one_store(lambda x: T.max(x[0], x[1])), name="largest")
    limited = built(one_store(lambda x: T.max(T.min(x[0], x[1]), x[2])), name="limited")
    code = emit([lower_for_c(largest), lower_for_c(limited)])
    assert code.count("static inline int32_t max_i32(") == 1
    places = [code.index(f"void {name}(const int32_t *") for name in ("largest", "limited")]
    assert code.index("min_i32(int32_t a") < places[0] < places[1]
    assert emit([lower_for_c(limited), lower_for_c(largest)]) != code


def test_lines_are_not_longer_than_100() -> None:
    """Long sums and many parameters are broken, sums before an operator."""

    def body(*buffers: Any) -> None:
        total = buffers[0][0]
        for buffer in buffers[1:]:
            total = total + buffer[1] * buffer[2]
        store(buffers[0], total, 0)

    parameters = {f"a_rather_long_name_{i}": Tensor("i32", (8,)) for i in range(9)}
    lines = printed(body, parameters).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("            + a_rather") for line in lines) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda v: v + T.float32(0.5), "x[0] + 0.5f"),
        (lambda v: v * T.float32(0.1), "x[0] * 0x1.99999a0000000p-4f"),
        (
            lambda v: cast("float32", cast("float64", v, 1) * T.float64(0.1), 1),
            "(double)x[0] * 0.1)",
        ),
        (lambda v: T.Select(v < T.float32(3), v, T.float32(-3)), "x[0] < 3.0f) ? x[0] : -3.0f"),
    ],
)
def test_constants_are_exact(value: Callable[[Any], Any], text: str) -> None:
    """Short decimals are printed as such, others in hexadecimal, each of its own type."""
    assert text in printed(lambda x, y: store(y, value(x[0]), 0), F32)


def test_the_least_integers_can_be_written() -> None:
    """-2**31 and -2**63 are not the minus of a number that their type has not."""
    assert "(-2147483647 - 1)" in printed(one_store(lambda x: x[0] ^ T.int32(-(2**31))))
    wide = {"x": Tensor("i64", (8,)), "y": Tensor("i64", (8,))}
    code = printed(one_store(lambda x: x[0] ^ T.int64(-(2**63))), wide)
    assert "(-9223372036854775807LL - 1)" in code
    assert "x[0] + 5LL" in printed(one_store(lambda x: x[0] + T.int64(5)), wide)


def test_an_extern_of_the_caller_is_called_and_given() -> None:
    """What the caller gives as C text stands above the kernels that call it, once."""
    text = "static inline int32_t twice(int32_t a) { return 2 * a; }"
    body = one_store(lambda x: T.call_pure_extern("int32", "twice", x[0]))
    function = lower_for_c(built(body))
    externs = {**EXTERNS, "twice": text}
    code = emit([function], externs)
    assert code.count(text) == 1
    assert "y[0] = twice(x[0]);" in code
    assert "void f(" in emit_header([function], "F_H", externs)


def test_what_c_would_overflow_is_computed_unsigned() -> None:
    """Left shifts, and products of uint16, are defined for every operand."""
    code = printed(one_store(lambda x: x[0] << 3))
    assert "y[0] = (int32_t)((uint32_t)x[0] << 3);" in code

    def body(x: Any, y: Any) -> None:
        a, b = (cast("uint16", x[i], 1) for i in range(2))
        store(y, cast("int32", a * b, 1), 0)

    code = printed(body)
    assert "(int32_t)(uint16_t)((uint32_t)(uint16_t)x[0] * (uint16_t)x[1]);" in code
