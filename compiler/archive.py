"""Where each byte of a stored, aligned zip file lies, given its members' names and sizes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ALIGNMENT = 64
HEADER_BYTES = 30
_DIRECTORY = "the zip directory"
_VERSION = 20  # of the format; 2.0 is what every reader knows
_MADE_ON_UNIX = 3 << 8
_FILE_MODE = 0o100644 << 16
_DATE = (1 << 5) | 1  # 1 January 1980, the first that the format has
_PADDING_ID = 0xD935  # the extra field by which Android's zipalign pads


@dataclass(frozen=True)
class Layout:
    """A zip file without its contents: ``sizes`` in order, and where each member's bytes start."""

    sizes: dict[str, int]
    starts: dict[str, int]
    comment: bytes

    @classmethod
    def of(cls, sizes: dict[str, int], comment: bytes) -> Layout:
        """The layout of members of these sizes, in this order."""
        starts: dict[str, int] = {}
        at = 0
        for name, size in sizes.items():
            starts[name] = _aligned(at + HEADER_BYTES + len(name))
            at = starts[name] + size
        return cls(sizes, starts, comment)

    @property
    def size(self) -> int:
        """The bytes of the whole file."""
        entries = sum(46 + len(name) for name in self.sizes)
        return self._contents_end + entries + 22 + len(self.comment)

    @property
    def _contents_end(self) -> int:
        last = next(reversed(self.starts))
        return self.starts[last] + self.sizes[last]

    def region_at(self, offset: int) -> str:
        """The member (its header counts as part of it) or directory that holds this byte."""
        for name, start in self.starts.items():
            if offset < start + self.sizes[name]:
                return name
        return _DIRECTORY

    def frame(self, checksums: Mapping[str, int]) -> Iterator[tuple[str, int, bytes]]:
        """All bytes outside the members: what they are, where they start, the bytes."""
        at, directory = 0, b""
        for name, start in self.starts.items():
            # Version, flags, method, time, date, CRC-32, size stored, size, length of the name.
            common = struct.pack(
                "<HHHHHIIIH", _VERSION, 0, 0, 0, _DATE, checksums[name],
                self.sizes[name], self.sizes[name], len(name),
            )  # fmt: skip
            padding = start - at - HEADER_BYTES - len(name)
            extra = struct.pack("<HH", _PADDING_ID, padding - 4) + bytes(padding - 4)
            local = b"PK\3\4" + common + struct.pack("<H", padding) + name.encode() + extra
            yield f"the zip header of '{name}'", at, local
            directory += b"PK\1\2" + struct.pack("<H", _MADE_ON_UNIX | _VERSION) + common
            directory += struct.pack("<HHHHII", 0, 0, 0, 0, _FILE_MODE, at) + name.encode()
            at = start + self.sizes[name]
        count = len(self.sizes)
        end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), at, len(self.comment))
        yield _DIRECTORY, at, directory + b"PK\5\6" + end + self.comment

    def pieces(self, checksums: Mapping[str, int], members: Mapping[str, bytes]) -> Iterator[bytes]:
        """The whole file, piece by piece."""
        contents = iter(members.values())
        for _, _, framing in self.frame(checksums):
            yield framing
            yield next(contents, b"")


def looks_like_one(head: bytes) -> bool:
    """These first bytes could begin a zip file (that may be cut short)."""
    return bool(head) and head[:4] == b"PK\3\4"[: len(head)]


def read_header(head: bytes) -> tuple[int, int, int]:
    """Size and checksum of the first member, and where its bytes start, as its header claims."""
    checksum, size, name_bytes, extra_bytes = struct.unpack_from("<I4xIHH", head, 14)
    return size, checksum, HEADER_BYTES + name_bytes + extra_bytes


def _aligned(offset: int) -> int:
    """The next aligned offset that leaves room for an extra field (4 bytes at least)."""
    return -(-(offset + 4) // ALIGNMENT) * ALIGNMENT
