"""Static libraries (``.a``): objects behind one another, with an index of their symbols."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from .elf import defined_symbols

MAGIC = b"!<arch>\n"
HEADER_BYTES = 60
LONGEST_NAME = 15  # and a slash; longer ones stand in a table


def static_library(objects: Mapping[str, bytes]) -> bytes:
    """The library of these ELF objects by name, as GNU ar writes it, without date or owner."""
    table, places = b"", {}
    for name in (name for name in objects if len(name) > LONGEST_NAME):
        places[name] = f"/{len(table)}"
        table += f"{name}/\n".encode()
    symbols = [(symbol, name) for name in objects for symbol in defined_symbols(objects[name])]
    names = b"".join(symbol.encode() + b"\0" for symbol, _ in symbols)
    index_bytes = 4 + 4 * len(symbols) + len(names)

    at = len(MAGIC) + HEADER_BYTES + _even(index_bytes)
    at += HEADER_BYTES + _even(len(table)) if table else 0
    starts = {}
    for name, content in objects.items():
        starts[name] = at
        at += HEADER_BYTES + _even(len(content))
    offsets = struct.pack(f">{len(symbols) + 1}I", len(symbols), *(starts[n] for _, n in symbols))

    pieces = [MAGIC, _member("/", offsets + names)]
    if table:
        pieces.append(_member("//", table))
    pieces += [_member(places.get(name, f"{name}/"), data) for name, data in objects.items()]
    return b"".join(pieces)


def _member(name: str, content: bytes) -> bytes:
    """A header (name, date, owner, group, mode, size), the content, and a byte to make it even."""
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(content):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def _even(size: int) -> int:
    return size + size % 2
