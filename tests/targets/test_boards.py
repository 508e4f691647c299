"""Boards have memories; a user may say what other ones there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import UnknownName, UsageError
from butterflyc.compiler.run.machine import machine_names
from butterflyc.targets.memories import bytes_of, firmware_bytes, sized
from butterflyc.targets.placement import MEMORIES
from butterflyc.targets.registry import Core, Memory, core_names, load_core

BOARDS = ("esp32", "esp32c3", "esp32c6", "esp32s3", "nrf52840")
MIB = 1 << 20


def changed(name: str, **given: str | int) -> Core:
    return sized(load_core(name), given, MEMORIES)


def memory(core: Core, name: str) -> Memory:
    found = core.memory(name)
    assert found
    return found


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_knows_its_memories_and_an_emulator(name: str) -> None:
    """It has flash and SRAM, no PSRAM unless one says so, a clock, and a machine that runs it."""
    core = load_core(name)
    assert memory(core, "flash").usable > memory(core, "sram").usable
    assert core.memory("psram") is None
    assert core.clock_hz
    assert core.runner in machine_names()


def test_generic_cores_have_no_memories() -> None:
    """A core that is on many boards knows no limit; every other microcontroller is a board."""
    cores = [load_core(name) for name in core_names()]
    found = {core.name: core for core in cores if core.family == "mcu"}
    assert {name for name, core in found.items() if core.memories} == set(BOARDS)
    assert set(found) - set(BOARDS) == {"c99", "cortex-m4", "rv32imc"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("200K", 204_800), ("8M", 8 * MIB), ("8m", 8 * MIB), (" 3MiB ", 3 * MIB), ("1KB", 1024),
     ("512", 512), (77, 77)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    """K is 1,024 and M is 1,024 K, however they are written."""
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "8G", "-1", "1.5M", "8 M", "x", "8B", True, "0", "0K", "٣"])
def test_what_is_no_size(text: str | int) -> None:
    """What is no size is refused; an example shows one, or it is said to leave out what is none."""
    with pytest.raises(UsageError) as caught:
        bytes_of(text, "flash")
    assert "`--flash 8M`" in str(caught.value.help) or "leave --flash out" in str(caught.value.help)


@given(st.sampled_from(BOARDS), st.integers(1, 64 * MIB), st.integers(1, 64 * MIB))
def test_a_partition_never_adds_flash(name: str, flash: int, partition: int) -> None:
    """What is usable keeps the firmware's bytes free, in flash, partition and window."""
    reserved = firmware_bytes(memory(load_core(name), "flash"))
    if not reserved < partition <= flash:
        with pytest.raises(UsageError, match="firmware"):
            changed(name, flash=flash, partition=partition)
        return
    alone, both = changed(name, flash=flash), changed(name, partition=partition, flash=flash)
    assert memory(alone, "flash").usable <= flash - reserved
    assert memory(both, "flash").usable <= partition - reserved
    assert memory(both, "flash").usable <= memory(alone, "flash").usable
    assert firmware_bytes(memory(both, "flash")) == reserved
    # Larger again, the partition is forgotten.
    assert sized(both, {"flash": flash}, MEMORIES) == alone


def test_memories_that_are_given() -> None:
    """PSRAM is there once it is given, as far as it can be addressed; SRAM is what is left."""
    core = changed("esp32", psram="8M", sram="200K", flash="16M")
    assert memory(core, "psram") == Memory("psram", 8 * MIB, 4 * MIB, 4 * MIB)
    assert memory(core, "sram") == Memory("sram", 327_680, 204_800)
    assert memory(core, "flash").usable == 4 * MIB
    assert memory(changed("esp32", sram="400K"), "sram").nominal == 409_600
    generic = changed("c99", flash="1M", psram="2M", sram="64K")
    assert [(m.name, m.usable) for m in generic.memories] == [
        ("flash", MIB), ("sram", 65_536), ("psram", 2 * MIB),
    ]  # fmt: skip
    assert memory(changed("c99", partition="1M"), "flash").usable == MIB


def test_memories_that_cannot_be() -> None:
    """A chip without an interface for PSRAM, a CPU, and a memory of another name are told."""
    with pytest.raises(UsageError, match="esp32c3 has no interface for PSRAM"):
        changed("esp32c3", psram="8M")
    with pytest.raises(UsageError, match="host has no sram to size"):
        sized(load_core("host"), {"sram": "8M"}, ())
    with pytest.raises(UnknownName, match="unknown memory 'ram'"):
        changed("esp32", ram="8M")
    odd = Core("odd", "mcu", "", "", "", (), "", (), "none", (Memory("ccm", 10, 10),))
    with pytest.raises(UnknownName, match="unknown memory 'ccm'"):
        sized(odd, {}, MEMORIES)
    assert sized(load_core("host"), {}, ()) == load_core("host")


PAGE = Path(__file__).parents[2] / "docs" / "microcontrollers.md"
HEAD = "| target | clock | flash | SRAM | PSRAM, on some boards |"


def table() -> str:
    """The boards of the manual, from their files: usable of nominal bytes."""
    rows = [HEAD, "|---|---|---|---|---|"]
    for name in BOARDS:
        core = load_core(name)
        sizes = {m.name: f"{m.usable:,} of {m.nominal:,}" for m in core.memories}
        clock = f"{(core.clock_hz or 0) // 1_000_000} MHz"
        rows.append(
            f"| `{name}` | {clock} | {sizes['flash']} | {sizes['sram']} | "
            f"{sizes.get('psram', 'none')} |"
        )
    return "\n".join(rows)


def test_the_manual_lists_the_boards(request: pytest.FixtureRequest) -> None:
    """The table of boards in the manual is what their files say; --update-golden rewrites it."""
    page = PAGE.read_text()
    found = re.search(rf"{re.escape(HEAD)}\n(\|.*\n)+", page)
    assert found
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page.replace(found[0], table() + "\n"))
    else:
        assert found[0] == table() + "\n"
