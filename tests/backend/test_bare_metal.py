"""Programs in QEMU: what they write and return, exact counts, memory, and everything told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.compiler.errors import (
    ButterflycError,
    ToolFailed,
    ToolMissing,
    UnknownName,
    UsageError,
)
from butterflyc.compiler.run import bare_metal, tools
from butterflyc.compiler.run.bare_metal import (
    Output,
    ProgramFailed,
    available,
    build,
    object_symbols,
    run,
    sizes,
)
from butterflyc.compiler.run.machine import load_machine, machine_names

LOOP = """\
static __attribute__((noinline)) uint32_t loop(uint32_t times) {
    uint64_t before = hal_instructions();
    for (uint32_t i = 0; i < times; i++)
        __asm__ volatile("nop\\n nop\\n nop");
    return (uint32_t)(hal_instructions() - before);
}
"""
ILLEGAL = {"rv32imc": ".4byte 0", "cortex-m4": "udf #1", "esp32": "ill"}
# What a compiler turns into calls, on values that it cannot see.
ARITHMETIC = """\
static volatile int64_t left[] = {%(left)s}, right[] = {%(right)s};
static volatile float small = 0.1f;
static int choose(int x) {
    switch (x) {
    case 0: return 11; case 1: return 7; case 2: return 5; case 3: return 100; case 4: return 9;
    case 5: return -3; case 6: return 42; default: return 0;
    }
}
static void show(int64_t x) { hal_print_number(x); hal_print(" "); }
int main(void) {
    for (int i = 0; i < %(count)d; i++) {
        int64_t a = left[i], b = right[i];
        show((int64_t)((uint64_t)a * (uint64_t)b)); show(a / b); show(a %% b);
        show((int64_t)((uint64_t)a / (uint64_t)b)); show((int64_t)((uint64_t)a %% (uint64_t)b));
        show(a >> (b & 63)); show((int64_t)((uint64_t)a << (b & 63)));
    }
    for (int i = -1; i < 8; i++) show(choose(i));
    show((int32_t)(small * 1000.0f + 0.5f));
    return 0;
}
"""
STRINGS = """\
#include <string.h>
static char from[40] = "0123456789abcdefghijklmnopqrstuvwxyz", to[40];
int main(void) {
    for (volatile size_t at = 0; at < 5; at++) {
        memset(to, '.' + 256 * 7, 38);
        memcpy(to + at, from + 1, 9 + at); hal_print(to); hal_print("\\n");
        memcpy(to + 4 * at, from + 4, 13); hal_print(to); hal_print("\\n");
        memmove(to + at, to + 2, 20); hal_print(to); hal_print("\\n");
        memmove(to + 2, to + at, 20); hal_print(to); hal_print("\\n");
    }
    volatile size_t nine = 9;
    hal_print_number(memcmp(from, "012345678#", nine));
    hal_print_number(memcmp(from, "012345678#", nine + 1) > 0);
    hal_print_number(memcmp(from, "0123456789b", nine + 2) < 0);
    hal_print_number((int64_t)strlen(from));
    return 0;
}
"""


@pytest.fixture(params=machine_names())
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    name = str(request.param)
    for missing in available(name):
        needs_tool(missing.tool)
    return name


def ran(machine: str, folder: Path, main: str, timeout: float = 60.0) -> Output:
    elf = build(machine, {"main.c": f'#include "hal.h"\n{main}'}, folder)
    return run(machine, elf, timeout)


def test_what_a_program_writes_is_returned(machine: str, tmp_path: Path) -> None:
    """Text, numbers and bytes arrive as they were written, also 100 KB at once."""
    output = ran(
        machine,
        tmp_path,
        """
        static uint8_t many[100000];
        int main(void) {
            for (uint32_t i = 0; i < sizeof many; i++) many[i] = (uint8_t)(i % 251);
            hal_print("r\\xc3\\xa4tsel\\n");
            hal_print_number(-9223372036854775807 - 1);
            hal_write("\\n\\0\\xff", 3);
            hal_write(many, sizeof many);
            return 0;
        }""",
    )
    many = bytes(i % 251 for i in range(100000))
    assert output.data == "rätsel\n-9223372036854775808\n".encode() + b"\0\xff" + many
    assert output.text.startswith("rätsel\n-9223372036854775808\n\0\\xff")
    assert output.checked() is output


@pytest.mark.parametrize(
    ("returned", "status"), [("3", 3), ("254", 254), ("256", 255), ("-1", 255)]
)
def test_the_status_is_what_main_returned(
    machine: str, tmp_path: Path, returned: str, status: int
) -> None:
    """A return of 0 to 255 is the status, any other is told as 255 and not taken for success."""
    output = ran(machine, tmp_path, f'int main(void) {{ hal_print("so far"); return {returned}; }}')
    assert (output.status, output.text) == (status, "so far")
    with pytest.raises(ProgramFailed, match=f"returned {status}; its last output:\nso far"):
        output.checked()


def test_instructions_are_counted_exactly(machine: str, tmp_path: Path) -> None:
    """A loop counts its length times its turns plus one constant, on every run, to the last one."""
    turns = [*range(1, 40), 1000, 12345, 3000000]
    main = f"""
        {LOOP}
        static const uint32_t turns[] = {{{", ".join(map(str, turns))}}};
        int main(void) {{
            for (uint32_t i = 0; i < {len(turns)}; i++) {{
                hal_print_number(loop(turns[i]));
                hal_print(" ");
            }}
            return 0;
        }}"""
    first = ran(machine, tmp_path, main)
    counts = [int(word) for word in first.text.split()]
    length = counts[1] - counts[0]
    constant = counts[0] - length
    assert length in (5, 6)  # three nops, one or two to count, a branch
    assert 0 < constant < 100
    assert counts == [length * n + constant for n in turns]
    assert run(machine, tmp_path / f"{machine}.elf") == first


def test_data_is_initialised_and_the_rest_is_zero(machine: str, tmp_path: Path) -> None:
    """64 KiB of values are there before main, 64 KiB without values are 0, and both can change."""
    values = [(i * 2654435761) % 2**32 for i in range(16384)]
    main = f"""
        static uint32_t data[16384] = {{{",".join(f"{value}u" for value in values)}}};
        static uint32_t zero[16384];
        int main(void) {{
            uint64_t sum = 0, other = 0;
            for (uint32_t i = 0; i < 16384; i++) {{
                sum += (uint64_t)data[i] * (i + 1);
                if (zero[i] != 0) return 1;
                zero[i] = data[i] ^ i;
            }}
            for (uint32_t i = 0; i < 16384; i++) {{
                data[i] += zero[i];
                other += (zero[i] ^ i) - (uint64_t)0;
            }}
            hal_print_number((int64_t)sum); hal_print(" "); hal_print_number((int64_t)other);
            return 0;
        }}"""
    output = ran(machine, tmp_path, main).checked()
    sums = [sum((i + 1) * value for i, value in enumerate(values)), sum(values)]
    assert [int(word) for word in output.text.split()] == sums
    size = sizes(machine, tmp_path / "main.c.o")
    assert (size.data, size.bss) == (65536, 65536)
    assert 0 < size.text < 1024
    symbols = {symbol.name: symbol for symbol in object_symbols(machine, tmp_path / "main.c.o")}
    assert (symbols["main"].kind, symbols["hal_print"].kind) == ("T", "U")
    assert (symbols["zero"].kind, symbols["zero"].size) == ("b", 65536)


def test_the_stack_is_measured(machine: str, tmp_path: Path) -> None:
    """The stack's high-water mark grows by the same for each call of a recursion, and stays."""
    main = """
        static __attribute__((noinline)) int down(int depth) {
            volatile char block[200];
            for (int i = 0; i < 200; i++) block[i] = (char)depth;
            return depth > 0 ? down(depth - 1) + block[depth % 200] : 0;
        }
        int main(void) {
            for (int depth = 0; depth <= 300; depth += 100) {
                down(depth);
                hal_print_number((int64_t)hal_stack_bytes()); hal_print(" ");
            }
            down(1);
            hal_print_number((int64_t)hal_stack_bytes());
            return 0;
        }"""
    shallow, *marks = (int(word) for word in ran(machine, tmp_path, main).checked().text.split())
    assert 200 <= shallow < 1000
    assert 200 * 100 < marks[1] - marks[0] < 400 * 100
    assert marks[2] - marks[1] == marks[1] - marks[0]
    assert marks[3] == marks[2]


def test_arithmetic_is_that_of_c(machine: str, tmp_path: Path) -> None:
    """Products, quotients and shifts of 64 bits, a jump table and a float agree with Python."""
    pairs = [
        (7, 3), (-7, 3), (7, -3), (1 << 40, 12345), (-(1 << 62), 1 << 33), (2**63 - 1, -2),
        (0x123456789ABCDEF, 0xFEDCBA987), (-1, 2**63 - 1), (5, 1 << 50), (2**32 - 1, 2**32 - 1),
    ]  # fmt: skip
    source = ARITHMETIC % {
        "left": ", ".join(f"{a}ll" for a, _ in pairs),
        "right": ", ".join(f"{b}ll" for _, b in pairs),
        "count": len(pairs),
    }
    wanted = []
    for a, b in pairs:
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        unsigned = divmod(a % 2**64, b % 2**64)
        shift = b & 63
        for x in (a * b, quotient, a - quotient * b, *unsigned, a >> shift, a << shift):
            wanted.append((x + 2**63) % 2**64 - 2**63)
    wanted += [0, 11, 7, 5, 100, 9, -3, 42, 0, 100]
    assert [int(word) for word in ran(machine, tmp_path, source).checked().text.split()] == wanted


def test_memory_functions_are_those_of_c(machine: str, tmp_path: Path) -> None:
    """<string.h> copies, moves both ways, fills and compares, aligned or not."""
    text, wanted = b"0123456789abcdefghijklmnopqrstuvwxyz", ""
    for at in range(5):
        to = bytearray(b"." * 38)
        to[at : 9 + 2 * at] = text[1 : 10 + at]
        wanted += to.decode() + "\n"
        to[4 * at : 4 * at + 13] = text[4:17]
        wanted += to.decode() + "\n"
        to[at : at + 20] = to[2:22]
        wanted += to.decode() + "\n"
        to[2:22] = to[at : at + 20]
        wanted += to.decode() + "\n"
    assert ran(machine, tmp_path, STRINGS).checked().text == f"{wanted}01136"


def test_several_sources_make_one_program(machine: str, tmp_path: Path) -> None:
    """Headers, flags and assembly work, in any folder, at any level of optimisation."""
    sources = {
        "main.c": '#include "hal.h"\n#include "two.h"\nint main(void) { return TWICE * two(); }',
        "two.h": "int two(void);\nextern const int constant;\n",
        "two.c": '#include "two.h"\nint two(void) { return constant + 1; }',
        "constant.s": ".section .rodata\n.global constant\n.balign 4\nconstant: .4byte 20\n",
    }
    for optimise in ("-O0", "-Os", "-O3"):
        folder = tmp_path / f"of, {{so}} '{optimise}'"
        elf = build(machine, sources, folder, optimise, flags=["-DTWICE=2", "-Wall", "-Werror"])
        assert run(machine, elf).status == 42


@pytest.mark.parametrize("trap", ["abort", "illegal", "overflow"])
def test_a_trap_is_told(machine: str, tmp_path: Path, trap: str) -> None:
    """A trap, an illegal instruction and a stack overflow are told with what was written before."""
    body = {
        "abort": "__builtin_trap();",
        "illegal": f'__asm__ volatile("{ILLEGAL[machine]}");',
        "overflow": "return down(1);",
    }[trap]
    main = f"""
        static volatile int always = 1;
        int down(int depth) {{
            volatile int block[50];
            block[0] = depth;
            return always ? down(depth + 1) + block[0] : depth;
        }}
        int main(void) {{ hal_print("one\\ntwo\\n"); {body} return 0; }}"""
    with pytest.raises(ProgramFailed) as caught:
        ran(machine, tmp_path, main)
    what = caught.value.what
    assert what.startswith("the program trapped: ")
    assert what.endswith("its last output:\none\ntwo")
    wanted = {"abort": "", "illegal": "illegal instruction", "overflow": "stack overflow"}[trap]
    assert wanted in what


def test_a_program_that_does_not_end_is_stopped(machine: str, tmp_path: Path) -> None:
    """A program that hangs, or writes without end, is stopped, and its last output is shown."""
    with pytest.raises(
        ProgramFailed, match=r"still running after 0\.5 s; its last output:\nso far"
    ):
        ran(machine, tmp_path, 'int main(void) { hal_print("so far"); for (;;); }', timeout=0.5)


def test_endless_output_is_stopped(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that writes more than may be kept is stopped."""
    monkeypatch.setattr(bare_metal, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(ProgramFailed, match="wrote more than 1,048,576 bytes"):
        ran(machine, tmp_path, 'int main(void) { for (;;) hal_print("on and on\\n"); }')


def test_an_error_in_the_c_code_is_told(machine: str, tmp_path: Path) -> None:
    """The message holds the compiler's first lines, with file and line, and not all of them."""
    with pytest.raises(ToolFailed, match=r"main\.c:3:\d+: error: .*nonsense") as caught:
        ran(machine, tmp_path, "int main(void) {\nreturn nonsense;\n}")
    assert caught.value.exit_status == 7
    with pytest.raises(ToolFailed, match=r"\.\.\. and \d+ more lines") as caught:
        ran(machine, tmp_path, "int x = 1\n;" + "\nint y = a0;" * 50)
    assert len(caught.value.what.splitlines()) == tools.FIRST_LINES + 2
    with pytest.raises(ToolFailed, match="undefined reference to `nowhere'"):
        ran(machine, tmp_path, "void nowhere(void);\nint main(void) { nowhere(); return 0; }")


@pytest.mark.parametrize("name", machine_names())
def test_a_missing_tool_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every missing tool is named, with its package and the command that installs it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    record = load_machine(name)
    wanted = {**record.packages, **record.specs}
    assert {item.tool: item.package for item in available(name)} == wanted
    elf = tmp_path / "a.elf"
    for call in (
        lambda: build(name, {}, tmp_path),
        lambda: run(name, elf),
        lambda: sizes(name, elf),
        lambda: object_symbols(name, elf),
    ):
        with pytest.raises(ToolMissing) as caught:
            call()
        for tool, package in wanted.items():
            assert f"{tool} (Debian package {package})" in caught.value.what
        packages = " ".join(sorted(set(wanted.values())))
        assert caught.value.help == f"apt-get install --no-install-recommends {packages}"
        assert caught.value.exit_status == 7


def test_a_compiler_without_its_library_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_tool: Callable[..., str]
) -> None:
    """Where gcc is there and the C library is not, the library's package is what is missing."""
    for tool in load_machine("rv32imc").packages:
        (tmp_path / tool).symlink_to(needs_tool(tool))
    compiler = tmp_path / "riscv64-unknown-elf-gcc"
    compiler.unlink()
    compiler.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1].split('=')[1])\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (missing,) = available("rv32imc")
    assert (missing.tool, missing.package) == ("picolibc.specs", "picolibc-riscv64-unknown-elf")


def test_what_is_no_program_is_refused(machine: str, tmp_path: Path) -> None:
    """A missing file, another file and a program for another machine are refused before QEMU."""
    path = tmp_path / "a.elf"
    with pytest.raises(UsageError, match="cannot read"):
        run(machine, path)
    for content in (b"#!/bin/sh\n" * 3, b"\x7fELF"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="no ELF file"):
            run(machine, path)
    path.write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\0")
    with pytest.raises(UsageError, match=f"ELF machine 62, {machine} is"):
        run(machine, path)


def test_names_are_checked(machine: str, tmp_path: Path) -> None:
    """A source outside the folder, of an unknown kind or named as ours is refused."""
    for name in ("../main.c", "/main.c", "main.cpp", "-o.c", "hal.h", ""):
        with pytest.raises(UsageError, match="cannot be named"):
            build(machine, {name: ""}, tmp_path)


def test_an_unknown_machine_is_told() -> None:
    """The nearest known machine is named."""
    with pytest.raises(UnknownName, match="nearest: esp32"):
        available("esp-32")


def test_errors_have_codes() -> None:
    """A failed program is an error that the command line can print."""
    assert issubclass(ProgramFailed, ButterflycError)
    assert ProgramFailed("x").as_dict()["code"] == "BF994"
