"""Cores and boards are TOML files; a wrong one is refused with every fault at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from butterflyc.compiler.errors import UnknownName, UsageError
from butterflyc.targets import registry

MINE = """\
name = "my-board"
family = "mcu"
description = "a board of mine"
triple = "riscv32-unknown-elf"
cpu = "generic-rv32"
features = ["m", "c"]
lanes = "scalar"
toolchain = ["riscv32-esp-elf-gcc"]
runner = "qemu-system-riscv32"
clock_hz = 160_000_000
memories = [{ name = "sram", nominal = 409_600, usable = 327_680 }]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def test_every_shipped_core_loads() -> None:
    """Each file in cores/ is a core of the file's name."""
    assert {"host", "x86-64-v3"} <= set(registry.core_names())
    for name in registry.core_names():
        assert registry.load_core(name).name == name
        assert registry.describe(name)["name"] == name


def test_own_file_adds_a_target(mine: Path) -> None:
    """A user's file is known by its own name, beside those that we ship."""
    core = registry.load_core("my-board", mine)
    assert core.memories == (registry.Memory("sram", 409_600, 327_680),)
    assert registry.load_core("host", mine).name == "host"
    assert registry.describe("my-board", mine)["memories"][0]["usable"] == 327_680


def test_unknown_name_lists_the_nearest(mine: Path) -> None:
    """A misspelt target is an error that gives the nearest names, a user's own included."""
    with pytest.raises(UnknownName, match="unknown target 'x86-64v3'") as caught:
        registry.load_core("x86-64v3")
    assert str(caught.value.help).startswith("nearest: x86-64-v3")
    with pytest.raises(UnknownName) as caught:
        registry.load_core("my-bord", mine)
    assert "nearest: my-board" in str(caught.value.help)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('family = "mcu"\n', "", "missing key at family"),
        ('family = "mcu"', "family = 3", "expected str, found 3 at family"),
        ('"m", "c"', '"m", 4', "expected str, found 4 at features[1]"),
        ("160_000_000", '"160 MHz"', "expected int, found '160 MHz' at clock_hz"),
        ("160_000_000", "true", "expected int, found True at clock_hz"),
        ("nominal = 409_600", "nominal = 1.5", "expected int, found 1.5 at memories[0].nominal"),
        ("nominal = 409_600", "nominal = 0", "must be > 0: 0 at memories[0]"),
        ("usable = 327_680", "usable = 500_000", "usable 500,000 bytes of nominal 409,600"),
        ("usable =", "useable =", "unknown key useable at memories[0]"),
        ("clock_hz", "clock", "unknown key clock"),
        ('"my-board"', '"My Board"', "must match regex"),
    ],
)
def test_wrong_file_is_refused(mine: Path, old: str, new: str, fault: str) -> None:
    """A wrong, missing or unknown key is named with its place."""
    assert old in MINE
    mine.write_text(MINE.replace(old, new))
    with pytest.raises(UsageError) as caught:
        registry.load_core("my-board", mine)
    assert fault in caught.value.what
    assert str(mine) in caught.value.what
    assert "keys: name, family" in str(caught.value.help)


def test_all_faults_at_once(mine: Path) -> None:
    """Two faults are both told."""
    mine.write_text(MINE.replace('family = "mcu"', "family = 3").replace("clock_hz", "clock"))
    with pytest.raises(UsageError, match=r"found 3 at family.*unknown key clock"):
        registry.load_core("my-board", mine)


def test_what_is_no_toml_is_refused(mine: Path) -> None:
    """A file that is no TOML, no text, or not there, is refused with the reason."""
    mine.write_text("name = ")
    with pytest.raises(UsageError, match="is no TOML file"):
        registry.load_core("host", mine)
    mine.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no TOML file"):
        registry.load_core("host", mine)
    with pytest.raises(UsageError, match="No such file"):
        registry.load_core("host", mine.with_name("none.toml"))


def test_file_in_cores_bears_its_own_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that we ship under another file name is refused."""
    monkeypatch.setattr(registry, "CORES", mine.parent)
    with pytest.raises(UsageError, match="which is not its own name"):
        registry.load_core("mine")
