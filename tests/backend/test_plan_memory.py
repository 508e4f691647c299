"""The memory plan: buffers that live together never overlap, and the arena is near its bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from butterflyc.passes.plan_memory import Buffer, aligned, first_fit, lower_bound, plan


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Buffer]:
    count = draw(st.integers(0, 24))
    found = []
    for i in range(count):
        first = draw(st.integers(0, 12))
        last = first + draw(st.integers(0, 6))
        found.append(Buffer((f"b{i}", 0), draw(st.integers(1, 5000)), first, last))
    return found


def overlaps(buffers: list[Buffer], offsets: dict[tuple[str, int], int]) -> bool:
    return any(
        a.meets(b)
        and offsets[a.key] < offsets[b.key] + b.bytes
        and offsets[b.key] < offsets[a.key] + a.bytes
        for i, a in enumerate(buffers)
        for b in buffers[:i]
    )


@given(lifetimes())
def test_buffers_that_live_together_do_not_overlap(buffers: list[Buffer]) -> None:
    """Every plan is valid, aligned, inside the arena and not below the bound."""
    offsets, arena = plan(buffers)
    assert set(offsets) == {buffer.key for buffer in buffers}
    assert all(offset % 64 == 0 for offset in offsets.values())
    assert all(offsets[b.key] + b.bytes <= arena for b in buffers)
    assert not overlaps(buffers, offsets)
    assert arena >= lower_bound(buffers)


@given(lifetimes())
def test_the_climb_never_loses_to_first_fit(buffers: list[Buffer]) -> None:
    """The arena is at most that of first fit by size."""
    ordered = sorted(buffers, key=lambda b: (-b.bytes, b.first))
    offsets = first_fit(ordered)
    height = max((offsets[b.key] + aligned(b.bytes) for b in buffers), default=0)
    assert plan(buffers)[1] <= height


def test_the_same_buffers_give_the_same_plan() -> None:
    """Planning is deterministic."""
    buffers = [Buffer((f"b{i}", 0), 100 * (i % 7 + 1), i, i + i % 5) for i in range(40)]
    assert plan(buffers) == plan(list(buffers))


def test_the_climb_beats_first_fit_where_order_matters() -> None:
    """On a chain of growing buffers the plan reaches the lower bound."""
    buffers = [Buffer((f"b{i}", 0), 64 * (i + 1), i, i + 1) for i in range(20)]
    assert plan(buffers)[1] == lower_bound(buffers)
