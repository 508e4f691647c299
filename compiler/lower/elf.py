"""What an ELF file defines and asks of others: its symbol table, with nothing but ``struct``."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import Damaged

SHT_SYMTAB = 2
SHN_UNDEF = 0
STT_FUNC = 2
EM_ARM = 40


@dataclass(frozen=True)
class Symbol:
    """An entry of a symbol table: ``section`` is 0 where it is to be found elsewhere."""

    name: str
    kind: int
    section: int
    value: int
    size: int


def undefined_symbols(content: bytes) -> set[str]:
    """The names that an ELF object (32 or 64 bit, either byte order) leaves to be found."""
    return {s.name for s in _symbols(content) if s.section == SHN_UNDEF and s.name}


def function_spans(content: bytes) -> dict[str, tuple[int, int]]:
    """Of each function that an ELF file defines: its address and its size in bytes."""
    # The lowest bit of an address says that a function is of Thumb instructions.
    order = "<" if content[5:6] == b"\1" else ">"
    found = _symbols(content)
    thumb = struct.unpack_from(order + "H", content, 18)[0] == EM_ARM
    return {
        s.name: (s.value & ~1 if thumb else s.value, s.size)
        for s in found
        if s.kind == STT_FUNC and s.section != SHN_UNDEF
    }


def _symbols(content: bytes) -> list[Symbol]:
    if content[:4] != b"\x7fELF":
        raise Damaged(f"not an ELF object: it starts with {content[:4]!r}")
    try:
        return list(_read_symbols(content))
    except (struct.error, ValueError, IndexError) as error:
        raise Damaged(f"an ELF object of {len(content)} bytes is cut short: {error}") from error


def _read_symbols(content: bytes) -> Iterator[Symbol]:
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
                name, info, _, where, value, bytes = struct.unpack_from(
                    order + "IBBHQQ", content, at
                )
            else:
                name, value, bytes, info, _, where = struct.unpack_from(
                    order + "IIIBBH", content, at
                )
            first = strings + name
            text = content[first : content.index(b"\0", first)].decode()
            yield Symbol(text, info & 15, where, value, bytes)
