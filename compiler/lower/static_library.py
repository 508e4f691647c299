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
    table += b"\n" * (len(table) % 2)
    names += b"\0" * (len(names) % 2)
    index_bytes = 4 + 4 * len(symbols) + len(names)

    at = len(MAGIC) + HEADER_BYTES + index_bytes
    at += HEADER_BYTES + len(table) if table else 0
    starts = {}
    for name, content in objects.items():
        starts[name] = at
        at += HEADER_BYTES + len(content) + len(content) % 2
    places_of = (starts[name] for _, name in symbols)
    index = struct.pack(f">{len(symbols) + 1}I", len(symbols), *places_of) + names

    pieces = [MAGIC, _header("/", "0", index_bytes), index]
    if table:
        pieces += [_header("//", "", len(table)), table]
    for name, content in objects.items():
        title = places.get(name, f"{name}/")
        pieces += [_header(title, "644", len(content)), content, b"\n" * (len(content) % 2)]
    return b"".join(pieces)


def _header(name: str, mode: str, size: int) -> bytes:
    """Name, date, owner, group, mode and size; what is "" for the table of names."""
    none = "0" if mode else ""
    return f"{name:<16}{none:<12}{none:<6}{none:<6}{mode:<8}{size:<10}`\n".encode()
