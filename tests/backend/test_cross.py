"""Which C compiler makes code for which machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from butterflyc.compiler.errors import ToolMissing
from butterflyc.compiler.lower import cross
from butterflyc.compiler.lower.cross import architecture, compiler_for, this_architecture
from butterflyc.targets import cpu
from butterflyc.targets.registry import core_names, load_core

NAMES = ("zig", "aarch64-linux-gnu-gcc", "cc")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, all that there is, on an x86-64 without ziglang."""
    for variable in [name for name in os.environ if name == "CC" or name.startswith("CC_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cross, "this_architecture", lambda: "x86_64")
    monkeypatch.setattr(cross, "find_spec", lambda name: None)
    return tmp_path


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def test_zig_goes_before_a_cross_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is listed first is taken; zig gets its own name of the triple and a C library."""
    install(machine, "aarch64-linux-gnu-gcc", "cc")
    gcc = compiler_for("aarch64-linux-gnu", NAMES)
    assert gcc.shared == ("aarch64-linux-gnu-gcc",)
    assert gcc.static == ("aarch64-linux-gnu-gcc", "-static")
    assert not gcc.hermetic
    monkeypatch.setattr(cross, "find_spec", lambda name: object())
    zig = compiler_for("armv7a-linux-gnueabihf", NAMES)
    assert zig.shared[-2:] == ("-target", "arm-linux-gnueabihf.2.17")
    assert zig.static[-3:] == ("-target", "arm-linux-musleabihf", "-static")
    assert zig.hermetic


def test_the_own_compiler_is_for_the_own_machine(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cc` and CC make code for the machine that they run on, and are not taken for others."""
    install(machine, "cc", "mine")
    assert compiler_for("x86_64-linux-gnu", ("cc",)).shared == ("cc",)
    monkeypatch.setenv("CC", "mine -O3")
    assert compiler_for("x86_64-linux-gnu", ("cc",)).shared == ("mine", "-O3")
    with pytest.raises(ToolMissing):
        compiler_for("aarch64-linux-gnu", NAMES)
    monkeypatch.setattr(cross, "this_architecture", lambda: "aarch64")
    assert compiler_for("aarch64-linux-gnu", NAMES).shared == ("mine", "-O3")
    monkeypatch.delenv("CC")
    assert compiler_for("aarch64-linux-gnu", NAMES).shared == ("cc",)


def test_a_compiler_of_ones_own_goes_before_all(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CC_<TRIPLE> is taken, with its options, and named if it is not there."""
    install(machine, "aarch64-linux-gnu-gcc", "my-gcc")
    monkeypatch.setenv("CC_AARCH64_LINUX_GNU", "my-gcc --sysroot=/x")
    assert compiler_for("aarch64-linux-gnu", NAMES).shared == ("my-gcc", "--sysroot=/x")
    monkeypatch.setenv("CC_AARCH64_LINUX_GNU", "no-such-gcc")
    with pytest.raises(ToolMissing, match="looked for: no-such-gcc"):
        compiler_for("aarch64-linux-gnu", NAMES)


def test_what_is_missing_is_named(machine: Path) -> None:
    """It is said what was looked for, what to install, and which variable to set."""
    with pytest.raises(ToolMissing, match="no C compiler for aarch64-linux-gnu") as foreign:
        compiler_for("aarch64-linux-gnu", NAMES)
    assert "looked for: zig aarch64-linux-gnu-gcc)" in foreign.value.what
    assert "pip install 'butterflyc[cross]', or apt-get" in str(foreign.value.help)
    assert "CC_AARCH64_LINUX_GNU" in str(foreign.value.help)
    with pytest.raises(ToolMissing) as own:
        compiler_for("x86_64-linux-gnu")
    assert str(own.value.help) == "apt-get install gcc, or set CC to one"
    with pytest.raises(ToolMissing, match="looked for: cc") as none:
        compiler_for("riscv64-linux-gnu", ("cc",))
    assert str(none.value.help) == "set CC_RISCV64_LINUX_GNU to one"


@pytest.mark.parametrize(
    ("triple", "wanted"),
    [
        ("x86_64-linux-gnu", "x86_64"),
        ("aarch64-linux-gnu", "aarch64"),
        ("armv7a-linux-gnueabihf", "arm"),
        ("thumbv7-linux-gnueabihf", "arm"),
    ],
)
def test_architecture_of_a_triple(triple: str, wanted: str) -> None:
    """A triple's architecture is named as Linux names that of a machine."""
    assert architecture(triple) == wanted


def test_every_core_has_a_compiler_that_knows_it() -> None:
    """Each CPU target's triple is that of this machine, or one that zig is listed for."""
    cores = [core for core in map(load_core, core_names()) if core.family == "cpu"]
    for core in cores:
        triple = cpu.machine(core).triple
        assert architecture(triple) == this_architecture() or "zig" in core.toolchain, core.name
    assert {core.name for core in cores} >= {"aarch64+dotprod", "armv7a", "cortex-a55", "host"}
