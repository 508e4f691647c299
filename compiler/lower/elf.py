"""What an ELF object gives, and asks of others: read with nothing but ``struct``."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ..errors import Damaged

SHT_SYMTAB = 2
SHN_UNDEF = 0
STB_LOCAL = 0
# The names of what runs here, by ELF's number of the machine and the bits of a pointer.
ARCHITECTURES = {(62, 64): "x86_64", (183, 64): "aarch64", (40, 32): "arm", (3, 32): "i386"}


def architecture_of(content: bytes) -> str:
    """What machine an ELF file is for: ``aarch64``, or its number. Raises Damaged if it is none."""
    if content[:4] != b"\x7fELF" or len(content) < 20:
        raise Damaged(f"not an ELF file: it starts with {content[:4]!r}")
    bits = 64 if content[4] == 2 else 32
    (number,) = struct.unpack_from("<H" if content[5] == 1 else ">H", content, 18)
    return ARCHITECTURES.get((number, bits), f"ELF machine {number} of {bits} bits")


def undefined_symbols(content: bytes) -> set[str]:
    """The names that an ELF object (32 or 64 bit, either byte order) leaves to be found."""
    return {name for name, binding, defined in _symbols_of(content) if not defined}


def defined_symbols(content: bytes) -> list[str]:
    """The names that an ELF object gives to others, in its order."""
    return [
        name for name, binding, defined in _symbols_of(content) if defined and binding != STB_LOCAL
    ]


def _symbols_of(content: bytes) -> list[tuple[str, int, bool]]:
    """Name, binding, and whether it is defined, of every symbol that has a name."""
    if content[:4] != b"\x7fELF":
        raise Damaged(f"not an ELF object: it starts with {content[:4]!r}")
    try:
        return list(_symbols(content))
    except (struct.error, ValueError, IndexError) as error:
        raise Damaged(f"an ELF object of {len(content)} bytes is cut short: {error}") from error


def _symbols(content: bytes) -> Iterator[tuple[str, int, bool]]:
    wide = content[4] == 2
    order = "<" if content[5] == 1 else ">"
    # Header: offset of the section table, size and number of its entries.
    table = struct.unpack_from(order + ("Q" if wide else "I"), content, 40 if wide else 32)[0]
    size, count = struct.unpack_from(order + "HH", content, 58 if wide else 46)
    section = order + ("IIQQQQIIQQ" if wide else "10I")
    sections = [struct.unpack_from(section, content, table + i * size) for i in range(count)]
    for _, kind, _, _, start, length, link, _, _, entry in sections:
        if kind != SHT_SYMTAB:
            continue
        strings = sections[link][4]
        # The first symbol is the null symbol.
        for at in range(start + entry, start + length, entry):
            if wide:
                name, info, _, where = struct.unpack_from(order + "IBBH", content, at)
            else:
                name, _, _, info, _, where = struct.unpack_from(order + "IIIBBH", content, at)
            if name:
                first = strings + name
                text = content[first : content.index(b"\0", first)].decode()
                yield text, info >> 4, where != SHN_UNDEF
