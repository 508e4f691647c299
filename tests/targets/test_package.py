"""Packages for ESP-IDF, Arduino and PlatformIO: built and run as each of them would."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from butterflyc.cli.compile import write
from butterflyc.compiler.artefact import Artefact
from butterflyc.compiler.codes import decode, encode
from butterflyc.compiler.errors import CannotWrite, UsageError
from butterflyc.compiler.ir import Graph, Type, input_node
from butterflyc.program import Program
from butterflyc.targets import mcu
from butterflyc.targets.package_selftest import MAX_BYTES, MAX_SAMPLES, chosen
from butterflyc.targets.registry import load_core

from .packages import (
    IMAGES,
    STAND_INS,
    STRICT,
    codes_and_outputs,
    compiled,
    run_here,
    write_package,
)

SELFTEST_MAIN = """\
#include <stdio.h>
#include "vit.h"
#include "vit_selftest.h"
static unsigned char arena[VIT_ARENA_BYTES] __attribute__((aligned(64)));
int main(void)
{
    printf("%d %d %d", vit_selftest(arena), vit_selftest(0), vit_selftest(arena + 1));
    return 0;
}
"""
SOURCES = ["src/vit.c", "src/vit_kernels.c", "src/vit_weights.c"]
PASSED = re.compile(r"vit: self-test PASS, \d+\.\d{3} ms per inference\n")


@pytest.fixture(autouse=True)
def compilers(needs_tool: Callable[..., str]) -> None:
    """Programs for this machine can be built."""
    needs_tool("gcc")
    needs_tool("g++")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The files of a small model named vit."""
    return write_package(compiled("c99"), tmp_path)


def test_the_self_test_names_the_sample_that_is_wrong(package: Path) -> None:
    """It returns 0, the number of the first wrong sample, or what the model returned."""
    (package / "main.c").write_text(SELFTEST_MAIN)
    files = [*SOURCES, "src/vit_selftest.c", "main.c"]
    assert run_here(package, files) == (0, "0 -1 -2")
    source = package / "src/vit_selftest.c"
    text = source.read_text()
    head, tables = text.split("output0[4][3] = {\n")
    rows = re.findall(r"        (-?\d+), -?\d+, -?\d+,\n", tables)
    assert len(rows) == MAX_SAMPLES
    for sample, first in enumerate(rows, 1):
        wrong = tables.replace(f"        {first},", f"        {int(first) ^ 1},", 1)
        source.write_text(f"{head}output0[4][3] = {{\n{wrong}")
        assert run_here(package, files) == (0, f"{sample} -1 -2")


def test_a_program_that_does_not_ask_holds_no_samples(package: Path) -> None:
    """Linked with the archive of a package, it has no self-test but if it calls it."""
    subprocess.run(["gcc", "-c", *SOURCES, "src/vit_selftest.c"], cwd=package, check=True)
    objects = sorted(path.name for path in package.glob("*.o"))
    subprocess.run(["ar", "rcs", "libvit.a", *objects], cwd=package, check=True)
    (package / "asks.c").write_text(SELFTEST_MAIN)
    (package / "main.c").write_text(
        '#include "vit.h"\nint main(void) { return vit_predict(0, 0, 0) + 1; }\n'
    )
    for source, held in (("main.c", False), ("asks.c", True)):
        status, _ = run_here(package, [source, "libvit.a"])
        assert status == 0
        names = subprocess.run(["nm", "program"], cwd=package, capture_output=True, check=True)
        assert (b"vit_selftest" in names.stdout) == held
        assert b"vit_predict" in names.stdout or held


def test_the_samples_are_few_and_differ() -> None:
    """No input twice, at most four, and no more than fit, but one at the least."""
    x = input_node("x", Type("i8", (1, 8), 0.5))
    graph = Graph("m", (x,), (x,), {})
    rows = np.array([[1.0], [1.0], [2], [3], [4], [5]]) * np.ones((6, 8))
    golden = {
        f"{i:03}.{kind}.0": rows[i : i + 1].astype(np.float32)
        for i in range(6)
        for kind in ("input", "eager", "expected")
    }
    found = chosen(graph, golden)
    assert [int(inputs[0][0]) for inputs, _ in found] == [2, 4, 6, 8]
    assert all(np.array_equal(inputs[0], outputs[0]) for inputs, outputs in found)
    x = input_node("x", Type("i8", (MAX_BYTES,), 0.5))
    large = {key: np.repeat(array.reshape(-1), MAX_BYTES // 8) for key, array in golden.items()}
    assert len(chosen(Graph("m", (x,), (x,), {}), large)) == 1


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The header for floats as a library, with the model."""
    folder = write_package(compiled("c99"), tmp_path_factory.mktemp("floats"))
    (folder / "floats.c").write_text(
        '#include "vit_float.h"\n'
        "int code(float x, double scale, int limit) { return vit_code(x, scale, limit); }\n"
        "int predict(const float *x, float *y, void *a) { return vit_predict_f32(x, y, a); }\n"
        "void encode(const float *x, int8_t *y) { vit_encode_input0(x, y); }\n"
        "void decode(const int16_t *x, float *y) { vit_decode_output0(x, y); }\n"
        "int bytes(void) { return VIT_FLOAT_ARENA_BYTES; }\n"
    )
    command = ["gcc", "-std=c99", "-O2", *STRICT, "-Isrc", "-shared", "-fPIC"]
    subprocess.run([*command, "floats.c", *SOURCES, "-o", "floats.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "floats.so"))
    library.code.argtypes = [ctypes.c_float, ctypes.c_double, ctypes.c_int]
    return library


@given(
    st.floats(width=32) | st.integers(-40000, 40000).map(lambda i: float(np.float32(i + 0.5) / 8)),
    st.sampled_from([0.125, 0.25]) | st.floats(1e-6, 1e6),
    st.sampled_from(["i8", "i16"]),
)
@example(float("nan"), 0.125, "i8")
@example(float("inf"), 0.125, "i16")
@example(float("-inf"), 0.125, "i8")
@example(-0.0625, 0.125, "i8")
@example(3.4e38, 1e-6, "i16")
def test_a_float_has_the_code_that_butterflyc_gives_it(
    floats: ctypes.CDLL, number: float, scale: float, dtype: str
) -> None:
    """Every float becomes the same code in C and in Python, for every scale."""
    type = Type(dtype, (1,), scale)
    (wanted,) = encode(np.array([number], np.float32), type).tolist()
    assert floats.code(number, scale, {"i8": 127, "i16": 32767}[dtype]) == wanted


def test_floats_go_in_and_come_out_as_in_python(floats: ctypes.CDLL) -> None:
    """Arrays of all codes, a whole inference, and what is refused: all as from the interpreter."""
    program = compiled("c99")
    (taken,), (made,) = program.inputs, program.outputs
    every = np.resize(np.arange(-32767, 32768, dtype=np.int16), (21846, 3))
    for row in every[::7]:
        numbers = np.empty(3, np.float32)
        floats.decode(row.ctypes.data_as(ctypes.c_void_p), numbers.ctypes.data_as(ctypes.c_void_p))
        assert numbers.tobytes() == decode(row, made).tobytes()
    images = IMAGES[:3] * 1.5 - 0.25
    memory = np.zeros(floats.bytes() + 64, np.uint8)
    arena = memory[-memory.ctypes.data % 64 :]
    at = ctypes.c_void_p(arena.ctypes.data)
    codes, outputs = encode(images, taken), np.empty((3, 3), np.float32)
    for image, code, output in zip(images, codes, outputs, strict=True):
        found = np.empty(64, np.int8)
        given = np.ascontiguousarray(image).ctypes.data_as(ctypes.c_void_p)
        floats.encode(given, found.ctypes.data_as(ctypes.c_void_p))
        assert found.tobytes() == code.tobytes()
        assert floats.predict(given, output.ctypes.data_as(ctypes.c_void_p), at) == 0
    _, wanted = codes_and_outputs(program, images)
    assert outputs.tobytes() == decode(wanted, made).tobytes()
    odd = ctypes.c_void_p(arena.ctypes.data + 1)
    assert floats.predict(given, given, odd) == -2
    assert floats.predict(None, given, at) == -1


def hand_made() -> tuple[Graph, dict[str, np.ndarray]]:
    """Three inputs and outputs of which one is no codes, with a pair of samples."""
    a = input_node("a", Type("i8", (1, 3), 0.5))
    b = input_node("b", Type("i16", (2,), 0.25))
    c = input_node("c", Type("i64", (2,)))
    low = np.iinfo(np.int64).min
    rows = [np.float32([[1, -2, 63.5]]), np.float32([-8191.75, 4]), np.array([low, 7])]
    again = [-rows[0], -rows[1], rows[2] // 2]
    golden = {}
    for i, (x, y, z) in enumerate([rows, again]):
        inputs = {f"{i:03}.input.{j}": value for j, value in enumerate((x, y, z))}
        golden |= inputs | {f"{i:03}.expected.{j}": value for j, value in enumerate((y, z, x))}
    return Graph("m", (a, b, c), (b, c, a), {}, {"results": ("y", "z", "x")}), golden


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    """Each has its scale, its C type and its functions; what is no codes goes as it is."""
    graph, golden = hand_made()
    files = mcu.emit(graph, load_core("c99"), "many", golden=golden)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "main.c").write_text(
        '#include "many_float.h"\n#include "many_selftest.h"\n'
        "static unsigned char arena[64] __attribute__((aligned(64)));\n"
        "int main(void)\n{\n"
        "    const float x[3] = {0.25f, 0.75f, -99.0f};\n"
        "    int8_t codes[3];\n    int16_t y[2] = {3, -1};\n    float numbers[2];\n"
        "    many_encode_input0(x, codes);\n    many_decode_output0(y, numbers);\n"
        "    if (codes[0] != 0 || codes[1] != 2 || codes[2] != -127) return 1;\n"
        "    if (numbers[0] != 0.75f || numbers[1] != -0.25f) return 2;\n"
        "    if (MANY_INPUT1_SCALE != 0.25 || MANY_OUTPUT2_SCALE != MANY_INPUT_SCALE) return 3;\n"
        "    return many_selftest(arena);\n}\n"
    )
    sources = [path for path in files if re.fullmatch(r"src/.*\.c", path)]
    assert run_here(tmp_path, ["main.c", *sources]) == (0, "")
    assert b"predict_f32" not in files["src/many_float.h"]
    assert b"INPUT2_SCALE" not in files["src/many.h"]
    readme = files["README.md"].decode()
    assert "| input 0: `a` | 1 x 3 | `int8_t` | `MANY_INPUT0_SCALE` |" in readme
    assert "| output 1: `z` | 2 | `int64_t` |  |" in readme
    builds(tmp_path, readme)


def test_a_model_without_codes_has_no_header_for_floats() -> None:
    """Whole numbers in and out: nothing is said of floats."""
    x = input_node("x", Type("i32", (2,)))
    golden = {"000.input.0": np.int32([1, -(2**31)]), "000.expected.0": np.int32([1, -(2**31)])}
    files = mcu.emit(Graph("m", (x,), (x,), {}), load_core("c99"), "whole", golden=golden)
    assert "src/whole_float.h" not in files
    assert b"float" not in b"".join(text for path, text in files.items() if path[:4] == "src/")
    assert "## Floats" not in files["README.md"].decode()


def builds(package: Path, readme: str) -> None:
    """The C of a README is C."""
    (block,) = re.findall(r"^```c\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (package / "readme.c").write_text(block)
    command = ["gcc", "-std=c99", *STRICT, "-Isrc", "-c", "readme.c"]
    subprocess.run(command, cwd=package, check=True)


def test_all_c_is_strict(package: Path, needs_tool: Callable[..., str]) -> None:
    """C99 compilers have nothing to say of the sources, nor C++ ones of the headers."""
    builds(package, (package / "README.md").read_text())
    strict = [*STRICT, "-Isrc", f"-I{STAND_INS}", "-fsyntax-only"]
    sources = [*SOURCES, "src/vit_selftest.c", "examples/esp-idf/main/main.c"]
    headers = [path.name for path in (package / "src").glob("*.h")]
    assert sorted(headers) == ["vit.h", "vit_float.h", "vit_kernels.h", "vit_selftest.h"]
    (package / "all.c").write_text("".join(f'#include "{name}"\n' for name in headers * 2))
    (package / "all.cpp").write_text((package / "all.c").read_text())
    for compiler in ("gcc", needs_tool("clang-22")):
        command = [compiler, "-std=c99", *strict, *sources, "all.c"]
        subprocess.run(command, cwd=package, check=True)
    subprocess.run(["g++", "-std=c++11", *strict, "all.cpp"], cwd=package, check=True)


def test_the_arduino_sketch_passes(package: Path) -> None:
    """It builds without a warning as C++, and prints what it found."""
    flags = [*STRICT, "-Isrc", f"-I{STAND_INS}"]
    subprocess.run(["gcc", "-c", *SOURCES, "src/vit_selftest.c", *flags], cwd=package, check=True)
    (package / "run.cpp").write_text(
        "#include <Arduino.h>\nSerialLine Serial;\nint main() { setup(); loop(); }\n"
    )
    sketch = ["-include", "Arduino.h", "-x", "c++", "examples/vit_selftest/vit_selftest.ino"]
    objects = [path.name for path in package.glob("*.o")]
    command = ["g++", "-std=c++11", *flags, *objects, "run.cpp", *sketch, "-o", "sketch"]
    subprocess.run(command, cwd=package, check=True)
    done = subprocess.run(["./sketch"], cwd=package, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"vit: self-test PASS, \d+ ms per inference\n", done.stdout)


def test_the_esp_idf_project_builds_with_cmake(
    package: Path, needs_tool: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """CMake finds the component from the example; -O2 comes last; the project's program passes."""
    cmake, build = needs_tool("cmake"), tmp_path_factory.mktemp("build")
    rule = re.search(
        r"^    (target_compile_definitions.*?\)\"\)\n)",
        (package / "README.md").read_text(),
        re.M | re.S,
    )
    assert rule is not None
    with (package / "CMakeLists.txt").open("a") as file:
        file.write(rule[1])
    environment = {"IDF_PATH": str(STAND_INS), "PATH": str(Path(cmake).parent) + ":/usr/bin:/bin"}
    for command in (["-S", "examples/esp-idf", "-B", str(build)], ["--build", str(build)]):
        subprocess.run([cmake, *command], cwd=package, env=environment, check=True)
    rules = json.loads((build / "compile_commands.json").read_text())
    flags = {Path(rule["file"]).name: rule["command"].split() for rule in rules}
    assert set(flags) >= {"vit.c", "vit_kernels.c", "vit_selftest.c", "vit_weights.c", "main.c"}
    for file, words in flags.items():
        levels = [word for word in words if re.fullmatch("-O.", word)]
        assert levels == (["-Og", "-O2"] if file.startswith("vit") else ["-Og"]), file
    done = subprocess.run([str(build / "vit_selftest")], capture_output=True, text=True, check=True)
    assert PASSED.fullmatch(done.stdout)
    sections = subprocess.run(
        ["objdump", "-h", str(build / "vit_selftest")], capture_output=True, text=True, check=True
    )
    assert ".dram1.vit" in sections.stdout


@pytest.mark.parametrize(("target", "chip"), [("c99", None), ("esp32", "esp32")])
def test_the_manifests_name_what_is_there(target: str, chip: str | None, tmp_path: Path) -> None:
    """Name, version and headers agree in all three; a chip of ESP-IDF is its target."""
    package = write_package(compiled(target), tmp_path)
    lines = (package / "library.properties").read_text().splitlines()
    arduino = dict(line.split("=", 1) for line in lines)
    platformio = json.loads((package / "library.json").read_text())
    idf = (package / "idf_component.yml").read_text()
    assert arduino["name"] == platformio["name"] == "vit"
    assert f'version: "{arduino["version"]}"' in idf
    assert arduino["version"] == platformio["version"]
    assert arduino["includes"].split(",") == platformio["headers"]
    assert arduino["dot_a_linkage"] == "true"
    for header in platformio["headers"]:
        assert (package / platformio["build"]["srcDir"] / header).is_file()
    assert (f"targets:\n  - {chip}\n" in idf) == (chip is not None)
    assert ("\ntargets:" in idf) == (chip is not None)
    assert f"set-target {chip or 'CHIP'} &&" in (package / "README.md").read_text()
    left = [path for path in package.rglob("*") if path.is_file() and b"@" in path.read_bytes()]
    assert left == []


def test_a_folder_is_written_whole_and_overwrites_nothing(tmp_path: Path) -> None:
    """Files lie in their sub-folders; those of others stay, unless they are to be overwritten."""
    program, folder = compiled("c99"), tmp_path / "out"
    write(program, folder / "vit.bfly", folder=True, force=False)
    assert (folder / "examples/esp-idf/main/main.c").is_file()
    (folder / "vit.bfly").unlink()
    (folder / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"CMakeLists.txt and \d+ more files would be") as caught:
        write(program, folder / "vit.bfly", folder=True, force=False)
    assert "--force" in str(caught.value.help)
    assert (folder / "README.md").read_text() == "mine"
    assert not (folder / "vit.bfly").exists()
    write(program, folder / "vit.bfly", folder=True, force=True)
    assert (folder / "README.md").read_text() != "mine"


def test_no_file_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    """A section whose name leads out of it is refused, and nothing of it is written."""
    whole = compiled("c99").artefact
    bad = Artefact(whole.manifest, {**whole.sections, "kernels/../../bad.c": b"int x;"})
    with pytest.raises(CannotWrite, match="cannot be a section's name"):
        write(Program(bad), tmp_path / "out" / "vit.bfly", folder=True, force=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
