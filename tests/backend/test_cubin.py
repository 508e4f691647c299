"""Kernels for GPUs are compiled without one, the same everywhere, or refused with the reason."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import (
    Damaged,
    ToolFailed,
    ToolMissing,
    UnknownName,
    Unsupported,
    UsageError,
)
from butterflyc.compiler.lower import cubin
from butterflyc.compiler.lower.cubin import (
    METADATA,
    Code,
    compile_all,
    compile_launch,
    from_files,
    parameter_bytes,
    to_files,
)
from butterflyc.compiler.run.sass import resources

from . import tiny

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def both() -> dict[str, Code]:
    """The code of two kernels, for Ampere."""
    return compile_all([tiny.scale_rows(), tiny.product()], 80, package=tiny.PACKAGE)


def test_code_says_how_it_is_launched(both):
    """Entry, warps, shared memory and parameters are those that the kernel was compiled with."""
    code = both[tiny.scale_rows().symbol]
    assert (code.entry, code.capability, code.warps, code.shared) == ("scale_rows", 80, 4, 0)
    assert code.parameters == (8, 8, 4, 4, 8, 8)
    assert code.trailing == 2
    assert code.cubin.startswith(b"\x7fELF")
    assert both[tiny.product().symbol].shared > 0


def test_the_same_code_everywhere(both, tmp_path, monkeypatch):
    """From another folder, with Triton told to interpret, debug and not optimise: equal bytes."""
    shutil.copytree(Path(tiny.__file__).parent / tiny.PACKAGE, tmp_path / "far" / tiny.PACKAGE)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "far"), *sys.path])
    for name in ("TRITON_INTERPRET", "TRITON_DEBUG", "DISABLE_PTXAS_OPT", "DISABLE_LLVM_OPT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    again = compile_all(
        [tiny.product(), tiny.scale_rows()], 80, package=tiny.PACKAGE, cache=tmp_path / "cache"
    )
    assert again == both
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "far"}


def test_code_holds_no_path(both):
    """Neither the kernel's file nor a temporary one is named in the code."""
    for code in both.values():
        for part in ("kernels.py", "tiny_gpu", gettempdir(), ".ptx"):
            assert part.encode() not in code.cubin


def test_one_code_for_launches_that_differ_in_numbers(both):
    """Launches of one symbol are compiled once, and each is announced once."""
    said: list[str] = []
    launches = [tiny.scale_rows(1000), tiny.scale_rows(1001), tiny.scale_rows(1)]
    launches[0] = replace(launches[0], grid=(8, 1, 1))
    codes = compile_all(launches, 80, said.append, package=tiny.PACKAGE)
    assert len(codes) == len(said) == 1
    assert codes == {tiny.scale_rows().symbol: both[tiny.scale_rows().symbol]}


def test_no_launches_need_no_compiler():
    """Nothing to compile gives no code."""
    assert compile_all([], 80) == {}


def test_multiples_of_16_are_loaded_as_vectors():
    """A number that is a multiple of 16 may bound whole vectors; any other bounds single values."""
    aligned, odd = (tiny.code(tiny.scale_rows(count, 512)) for count in (1024, 1023))
    assert "LDG.E.128" in resources(aligned.cubin).opcodes
    assert "LDG.E.128" not in resources(odd.cubin).opcodes


@pytest.mark.parametrize("capability", [80, 90])
def test_float32_is_multiplied_as_float32(capability):
    """A product of float32 that says nothing is made without tensor cores, of float16 with them."""
    single, half = (tiny.code(tiny.product(t, 16), capability) for t in ("fp32", "fp16"))
    assert resources(single.cubin).tensor_core == 0
    assert resources(half.cubin).tensor_core > 0


REFUSED = {
    "coarse": (
        ToolFailed,
        "input_precision must be one of",
        {"N": 32},
        {"x": "*fp32", "y": "*fp32"},
    ),
    "wrong": (ToolFailed, "range must be a power of 2", {"BLOCK": 64}, {"x": "*fp32"}),
    "described": (
        Unsupported,
        "128 bytes of global scratch",
        {"BLOCK": 64},
        {"x": "*fp16", "y": "*fp32", "rows": "i32"},
    ),
    "scale_rows": (UsageError, "takes x, y, count, factor, BLOCK", {"BLOCK": 64}, {"x": "*fp32"}),
    "absent": (UnknownName, "no kernel absent in tiny_gpu.kernels", {}, {"x": "*fp32"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_says_why(name):
    """The error names the kernel, and repeats what Triton says of it."""
    kind, words, constants, types = REFUSED[name]
    arguments = {k: (t, 64 if t == "i32" else k) for k, t in types.items()}
    with pytest.raises(kind, match=words) as caught:
        compile_launch(tiny.launch(name, constants, **arguments), 90, tiny.PACKAGE)
    assert name in str(caught.value)


def test_a_number_of_another_type_is_refused():
    """Only int32 and float32 are passed by value."""
    with pytest.raises(UsageError, match="'x' of wrong is of type i64"):
        compile_launch(tiny.launch("wrong", {}, x=("i64", 1)), 80, tiny.PACKAGE)


def test_a_crash_is_an_error():
    """Where the process that compiles is killed, the error has its status and what it printed."""
    launch = tiny.launch("any", {}, module="dies", x=("*fp32", "x"))
    with pytest.raises(ToolFailed, match=r"status -9(.|\n)*out of memory"):
        compile_launch(launch, 80, tiny.PACKAGE)


def test_without_triton_says_what_to_install(monkeypatch):
    """The error gives the command."""
    monkeypatch.setattr(cubin, "find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match=r'pip install "butterflyc\[gpu\]"'):
        compile_launch(tiny.scale_rows(), 80)


PTX = ".visible .entry k(\n .param .u64 .ptr .global .align 1 k_0,\n .param .f32 k_1{more}\n)"


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        ("", (8, 4)),
        (", .param .b64 k_2", (8, 4, 8)),
        (", .param .align 64 .b8 k_2[128]", (8, 4, 0)),
    ],
)
def test_parameters_are_read_from_ptx(more, sizes):
    """Addresses are 8 bytes, numbers as their types say, and anything else is 0."""
    assert parameter_bytes(PTX.format(more=more), "k") == sizes


@pytest.mark.parametrize("more", [", .param .u32 k_2", ", .param .align 64 .b8 k_2[128]"])
def test_unknown_parameters_are_refused(more):
    """Parameters behind the arguments that are no addresses are not launched with null."""
    launch = tiny.launch("k", {}, x=("*fp32", "x"), factor=("fp32", 1.0))
    metadata = SimpleNamespace(name="k", global_scratch_size=0, profile_scratch_size=0)
    with pytest.raises(Unsupported, match=r"only addresses may follow"):
        cubin._code(launch, 80, metadata, PTX.format(more=more), b"")


NAMES = st.from_regex(r"[a-z_]+_[0-9a-f]{8}", fullmatch=True)
SIZES = st.integers(0, 2**31)
CODES = st.builds(
    Code,
    symbol=NAMES,
    capability=st.sampled_from([75, 80, 90, 120]),
    entry=NAMES,
    warps=st.sampled_from([1, 4, 8]),
    shared=SIZES,
    parameters=st.lists(st.sampled_from([4, 8]), max_size=20).map(tuple),
    trailing=st.integers(0, 2),
    cubin=st.binary(max_size=40),
)


@given(st.lists(CODES, max_size=5, unique_by=lambda code: code.path))
def test_files_give_back_what_was_written(codes):
    """Codes of several GPUs are read as they were written; their order changes no byte."""
    files = to_files(codes)
    assert sorted(from_files(files), key=lambda c: c.path) == sorted(codes, key=lambda c: c.path)
    assert to_files(reversed(codes)) == files


def changed(change) -> dict[str, bytes]:
    files = to_files([Code("k_01234567", 80, "k", 4, 0, (8, 8), 2, b"code")])
    data = json.loads(files[METADATA])
    change(data, data["codes"][0])
    return {**files, METADATA: json.dumps(data).encode()}


DAMAGES = {
    "another schema": (lambda data, code: data.update(schema=2), "schema 2"),
    "an unknown key": (lambda data, code: code.update(color=1), "color"),
    "an unknown part": (lambda data, code: data.update(color=1), "color"),
    "a key less": (lambda data, code: code.pop("warps"), "warps"),
    "a wrong type": (lambda data, code: code.update(warps="4"), "warps is '4'"),
    "a wrong size": (lambda data, code: code.update(parameters=[8, "8"]), "not numbers"),
    "no such file": (lambda data, code: code.update(capability=90), "sm90/k_01234567.cubin"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named(name):
    """What does not describe the code beside it is refused with the part that is wrong."""
    change, words = DAMAGES[name]
    with pytest.raises(Damaged, match=words):
        from_files(changed(change))


OTHER_TEXTS = [b"", b"[]", b"\xff", b'{"schema": 1}', b'{"schema": 1, "codes": {"a": 1}}']


@pytest.mark.parametrize("text", OTHER_TEXTS)
def test_metadata_that_is_none_is_refused(text):
    """Files without metadata, or with other text there, are damaged."""
    with pytest.raises(Damaged, match=METADATA):
        from_files({METADATA: text} if text else {})
