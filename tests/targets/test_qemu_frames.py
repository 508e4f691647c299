"""Frames: what a firmware wrote is read again, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.run.bare_metal import ProgramFailed
from butterflyc.compiler.run.frames import END, SAMPLE, SAMPLE_HEAD, Ran, frame, read_frames

OUTPUT_BYTES = 8
COUNTS = st.integers(0, 2**40)
RUNS = st.builds(
    Ran,
    status=st.integers(-(2**31), 2**31 - 1),
    instructions=COUNTS,
    stack_bytes=COUNTS,
    outputs=st.binary(min_size=OUTPUT_BYTES, max_size=OUTPUT_BYTES),
    steps=st.lists(COUNTS, max_size=3).map(tuple),
)


def written(runs: list[Ran], tick_cost: int) -> bytes:
    """What a firmware writes of ``runs``, whose ticks cost ``tick_cost`` each."""
    return b"".join(map(sample_frame, runs, [tick_cost] * len(runs))) + frame(
        END, struct.pack("<Q", tick_cost)
    )


def sample_frame(ran: Ran, tick_cost: int) -> bytes:
    ticks = [7]
    for step in ran.steps:
        ticks.append(ticks[-1] + step + tick_cost)
    counted = ran.instructions + tick_cost * len(ran.steps)
    head = SAMPLE_HEAD.pack(ran.status, counted, ran.stack_bytes)
    told = struct.pack(f"<{len(ticks)}Q", *ticks) if ran.steps else b""
    return frame(SAMPLE, head + ran.outputs + told)


@given(st.lists(RUNS, max_size=4), st.integers(0, 1000))
def test_what_was_written_is_read(runs: list[Ran], tick_cost: int) -> None:
    """Any runs come back as they were, and what ticks cost is in none of their figures."""
    assert read_frames(written(runs, tick_cost), OUTPUT_BYTES) == runs


@given(st.lists(RUNS, max_size=3), st.data())
def test_a_changed_byte_is_refused(runs: list[Ran], data: st.DataObject) -> None:
    """A byte that differs, wherever it is and however much, is told."""
    whole = bytearray(written(runs, 3))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProgramFailed, match="cannot be read at byte"):
        read_frames(bytes(whole), OUTPUT_BYTES)


@given(st.lists(RUNS, max_size=3), st.data())
def test_a_lost_byte_is_refused(runs: list[Ran], data: st.DataObject) -> None:
    """A byte that is missing, and an end that is, is told."""
    whole = written(runs, 3)
    at = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:at] + whole[at + 1 :], whole[:at]):
        with pytest.raises(ProgramFailed, match="cut short or was changed"):
            read_frames(damaged, OUTPUT_BYTES)


@given(st.lists(RUNS, max_size=3), st.binary(min_size=1, max_size=9), st.data())
def test_an_added_byte_is_refused(runs: list[Ran], more: bytes, data: st.DataObject) -> None:
    """Bytes that nobody wrote, before, between and behind the frames, are told."""
    whole = written(runs, 3)
    at = data.draw(st.integers(0, len(whole)))
    with pytest.raises(ProgramFailed, match="cannot be read at byte") as caught:
        read_frames(whole[:at] + more + whole[at:], OUTPUT_BYTES)
    if at == len(whole):
        assert f"at byte {at}: {len(more)} bytes follow the end" in caught.value.what
    assert "beyond its buffers" in str(caught.value.help)


@pytest.mark.parametrize("size", [0, SAMPLE_HEAD.size, SAMPLE_HEAD.size + OUTPUT_BYTES + 3])
def test_another_size_is_refused(size: int) -> None:
    """A frame that is whole, but too short for its figures, or with a part of one, is told."""
    for data in (frame(SAMPLE, bytes(size)) + written([], 0), frame(END, bytes(size))):
        with pytest.raises(ProgramFailed, match="are expected"):
            read_frames(data, OUTPUT_BYTES)


def test_another_kind_is_refused() -> None:
    """A frame that is whole, but of a kind that no firmware writes, is told."""
    with pytest.raises(ProgramFailed, match="at byte 0"):
        read_frames(frame(b"MORE", b"") + written([], 0), OUTPUT_BYTES)
