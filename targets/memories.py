"""Memories of a board that differ from its file: ``--flash 8M``, ``--psram 8M``, and so on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs

from ..compiler.errors import UsageError, unknown_name
from .registry import Core, Memory

PARTITION = "partition"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}
OF_SYSTEMS = {**UNITS, "G": 1 << 30}


def bytes_of(size: str | int, name: str = "size", units: Mapping[str, int] = UNITS) -> int:
    """The bytes that ``200K`` or ``8M`` stands for, or a plain number; K is 1,024.

    Raises UsageError, with ``name`` as what the size was given for.
    """
    pattern = rf"(\d+)([{''.join(units)}]?)(i?B)?"
    match = re.fullmatch(pattern, str(size).strip(), re.IGNORECASE | re.ASCII)
    if isinstance(size, bool) or match is None or (match[3] and not match[2]):
        raise UsageError(
            f"'{size}' is no size for {name}",
            help=f"bytes, K (1,024) or M (1,048,576), as in `--{name} 200K` or `--{name} 8M`",
        )
    if (count := int(match[1]) * units[match[2].upper()]) == 0:
        raise UsageError(f"{name} of no bytes", help=f"leave --{name} out where there is none")
    return count


def sized(core: Core, given: Mapping[str, str | int], known: Sequence[str]) -> Core:
    """``core`` with the memories in ``given`` in place of its own.

    ``known`` names the memories that its family places things in. ``flash`` is all there is and
    ``partition`` the part of it for the program: what the firmware takes is kept free in either.
    ``sram`` is what the firmware leaves, ``psram`` what the module has. Raises UnknownName for a
    memory that is not known, UsageError for a size that cannot be, or PSRAM where the chip has no
    interface for it.
    """
    names = [*known, PARTITION] if "flash" in known else list(known)
    if given and not known:
        raise UsageError(
            f"target {core.name} has no {next(iter(given))} to size",
            help="memory is no limit there: leave the option out",
        )
    for name in (*(memory.name for memory in core.memories if known), *given):
        if name not in names:
            raise unknown_name("memory", name, names)
    sizes = {name: bytes_of(size, name) for name, size in given.items()}
    for name in [name for name in CHANGES if name in sizes]:
        core = CHANGES[name](core, sizes[name])
    return core


def _with_flash(core: Core, size: int) -> Core:
    old = core.memory("flash")
    reserved = firmware_bytes(old) if old else 0
    if size <= reserved:
        raise UsageError(
            f"flash of {size:,} bytes: the firmware of {core.name} takes {reserved:,} bytes of it",
            help="a --target-file of your own may say otherwise",
        )
    window = old.window if old else None
    usable = min(size - reserved, window or size)
    return _put(core, Memory("flash", size, usable, window, reserved))


def _with_partition(core: Core, size: int) -> Core:
    old = core.memory("flash") or Memory("flash", size, size)
    reserved = firmware_bytes(old)
    if not reserved < size <= old.nominal:
        raise UsageError(
            f"a partition of {size:,} bytes cannot hold a program in {old.nominal:,} bytes of "
            f"flash, of which the firmware takes {reserved:,} bytes",
            help="--flash says how large the flash is",
        )
    usable = min(size - reserved, old.window or size)
    return _put(core, attrs.evolve(old, usable=usable, firmware=reserved, partition=size))


def _with_sram(core: Core, size: int) -> Core:
    old = core.memory("sram")
    return _put(core, Memory("sram", max(size, old.nominal if old else size), size))


def _with_psram(core: Core, size: int) -> Core:
    old = next((memory for memory in core.memories if memory.name == "psram"), None)
    if old is None and core.memories:
        raise UsageError(
            f"target {core.name} has no interface for PSRAM",
            help="leave --psram out, or see `butterflyc targets` for chips that have one",
        )
    window = old.window if old else None
    return _put(core, Memory("psram", size, min(size, window or size), window))


# In this order: a core that had no memories may get PSRAM, and a flash comes before its partition.
CHANGES = {
    "psram": _with_psram,
    "flash": _with_flash,
    "sram": _with_sram,
    PARTITION: _with_partition,
}


def firmware_bytes(flash: Memory) -> int:
    """Bytes of a flash, or of its partition, that are not for a model."""
    return flash.nominal - flash.usable if flash.firmware is None else flash.firmware


def _put(core: Core, memory: Memory) -> Core:
    others = [old for old in core.memories if old.name != memory.name]
    order = {"flash": 0, "sram": 1, "psram": 2}
    memories = sorted([*others, memory], key=lambda each: order[each.name])
    return attrs.evolve(core, memories=tuple(memories))
