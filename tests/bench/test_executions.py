"""Programs in QEMU's user mode are counted exactly, by address and by function."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import ToolFailed, ToolMissing
from butterflyc.compiler.run import executions
from butterflyc.compiler.run.executions import (
    Executions,
    count_executions,
    emulator_version,
    static_linker,
)

from .assembly import EXIT, program

# Each turn of the loop is 3 instructions; 2 more stand around it.
LOOPS = {
    "aarch64": "mov x1, #{times}\n0: nop\n subs x1, x1, #1\n b.ne 0b\n ret",
    "arm": "ldr r1, ={times}\n0: nop\n subs r1, r1, #1\n bne 0b\n bx lr",
}
CALLS = {"aarch64": "bl loop\n bl loop\n", "arm": "bl loop\n bl loop\n"}
EXITS = {"aarch64": 3, "arm": 3}


def counted(folder, architecture, times, flags=()):
    code = {
        "_start": CALLS[architecture] + EXIT[architecture],
        "loop": LOOPS[architecture].format(times=times),
    }
    return count_executions(architecture, program(folder, architecture, code, flags))[1]


@pytest.mark.parametrize("architecture", ["aarch64", "arm"])
@given(times=st.integers(1, 4000))
@settings(max_examples=5)
def test_counts_what_a_loop_is_known_to_take(arm, tmp_path_factory, architecture, times):
    """A loop called twice is counted as its instructions say, and so is what calls it."""
    found = counted(tmp_path_factory.mktemp("loop"), architecture, times)
    first, _ = found.functions["loop"]
    assert found.of("loop") == 2 * (2 + 3 * times)
    assert found.of("_start") == 2 + EXITS[architecture]
    assert found.total == found.of("loop") + found.of("_start")
    each = [found.by_address[first + 4 * i] for i in range(5)]
    assert each == [2, *[2 * times] * 3, 2]
    assert found.executed() == ["_start", "loop"]


def test_counts_thumb(arm, tmp_path):
    """Instructions of two bytes are counted at their own addresses, in the function they are of."""
    # The assembler must know that it is Thumb before it comes to the label.
    change = " .syntax unified\n .thumb\n .thumb_func\n"
    code = {
        "_start": ".arm\n blx loop\n" + EXIT["arm"] + change,
        "loop": " movs r1, #9\n0: nop\n subs r1, #1\n bne 0b\n bx lr\n",
    }
    path = program(tmp_path, "arm", code, ["-march=armv7-a"])
    _, found = count_executions("arm", path)
    first, size = found.functions["loop"]
    assert (first % 2, size, found.of("loop")) == (0, 10, 2 + 3 * 9)
    assert found.by_address[first + 2] == 9


def test_counts_the_same_in_every_run(arm, tmp_path):
    """Two runs of one program give the same counts, address by address."""
    assert counted(tmp_path, "aarch64", 1000) == counted(tmp_path, "aarch64", 1000)


def test_a_function_of_two_names_is_one(arm, tmp_path):
    """An alias of a function adds nothing to what was executed."""
    alias = EXIT["aarch64"] + " .global again\n .set again, loop\n .type again, %function\n"
    code = {"_start": "bl loop\n" + alias, "loop": "nop\n ret\n"}
    _, found = count_executions("aarch64", program(tmp_path, "aarch64", code))
    assert len(found.executed()) == 2
    assert found.total == sum(map(found.of, found.executed())) == 6


def test_less_leaves_what_was_executed_more_often():
    """The difference of two runs has no address that both executed equally often."""
    spans = {"a": (0, 8), "b": (8, 8)}
    busy, idle = Executions({0: 1, 4: 5, 8: 2}, spans), Executions({0: 1, 8: 1}, spans)
    assert busy.less(idle).by_address == {4: 5, 8: 1}
    assert busy.less(idle).executed() == ["a", "b"]


def test_what_ends_with_an_error_is_told(arm, tmp_path):
    """A program that fails is no measurement: the status is in the error."""
    path = program(tmp_path, "aarch64", {"_start": "mov x8, #93\n mov x0, #7\n svc #0\n"})
    with pytest.raises(ToolFailed, match="program in qemu-aarch64 ended with status 7"):
        count_executions("aarch64", path)


def test_a_program_without_symbols_is_refused(arm, tmp_path):
    """What was stripped cannot be told apart by functions, which the error says."""
    path = program(tmp_path, "aarch64", {"_start": EXIT["aarch64"]}, ["-s"])
    with pytest.raises(ToolFailed, match="program has no symbols of functions"):
        count_executions("aarch64", path)


def test_the_emulator_says_its_version(arm):
    """The version starts with a number, for both architectures."""
    assert all(emulator_version(a)[0].isdigit() for a in ("aarch64", "arm"))


def test_a_missing_emulator_names_its_package(arm, tmp_path, monkeypatch):
    """Without QEMU the error says what to install."""
    path = program(tmp_path, "aarch64", {"_start": EXIT["aarch64"]})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissing, match="qemu-user"):
        count_executions("aarch64", path)


def test_a_missing_compiler_names_its_packages(monkeypatch):
    """Without a cross compiler Zig's is taken, and without both the error says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(executions, "find_spec", lambda name: name)
    zig = "-m ziglang cc -target arm-linux-musleabihf -static"
    assert static_linker("arm")[1:] == zig.split()
    monkeypatch.setattr(executions, "find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"):
        static_linker("aarch64")
