"""Packages on each machine in QEMU: the ESP-IDF project, two models at once, weights elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from butterflyc.compiler.run.bare_metal import available, build, object_symbols, run

from .packages import STAND_INS, STRICT, c_array, codes_and_outputs, compiled, packed_sources
from .test_mcu import ALLOWED, MACHINES
from .test_package import PASSED

TWO_MAIN = """\
#include "hal.h"
#include "first.h"
#include "second.h"
#include "first_kernels.h"
#include "second_kernels.h"
#include "first_selftest.h"
#include "second_selftest.h"

{inputs}
#define LARGER (FIRST_ARENA_BYTES > SECOND_ARENA_BYTES ? FIRST_ARENA_BYTES : SECOND_ARENA_BYTES)
static unsigned char arena[LARGER] __attribute__((aligned(64)));

static void show(const int16_t *outputs)
{{
    for (int k = 0; k < 3; ++k) {{
        hal_print_number(outputs[k]);
        hal_print(k < 2 ? " " : "\\n");
    }}
}}

int main(void)
{{
    int16_t outputs[3];
    for (int i = 0; i < 3; ++i) {{
        if (first_predict(first_inputs[i], outputs, arena) != 0) return 1;
        show(outputs);
        if (second_predict(second_inputs[i], outputs, arena) != 0) return 2;
        show(outputs);
    }}
    if (first_selftest(arena) != 0) return 3;
    if (second_selftest(arena) != 0) return 4;
    return 0;
}}
"""


@pytest.fixture(autouse=True, params=MACHINES)
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    """Each machine whose tools are there."""
    name = str(request.param)
    for missing in available(name):
        needs_tool(missing.tool)
    return name


def esp_idf_project(machine: str, folder: Path, flags: list[str]) -> str:
    """What the project for ESP-IDF prints on ``machine``."""
    program = compiled(machine)
    files = {name: (STAND_INS / "bare" / name).read_text() for name in ("bare.c", "stdio.h")}
    example = program.artefact.section("kernels/examples/esp-idf/main/main.c").decode()
    files |= {**packed_sources(program), "main.c": example}
    elf = build(machine, files, folder, flags=["-I.", f"-I{STAND_INS}", *STRICT, *flags])
    return run(machine, elf).checked().text


def test_the_esp_idf_project_passes(machine: str, tmp_path: Path) -> None:
    """It prints PASS and a time; the self-test asks for the model and nothing else."""
    assert PASSED.fullmatch(esp_idf_project(machine, tmp_path, []))
    symbols = object_symbols(machine, tmp_path / "vit_selftest.c.o")
    asked = {symbol.name for symbol in symbols if symbol.kind == "U"}
    assert asked - {"vit_run"} <= ALLOWED
    assert [symbol.name for symbol in symbols if symbol.kind in "TDBRC"] == ["vit_selftest"]


def test_weights_lie_where_the_macro_says(machine: str, tmp_path: Path) -> None:
    """Constants, unless VIT_WEIGHTS_SECTION names a section that is copied to RAM."""
    kinds = []
    for flags in ([], ['-DVIT_WEIGHTS_SECTION=__attribute__((section(".data.vit")))']):
        folder = tmp_path / str(len(flags))
        assert PASSED.fullmatch(esp_idf_project(machine, folder, flags))
        (elf,) = folder.glob("*.elf")
        kinds += [s.kind for s in object_symbols(machine, elf) if s.name == "vit_weights"]
    # Where constants lie in one section with code, they are of its kind.
    assert kinds[0] in "RT"
    assert kinds[1] == "D"


def test_two_models_in_one_program(machine: str, tmp_path: Path) -> None:
    """Each has the bits of the interpreter, one arena serves both, and no name is in both."""
    models = {"first": compiled(machine, "first", 2), "second": compiled(machine, "second", 3)}
    files: dict[str, str] = {}
    arrays, wanted = "", []
    for name, program in models.items():
        files |= packed_sources(program)
        codes, outputs = codes_and_outputs(program)
        arrays += c_array("int8_t", f"{name}_inputs", codes)
        wanted.append(outputs.reshape(3, 3))
    main = TWO_MAIN.format(inputs=arrays)
    elf = build(machine, {**files, "main.c": main}, tmp_path, flags=STRICT)
    lines = run(machine, elf).checked().text.splitlines()
    got = np.array([line.split() for line in lines], dtype=np.int64)
    np.testing.assert_array_equal(got, np.stack(wanted, 1).reshape(6, 3))
    defined = [
        {
            symbol.name
            for file in packed_sources(program)
            if file.endswith(".c")
            for symbol in object_symbols(machine, tmp_path / f"{file}.o")
            if symbol.kind.isupper() and symbol.kind != "U"
        }
        for program in models.values()
    ]
    assert not defined[0] & defined[1]
    assert all(name.startswith("first_") for name in defined[0])
    assert {"second_run", "second_predict", "second_selftest", "second_weights"} < defined[1]
