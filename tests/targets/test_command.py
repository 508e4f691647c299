"""NAME-run: arrays in files to arrays in files, and a status for each fault."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from butterflyc.compiler.codes import decode, encode
from butterflyc.compiler.ir import Graph, Type, constant, input_node, make, result
from butterflyc.compiler.lower.command import SOURCES, model_header
from butterflyc.compiler.lower.link import c_compiler

from .commands import command_of, run

CODES = Type("i8", (3,), 0.07)
WIDE = Type("i16", (3,), 0.0123)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two inputs: x + y and the largest two of x with their places."""
    x, y = input_node("x", Type("f32", (2, 3))), input_node("y", Type("f32", (2, 1)))
    top = make("top_k", x, k=2)
    graph = Graph("two", (x, y), (make("add", x, y), result(top, 1)), {})
    return command_of(graph, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that returns its codes, of 8 and of 16 bits."""
    x, y = input_node("x", CODES), input_node("y", WIDE)
    return command_of(Graph("coded", (x, y), (x, y), {}), tmp_path_factory.mktemp("coded"))


def save(folder: Path, **values: np.ndarray) -> list[str]:
    """The files of these arrays, by their names."""
    for name, value in values.items():
        np.save(folder / f"{name}.npy", value)
    return [f"{name}.npy" for name in values]


def x_and_y(*front: int, batch: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x": random.random((*front, batch, 3), np.float32),
        "y": random.random((*front, batch, 1), np.float32),
    }


@pytest.mark.parametrize(("front", "batch"), [((), 2), ((1,), 2), ((5,), 2), ((), 2 * 7)])
def test_one_sample_several_and_a_larger_batch(
    two: Path, front: tuple[int, ...], batch: int
) -> None:
    """Each gives what NumPy does, in the shape that the inputs have in front."""
    values = x_and_y(*front, batch=batch)
    done = run(two, *save(two.parent, **values), "sum.npy", "top.npy")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    total, top = (np.load(two.parent / name) for name in ("sum.npy", "top.npy"))
    np.testing.assert_array_equal(total, values["x"] + values["y"])
    np.testing.assert_array_equal(top, np.argsort(-values["x"], axis=-1, kind="stable")[..., :2])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(two: Path, version: tuple[int, int]) -> None:
    """Files of NumPy's three versions are read alike."""
    values = x_and_y()
    for name, value in values.items():
        with (two.parent / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array(file, value, version=version)
    assert run(two, "x.npy", "y.npy", "sum.npy", "top.npy").returncode == 0
    np.testing.assert_array_equal(np.load(two.parent / "sum.npy"), values["x"] + values["y"])


reals = arrays(
    np.float32, (4, 3), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
) | arrays(np.float32, (4, 3), elements=st.integers(-600, 600).map(lambda n: np.float32(n * 0.035)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(x=reals, y=reals)
def test_floats_become_codes_as_everywhere(coded: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Floats are rounded to codes, and codes back to floats, as `codes` does it."""
    done = run(coded, *save(coded.parent, x=x, y=y), "a.npy", "b.npy")
    assert done.returncode == 0, done.stderr
    for name, value, type in (("a.npy", x, CODES), ("b.npy", y, WIDE)):
        got = np.load(coded.parent / name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, decode(encode(value, type), type))


def test_codes_stay_codes(coded: Path) -> None:
    """One input of codes is enough, and so is --codes."""
    x = np.array([-127, 0, 127], np.int8)
    reals = np.array([0.5, -0.5, 1e9], np.float32)
    for first, options in ((x, ()), (decode(x, CODES), ("--codes",))):
        files = save(coded.parent, x=first, y=reals)
        assert run(coded, *options, *files, "a.npy", "b.npy").returncode == 0
        for name, wanted in (("a.npy", x), ("b.npy", encode(reals, WIDE))):
            got = np.load(coded.parent / name)
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)


def test_help_tells_the_ports(two: Path, coded: Path) -> None:
    """--help has each port's name, dtype, shape and scale, and every status."""
    told = run(two, "--help")
    assert told.returncode == 0
    assert re.search(r"x +float32 \[2, 3\]\n +y +float32 \[2, 1\]\n", told.stdout)
    assert "13 no memory" in told.stdout
    assert "codes of 0.07" in run(coded, "--help").stdout


def test_repeat_tells_the_time(two: Path) -> None:
    """--repeat runs every sample so often, and tells the median and the least."""
    files = save(two.parent, **x_and_y(3))
    done = run(two, "--repeat", 5, *files, "sum.npy", "top.npy")
    found = re.fullmatch(r"median (\S+) us, least (\S+) us a run, of 15 runs\n", done.stdout)
    assert found
    assert float(found[2]) <= float(found[1])


def header(text: str) -> Callable[[Path], None]:
    """Writes x.npy with this header."""
    return lambda path: (
        path.write_bytes(
            b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + bytes(24)
        )
        and None
    )


def numpy(make_array: Callable[[], np.ndarray]) -> Callable[[Path], None]:
    """Writes x.npy with this array."""
    return lambda path: np.save(path, make_array())


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Writes a good x.npy with its bytes changed."""

    def write(path: Path) -> None:
        np.save(path, np.zeros((2, 3), np.float32))
        path.write_bytes(change(path.read_bytes()))

    return write


def ones(*shape: int, dtype: str = "<f4") -> np.ndarray:
    return np.ones(shape, dtype)


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
FAULTS: list[tuple[Callable[[Path], object], int, str]] = [
    (lambda path: path.unlink(missing_ok=True), 3, "cannot read x.npy: No such file"),
    (lambda path: path.unlink(missing_ok=True) or path.mkdir(), 3, "Is a directory"),
    (lambda path: path.write_bytes(b""), 4, "x.npy is no .npy file: write it with numpy.save"),
    (lambda path: path.write_bytes(b"PK\3\4 an archive"), 4, "is no .npy file"),
    (changed(lambda data: data[:6] + b"\4" + data[7:]), 4, "version 4 of the .npy format"),
    (changed(lambda data: data[:6] + b"\2\0\xff\xff\xff\x7f" + data[12:]), 4, "2147483647 bytes"),
    (header("{'descr': '<f4', 'shape': (2, 3), }"), 4, "a header that is none of NumPy's"),
    (header(GOOD.replace("False", "Maybe")), 4, "a header that is none of NumPy's"),
    (header(GOOD.replace("(2, 3)", "(2, -3)")), 4, "a header that is none of NumPy's"),
    (header(GOOD.replace("(2, 3)", "[2, 3]")), 4, "a header that is none of NumPy's"),
    (header(GOOD.replace("(2, 3)", f"({'9' * 30},)")), 4, "a header that is none of NumPy's"),
    (header(GOOD.replace("(2, 3)", f"({'1, ' * 65})")), 4, "a header that is none of NumPy's"),
    (header(GOOD.replace("<f4", "f" * 40)), 4, "a header that is none of NumPy's"),
    (changed(lambda data: data[:9]), 5, "x.npy is cut short in its header"),
    (changed(lambda data: data[:40]), 5, "x.npy is cut short in its header"),
    (changed(lambda data: data[:-1]), 5, "x.npy is cut short in its numbers"),
    (changed(lambda data: data + b"\0"), 5, "x.npy goes on behind its numbers"),
    (numpy(lambda: np.asfortranarray(ones(2, 3))), 6, "save numpy.ascontiguousarray(x)"),
    (numpy(lambda: ones(2, 3, dtype="<f8")), 7, "x.npy holds <f8, input x takes <f4 (float32)"),
    (numpy(lambda: ones(2, 3, dtype=">f4")), 7, "x.npy holds >f4"),
    (numpy(lambda: np.zeros((2, 3), "f4,i4")), 7, "x.npy holds a record"),
    (numpy(lambda: ones(2, 4)), 8, "shape [2, 4], input x takes [2, 3], or one more axis in front"),
    (numpy(lambda: ones(3, 3)), 8, "or a first axis that is a multiple of it"),
    (numpy(lambda: ones(0, 2, 3)), 8, "shape [0, 2, 3]"),
    (numpy(lambda: ones(0, 3)), 8, "shape [0, 3]"),
    (numpy(lambda: ones()), 8, "shape []"),
    (numpy(lambda: ones(1, 1, 2, 3)), 8, "shape [1, 1, 2, 3]"),
    (numpy(lambda: ones(4, 3)), 9, "x.npy holds 2 samples, y.npy 1"),
    (numpy(lambda: ones(1, 2, 3)), 9, "x.npy holds 1 samples by an axis of their own, y.npy 1"),
    (header(GOOD.replace("(2, 3)", f"({1 << 62}, 2, 3)")), 13, f"holds {1 << 62} samples"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "status", "told"), FAULTS)
def test_faults_of_files(
    two: Path, tmp_path: Path, spoil: Callable[[Path], object], status: int, told: str
) -> None:
    """Each fault of an input is one line that names the file, and a status of its own."""
    command = tmp_path / two.name
    command.symlink_to(two)
    save(tmp_path, **x_and_y())
    (tmp_path / "x.npy").unlink()
    spoil(tmp_path / "x.npy")
    done = run(command, "x.npy", "y.npy", "sum.npy", "top.npy")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("two-run: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert not (tmp_path / "sum.npy").exists()


CALLS = [
    ([], 2, "takes 2 files to read and 2 to write, got 0: see --help"),
    (["x.npy", "y.npy", "sum.npy", "top.npy", "more.npy"], 2, "got 5"),
    (["--quick", "x.npy"], 2, "unknown option --quick: see --help"),
    (["--repeat", "0", "x.npy"], 2, "--repeat takes a number of 1 to 1000000000, got 0"),
    (["--repeat", "1e3", "x.npy"], 2, "got 1e3"),
    (["--repeat"], 2, "got nothing"),
    (["--peek", "0", "4"], 2, "--peek takes AT BYTES FILE"),
    (["--peek", "0", "99999999", "f"], 2, "--peek takes a number of 0 to"),
    (["--", "--help", "y.npy", "sum.npy", "top.npy"], 3, "cannot read --help"),
    (["x.npy", "y.npy", "none/sum.npy", "top.npy"], 10, "cannot write none/sum.npy: No such file"),
    (["x.npy", "y.npy", "/dev/full", "top.npy"], 11, "cannot write /dev/full: the disk is full"),
    (["--peek", "0", "4", "/dev/full", "x.npy", "y.npy", "s", "t"], 11, "the disk is full"),
]


@pytest.mark.parametrize(("words", "status", "told"), CALLS)
def test_faults_of_calls(two: Path, words: list[str], status: int, told: str) -> None:
    """A wrong call, and what cannot be written, end with a line and a status; devices stay."""
    save(two.parent, **x_and_y())
    done = run(two, *words)
    assert done.returncode == status
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert Path("/dev/full").is_char_device()


def test_nothing_half_written_is_left(two: Path, tmp_path: Path) -> None:
    """An output that grows too large for the system is removed again."""
    values = x_and_y(400)
    save(two.parent, **values)
    out = tmp_path / "sum.npy"
    script = f'ulimit -f 4; trap "" XFSZ; "{two}" x.npy y.npy "{out}" top.npy'
    done = subprocess.run(
        ["bash", "-c", script], cwd=two.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 10
    assert f"cannot write {out}: File too large" in done.stderr
    assert not out.exists()


def test_what_depends_on_its_batch_is_not_split(tmp_path: Path) -> None:
    """Where samples depend on one another, a larger batch is refused, and several are not."""
    x = input_node("x", Type("f32", (2, 3)))
    command = command_of(Graph("whole", (x,), (make("relu", x),), {}), tmp_path, splits=False)
    save(tmp_path, x=ones(4, 3))
    done = run(command, "x.npy", "y.npy")
    assert done.returncode == 8
    assert "multiple" not in done.stderr
    save(tmp_path, x=ones(2, 2, 3))
    assert run(command, "x.npy", "y.npy").returncode == 0


def test_a_model_without_inputs_and_a_number(tmp_path: Path) -> None:
    """A constant leaves without a file to read; a number is a tensor without axes."""
    store: dict[str, np.ndarray] = {}
    whole = constant(store, np.arange(3, dtype=np.float32), "c")
    command = command_of(Graph("fixed", (), (make("relu", whole),), store), tmp_path)
    assert run(command, "y.npy").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), [0, 1, 2])
    x = input_node("x", Type("f32", ()))
    command = command_of(Graph("one", (x,), (make("neg", x),), {}), tmp_path)
    save(tmp_path, x=np.array([1, 2], np.float32))
    assert run(command, "x.npy", "y.npy").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), [-1, -2])


def test_a_model_that_fails(two: Path, tmp_path: Path) -> None:
    """What the model itself returns is told, with the sample."""
    port = {"name": "x", "dtype": "f32", "shape": [1]}
    manifest = {"name": "bad", "target": "t", "splits": True, "inputs": [port], "outputs": [port]}
    for path in SOURCES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "command-model.h").write_text(model_header(manifest))
    (tmp_path / "bad.h").write_text(
        "#define BAD_ARENA_BYTES 0\n"
        "static int bad_run(const void *const *i, void *const *o, void *a)"
        " { (void)o, (void)a; return *(const float *)i[0] > 1 ? 7 : 0; }\n"
    )
    subprocess.run([*c_compiler(), "main.c", "-o", "bad-run"], cwd=tmp_path, check=True)
    np.save(tmp_path / "x.npy", ones(3) * np.array([0, 1, 2], np.float32))
    done = run(tmp_path / "bad-run", "x.npy", "y.npy")
    assert done.returncode == 12
    assert done.stderr == "bad-run: the model returned status 7 for sample 2\n"
    assert os.listdir(tmp_path).count("y.npy") == 0
