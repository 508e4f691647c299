"""What a GPU kernel uses is read from its machine code, whatever the GPU."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from butterflyc.compiler.errors import ToolFailed, ToolMissing
from butterflyc.compiler.run import sass
from butterflyc.compiler.run.sass import Resources, cuobjdump, resources

from . import tiny

pytest.importorskip("triton")


@pytest.mark.parametrize(("capability", "opcode"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_products_use_tensor_cores(capability, opcode):
    """A product of float16 is made of the GPU's own instructions for it, and nothing is spilled."""
    found = resources(tiny.code(tiny.product(), capability).cubin)
    assert found.tensor_core == found.count(opcode) > 0
    assert found.spills == found.stack == 0
    assert 16 < found.registers <= 255
    assert found.barriers > 0


def test_turing_has_none():
    """Triton multiplies without tensor cores before Ampere."""
    found = resources(tiny.code(tiny.product("fp32", 16), 75).cubin)
    assert found.tensor_core == 0
    assert found.count("FFMA") > 0


def test_spills_are_counted():
    """A kernel that holds more than registers do has a stack, and loads and stores of it."""
    found = resources(tiny.code(tiny.spills()).cubin)
    assert found.stack > 0
    assert found.spills == found.count("LDL") + found.count("STL") > 10
    assert found.tensor_core == found.barriers == 0


def test_every_instruction_is_counted():
    """A kernel that loads and stores once has one of each, behind the predicate of its mask."""
    found = resources(tiny.code(tiny.scale_rows()).cubin)
    assert found.count("LDG") == found.count("STG") == found.count("FMUL") == 1
    assert found.count("EXIT") >= 1
    assert found.spills == found.shared == 0


def test_names_are_counted_up_to_the_first_dot():
    """HFMA2.MMA is no HMMA, and LDL.LU is an LDL."""
    found = Resources(8, 0, 0, {"HFMA2.MMA": 3, "HMMA.16816.F32": 4, "LDL.LU.64": 5, "LDG.E": 7})
    assert (found.tensor_core, found.spills, found.count("HFMA2", "LDG")) == (4, 5, 10)


def test_other_bytes_are_refused():
    """Bytes that are no machine code are an error of the tool, with what it says."""
    with pytest.raises(ToolFailed, match="cuobjdump"):
        resources(b"no machine code")


def test_machine_code_without_a_kernel_is_refused(monkeypatch):
    """Where the tool prints no kernel, that is an error, not a kernel that uses nothing."""
    monkeypatch.setattr(sass, "run_tool", lambda command, folder: "")
    with pytest.raises(ToolFailed, match="no kernel in 4 bytes"):
        resources(b"code")


def test_cuda_has_the_tool_too(tmp_path, monkeypatch):
    """Without Triton, or with one that lacks it, cuobjdump is taken from the path."""
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for package in (None, SimpleNamespace(origin=str(tmp_path / "triton" / "__init__.py"))):
        monkeypatch.setattr(sass, "find_spec", lambda name, package=package: package)
        assert cuobjdump() == tool


def test_without_the_tool_says_what_to_install(monkeypatch):
    """The error gives the command."""
    monkeypatch.setattr(sass, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolMissing, match=r'pip install "butterflyc\[gpu\]"'):
        cuobjdump()
