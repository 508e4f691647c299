"""What an ELF object asks of others: read from its symbol table, with nothing but ``struct``."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ..errors import Damaged

SHT_SYMTAB = 2
SHN_UNDEF = 0


def undefined_symbols(content: bytes) -> set[str]:
    """The names that an ELF object (32 or 64 bit, either byte order) leaves to be found."""
    if content[:4] != b"\x7fELF":
        raise Damaged(f"not an ELF object: it starts with {content[:4]!r}")
    try:
        return set(_undefined(content))
    except (struct.error, ValueError, IndexError) as error:
        raise Damaged(f"an ELF object of {len(content)} bytes is cut short: {error}") from error


def _undefined(content: bytes) -> Iterator[str]:
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
                name, _, _, where = struct.unpack_from(order + "IBBH", content, at)
            else:
                name, _, _, _, _, where = struct.unpack_from(order + "IIIBBH", content, at)
            if where == SHN_UNDEF and name:
                first = strings + name
                yield content[first : content.index(b"\0", first)].decode()
