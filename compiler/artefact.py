"""The ``.bfly`` file: a manifest and named sections in a zip that any tool can open.

    manifest.json   first; what the file is for, and size and SHA-256 of every section
    sections        sorted by name; stored, not compressed; each starts at a multiple of 64 bytes
    directory       the zip directory, and a comment with the SHA-256 of the manifest

The manifest determines every byte outside the sections, so a reader knows what to expect where:
whichever byte is changed, it is found and its region is named. Two writes are byte-identical.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import archive
from .errors import CannotWrite, Damaged, Incompatible, UsageError
from .files import write_whole

SCHEMA = (1, 0)
MANIFEST = "manifest.json"
MAX_SECTIONS = 10_000
MAX_MANIFEST_BYTES = 64 << 20
# All offsets in the zip directory have 32 bits.
MAX_FILE_BYTES = (1 << 32) - 1

_NAME = re.compile(r"(?!\.\.?(?:/|$))[A-Za-z0-9._+-]+(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._+-]+)*")
_MARK = b"butterflyc artefact, manifest sha256 "
_COPY_AGAIN = "compile it again, or copy it again from where it was whole"


@dataclass(frozen=True)
class Artefact:
    """A compiled model. ``write`` sets ``schema`` and ``hashes`` in the manifest, no one else.

    Other keys of the manifest: ``name``, ``target``, ``mode``, ``inputs`` and ``outputs``
    (lists of name, dtype, shape), ``stages`` (names in order), ``census``, ``memory``, ``tools``,
    and ``threads`` if there are several.
    """

    manifest: Mapping[str, Any]
    sections: Mapping[str, bytes]

    def section(self, name: str) -> bytes:
        """The bytes of one section."""
        if name not in self.sections:
            raise UsageError(
                f"the artefact has no section '{name}'",
                help=f"it has: {', '.join(sorted(self.sections))}",
            )
        return self.sections[name]


def write(path: Path, artefact: Artefact) -> Artefact:
    """Write the file, whole or not at all; return the artefact with its manifest as written."""
    sections = {name: artefact.sections[name] for name in sorted(artefact.sections)}
    for name in sections:
        if not _is_safe(name):
            raise CannotWrite(f"cannot write {path}: '{name}' cannot be a section's name")
    if len(sections) > MAX_SECTIONS:
        raise CannotWrite(f"cannot write {path}: {len(sections)} sections, limit {MAX_SECTIONS}")
    manifest = {
        **artefact.manifest,
        "schema": "{}.{}".format(*SCHEMA),
        "hashes": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sections.items()
        },
    }
    text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"
    members = {MANIFEST: text, **sections}
    layout = archive.Layout.of({name: len(data) for name, data in members.items()}, _comment(text))
    if len(text) > MAX_MANIFEST_BYTES or layout.size > MAX_FILE_BYTES:
        raise CannotWrite(
            f"cannot write {path}: {layout.size:,} bytes, manifest {len(text):,} of them; "
            f"limits {MAX_FILE_BYTES:,} and {MAX_MANIFEST_BYTES:,}"
        )
    checksums = {name: zlib.crc32(data) for name, data in members.items()}
    write_whole(path, layout.pieces(checksums, members))
    return Artefact(json.loads(text), sections)


def locate(path: Path) -> Path:
    """The ``.bfly`` file that is meant: the file itself, or the only one in a folder."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.bfly"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UsageError(f"{path} must hold one .bfly file", help=f"it holds: {names}")
    return found[0]


def read(path: Path) -> Artefact:
    """The artefact at ``path`` (a file, or the folder made for a microcontroller).

    Every byte is checked. Raises ``Damaged`` naming the region, ``Incompatible`` for a newer
    schema, ``UsageError`` where there is no such file.
    """
    file_path = locate(path)
    try:
        with file_path.open("rb") as file:
            return _Reader(file_path, file).artefact()
    except OSError as error:
        raise UsageError(
            f"cannot read {file_path}: {error.strerror or error}",
            help="give the .bfly file that `butterflyc compile` wrote, or its folder",
        ) from error


def _is_safe(name: object) -> bool:
    """The name stays inside the folder that a file is unpacked to, on every system."""
    if not isinstance(name, str) or len(name) > 255 or name == MANIFEST:
        return False
    return bool(_NAME.fullmatch(name))


def _comment(manifest: bytes) -> bytes:
    return _MARK + hashlib.sha256(manifest).hexdigest().encode()


class _Reader:
    """One open file, and how far it can be trusted."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = file.seek(0, 2)

    def artefact(self) -> Artefact:
        text = self.manifest_bytes()
        manifest = self.parsed(text)
        self.check_schema(manifest)
        sizes = {MANIFEST: len(text), **self.section_sizes(manifest)}
        layout = archive.Layout.of(sizes, _comment(text))
        self.check_size(layout)

        sections, checksums = {}, {MANIFEST: zlib.crc32(text)}
        for name in list(sizes)[1:]:
            start, end = layout.starts[name], layout.starts[name] + sizes[name]
            data = self.bytes_at(start, sizes[name])
            if hashlib.sha256(data).hexdigest() != manifest["hashes"][name]["sha256"]:
                raise self.damaged(
                    f"section '{name}' was changed (its SHA-256 differs, bytes {start:,}-{end:,})"
                )
            sections[name], checksums[name] = data, zlib.crc32(data)
        for region, start, expected in layout.frame(checksums):
            if self.bytes_at(start, len(expected)) != expected:
                raise self.damaged(
                    f"{region} was changed (bytes {start:,}-{start + len(expected):,})"
                )
        return Artefact(manifest, sections)

    def manifest_bytes(self) -> bytes:
        """The first member. Its header is believed only as far as its checksum agrees."""
        head = self.bytes_at(0, archive.HEADER_BYTES)
        if not archive.looks_like_one(head):
            raise self.damaged("it is empty" if not self.size else "it is no butterflyc artefact")
        name = self.bytes_at(len(head), len(MANIFEST))
        if name != MANIFEST.encode()[: len(name)]:
            raise self.damaged("it is no butterflyc artefact, or its first bytes were changed")
        if len(name) < len(MANIFEST):
            raise self.cut_short(MANIFEST)
        size, checksum, start = archive.read_header(head)
        if size > MAX_MANIFEST_BYTES:
            raise self.damaged(f"{MANIFEST} has {size:,} bytes, limit {MAX_MANIFEST_BYTES:,}")
        text = self.bytes_at(start, size)
        if len(text) < size and not self.has_end():
            raise self.cut_short(MANIFEST)
        if zlib.crc32(text) != checksum:
            raise self.damaged(f"{MANIFEST} was changed (its checksum differs)")
        return text

    def parsed(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            keys = [key for key, _ in pairs]
            if len(set(keys)) < len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise self.damaged(f"{MANIFEST} names '{twice}' twice")
            return dict(pairs)

        try:
            manifest = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{MANIFEST} is no JSON: {error}") from error
        if not isinstance(manifest, dict):
            raise self.damaged(f"{MANIFEST} is no JSON object")
        return manifest

    def check_schema(self, manifest: Mapping[str, Any]) -> None:
        match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", str(manifest.get("schema")))
        if not match:
            raise self.damaged(f"{MANIFEST} gives no schema version")
        if (int(match[1]), int(match[2])) > SCHEMA:
            raise Incompatible(
                f"{self.path} has schema {match[0]}, this butterflyc reads up to "
                f"{SCHEMA[0]}.{SCHEMA[1]}",
                help="pip install -U butterflyc, or compile the model again with this version",
            )

    def section_sizes(self, manifest: Mapping[str, Any]) -> dict[str, int]:
        hashes = manifest.get("hashes")
        if not isinstance(hashes, dict) or len(hashes) > MAX_SECTIONS:
            raise self.damaged(f"{MANIFEST} lists no sections, or over {MAX_SECTIONS:,}")
        sizes = {}
        for name in sorted(hashes):
            entry = hashes[name]
            size = entry.get("bytes") if isinstance(entry, dict) else None
            if not _is_safe(name):
                raise self.damaged(f"'{name}' cannot be a section's name")
            if not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
                raise self.damaged(f"section '{name}' has size {size}, limit {MAX_FILE_BYTES:,}")
            if not isinstance(entry.get("sha256"), str):
                raise self.damaged(f"{MANIFEST} gives no SHA-256 for section '{name}'")
            sizes[name] = size
        return sizes

    def check_size(self, layout: archive.Layout) -> None:
        if self.size < layout.size:
            raise self.cut_short(layout.region_at(self.size), layout.size)
        if self.size > layout.size:
            raise self.damaged(
                f"{self.size - layout.size:,} bytes too many after the end at {layout.size:,}"
            )

    def has_end(self) -> bool:
        """The file ends as all artefacts do, so it was not cut short."""
        comment_bytes = len(_comment(b""))
        return self.bytes_at(max(0, self.size - comment_bytes), len(_MARK)) == _MARK

    def bytes_at(self, start: int, count: int) -> bytes:
        self.file.seek(start)
        return self.file.read(count)

    def damaged(self, what: str) -> Damaged:
        return Damaged(f"{self.path} is damaged: {what}", help=_COPY_AGAIN)

    def cut_short(self, region: str, expected: int | None = None) -> Damaged:
        of = f" of {expected:,}" if expected else ""
        return self.damaged(f"cut short in '{region}', {self.size:,}{of} bytes are there")
