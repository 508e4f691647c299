"""What the firmware writes: one frame a sample, then the end; each with a checksum."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import attrs

from .bare_metal import ProgramFailed

SAMPLE, END = b"SAMP", b"END "
SAMPLE_HEAD = struct.Struct("<qQQ")
TICK_COST = struct.Struct("<Q")


@attrs.frozen
class Ran:
    """One run: what the model returned, what it cost, and the bytes of its outputs.

    ``steps`` are the instructions of each step, if the model tells of them; what telling costs is
    counted nowhere.
    """

    status: int
    instructions: int
    stack_bytes: int
    outputs: bytes
    steps: tuple[int, ...] = ()


def frame(kind: bytes, payload: bytes) -> bytes:
    """A frame as ``machines/firmware.c`` writes it."""
    body = kind + struct.pack("<I", len(payload)) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def read_frames(data: bytes, output_bytes: int) -> list[Ran]:
    """The runs that ``data`` tells of. Raises ProgramFailed unless every byte is as written."""
    frames: list[tuple[bytes, bytes]] = []
    at = 0
    while not frames or frames[-1][0] != END:
        kind, payload = _one(data, at)
        frames.append((kind, payload))
        at += len(frame(kind, payload))
    if at != len(data):
        raise _damaged(at, f"{len(data) - at} bytes follow the end")
    last = frames.pop()[1]
    if len(last) != TICK_COST.size:
        raise _damaged(at, f"the end has {len(last)} bytes, {TICK_COST.size} are expected")
    (tick_cost,) = TICK_COST.unpack(last)
    return [_ran(payload, output_bytes, tick_cost) for _, payload in frames]


def _one(data: bytes, at: int) -> tuple[bytes, bytes]:
    kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
    payload = data[at + 8 : at + 8 + size]
    whole = frame(kind, payload)
    if kind not in (SAMPLE, END) or data[at : at + len(whole)] != whole:
        raise _damaged(at, "it is cut short or was changed")
    return kind, payload


def _damaged(at: int, why: str) -> ProgramFailed:
    return ProgramFailed(
        f"what the model's program wrote cannot be read at byte {at}: {why}",
        help="the model may have written beyond its buffers, or into the machine's registers",
    )


def _ran(payload: bytes, output_bytes: int, tick_cost: int) -> Ran:
    after = SAMPLE_HEAD.size + output_bytes
    if len(payload) < after or (len(payload) - after) % 8:
        raise _damaged(0, f"a sample has {len(payload)} bytes, {after} and 8 a step are expected")
    status, instructions, stack = SAMPLE_HEAD.unpack_from(payload)
    ticks = struct.unpack(f"<{(len(payload) - after) // 8}Q", payload[after:])
    steps = tuple(b - a - tick_cost for a, b in pairwise(ticks))
    instructions -= tick_cost * len(steps)
    return Ran(status, instructions, stack, payload[SAMPLE_HEAD.size : after], steps)
