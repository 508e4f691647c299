"""Times of contenders, in turns, on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

from ...compiler.errors import ButterflycError
from .contender import Contender
from .device import Call, Device
from .problem import Draw, difference

# Rounds at least and at most; a contender that is so many times as slow gets the fewest.
FEWEST, MOST, SLOW = 3, 40, 10
# What results of two ways on one side may differ by: sums of halves in different orders.
ALIKE = {"bf16": 5e-2, "f16": 1e-2, "f32": 1e-4}
# What may go wrong with one contender and leave the others as they are.
ERRORS = (ButterflycError, RuntimeError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Figure:
    """What a call of a contender takes, round by round."""

    contender: Contender
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)

        def part(share: float) -> float:
            return round(ordered[round(share * (len(ordered) - 1))] * 1e6, 3)

        c = self.contender
        return {
            "side": c.side,
            "how": c.how,
            "routed": c.routed,
            "copies": c.copies,
            "calls": c.calls,
            "rounds": len(ordered),
            "p20_us": part(0.2),
            "p50_us": part(0.5),
            "p80_us": part(0.8),
            "note": c.note,
        }


def ratio(slower: Figure, faster: Figure) -> tuple[float, float]:
    """How many times as long ``slower`` takes, in rounds of both: median, quartile spread."""
    ratios = [a / b for a, b in zip(slower.seconds, faster.seconds, strict=False)]
    if len(ratios) == 1:
        return ratios[0], 0.0
    low, middle, high = quantiles(ratios, n=4)
    return middle, high - low


def interleaved(
    device: Device, contenders: Sequence[Contender], draws: list[Draw], seconds: float
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Figures of contenders, in about ``seconds``; and why others have none."""
    calls: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    named = {c.name: c for c in contenders}
    for name, c in named.items():
        try:
            calls[name] = prepared(device, c, draws)
        except ERRORS as error:
            left_out[name] = reason(error)
    # Events of large calls are behind a cache that was written over, of small ones in a long row.
    cold = all(c.calls == 1 for c in contenders)
    times = device.seconds(calls, FEWEST, cold) if calls else {}
    typical = {name: median(values) for name, values in times.items()}
    fast = {n: call for n, call in calls.items() if typical[n] <= SLOW * min(typical.values())}
    round_seconds = sum(typical[name] for name in fast)
    rounds = int(min(MOST, seconds / max(round_seconds, 1e-6))) - FEWEST
    if rounds > 0 and fast and not device.rehearsal:
        more = device.seconds(fast, rounds, cold)
        times = {name: values + more.get(name, []) for name, values in times.items()}
    figures = {
        name: Figure(named[name], tuple(value / named[name].calls for value in values))
        for name, values in times.items()
    }
    return figures, left_out


def prepared(device: Device, contender: Contender, draws: list[Draw]) -> Call:
    """All calls that are timed together, as one."""
    # What PyTorch compiles or sets up in a first call cannot be captured.
    contender.once(draws)
    device.wait()

    def call() -> None:
        contender.all(draws)

    return device.captured(call) if contender.captured else call


def disagreeing(contenders: Sequence[Contender], draws: list[Draw], dtype: str) -> dict[str, str]:
    """Those whose result is not that of the first on their side, and by how much."""
    faults: dict[str, str] = {}
    wanted: dict[str, tuple[str, torch.Tensor]] = {}
    for c in contenders:
        try:
            result = c.once(draws).clone()
        except ERRORS as error:
            faults[c.name] = reason(error)
            continue
        side = "standard" if c.side == "standard" else "butterfly"
        if side not in wanted:
            wanted[side] = c.name, result
            continue
        first, right = wanted[side]
        error_of = difference(result, right)
        if not error_of < ALIKE[dtype]:
            faults[c.name] = f"differs from {first} by {error_of:.2g} of {ALIKE[dtype]:g} allowed"
    return faults


def reason(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def fastest(figures: Mapping[str, Figure], side: str) -> Figure | None:
    """The fastest of a side."""
    there = [f for f in figures.values() if f.contender.side == side]
    return min(there, key=lambda f: f.median, default=None)
