"""What is timed: one way to compute a layer, on so many copies of its weights in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from .device import Device
from .problem import Draw, Routing, Shape, draw

Side = Literal["ours", "butterfly", "standard"]
# Times that the weights of all copies together are larger than the cache.
BEYOND_CACHE = 3
MOST_COPIES = 512
# Of the memory of a GPU, for the copies of one contender.
MEMORY_PART = 0.4
# Up to so many tokens calls are so short that weights of the call before are still in the cache.
FEW_TOKENS = 64
FEW_CALLS = 20


@dataclass(frozen=True)
class Contender:
    """``call(copy, draw)`` is the layer's result. ``captured``: it can be in a CUDA graph.

    ``calls`` are timed together. ``routed``: gates and experts are chosen from logits in the call,
    and sorted where it sorts.
    """

    name: str
    side: Side
    call: Callable[[int, Draw], torch.Tensor]
    copies: int
    calls: int
    captured: bool = True
    routed: bool = False
    note: str = ""

    @property
    def how(self) -> str:
        """How it is timed."""
        return "graph" if self.captured else "stream"

    def once(self, draws: list[Draw]) -> torch.Tensor:
        """The result of the first call."""
        with torch.no_grad():
            return self.call(0, draws[0])

    def all(self, draws: list[Draw]) -> None:
        """All calls that are timed together, each on the next copy."""
        with torch.no_grad():
            for number in range(self.calls):
                self.call(number % self.copies, draws[number % len(draws)])


def copies_for(device: Device, shape: Shape, touched: int, whole: int) -> int:
    """How many copies of weights there have to be, of which a call reads ``touched`` bytes."""
    if shape.tokens > FEW_TOKENS:
        return 1
    if device.rehearsal:
        return 2
    wanted = -(-BEYOND_CACHE * device.cache_bytes // touched)
    fitting = int(device.memory_bytes * MEMORY_PART // whole)
    return max(1, min(wanted, fitting, MOST_COPIES))


def calls_for(device: Device, shape: Shape, copies: int) -> int:
    """How many calls are in one graph: enough that its start is not what is seen."""
    if shape.tokens > FEW_TOKENS:
        return 1
    return max(copies, 2 if device.rehearsal else FEW_CALLS)


def draws_for(device: Device, shape: Shape, routing: Routing) -> list[Draw]:
    """Where tokens go, another way in each of neighbouring calls."""
    count = 1 if shape.tokens > FEW_TOKENS else 2 if device.rehearsal else 64
    return [draw(shape, routing, device.place, seed) for seed in range(count)]


def active_experts(draws: list[Draw]) -> int:
    """How many experts a call reads, on average."""
    counts = [int((torch.bincount(d.experts.flatten()) > 0).sum()) for d in draws]
    return round(sum(counts) / len(counts))
