"""Standard mixtures of experts, by every way we know: what a Butterfly layer has to beat.

None has a bias. A router's work is not in them: `Route` is made before, or in the call if it is
``routed``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...compiler.run.gpu import Driven, Interpreted, Planned
from ...kernels.gpu import grouped_product
from ...kernels.gpu.launch import Plan
from ...kernels.gpu.library import torch_dtype
from .contender import Contender, calls_for, copies_for
from .device import Device
from .problem import CHOSEN, Draw, Shape, gated, tokens_of

Tensor = torch.Tensor


@dataclass(frozen=True)
class Standard:
    """up [E, F, d] and down [E, d, F]."""

    up: Tensor
    down: Tensor

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes


@dataclass(frozen=True)
class Route:
    """Rows (token, slot) sorted by expert, where each expert's end, and their tiles.

    A tile is of one expert: the rows from ``first`` to ``end``. Tiles that are not needed are of
    expert -1.
    """

    order: Tensor
    ends: Tensor
    expert: Tensor
    first: Tensor
    end: Tensor


def standard(shape: Shape, dtype: str, device: str, seed: int) -> Standard:
    """Random weights, of results of about one; never zeros, whose products cost less power."""
    generator = torch.Generator(device).manual_seed(seed)

    def matrices(outputs: int, channels: int) -> Tensor:
        size = shape.experts, outputs, channels
        held = torch.empty(size, dtype=torch_dtype(dtype), device=device)
        return held.normal_(0, channels**-0.5, generator=generator)

    up, down = (shape.outputs, shape.channels), (shape.channels, shape.outputs)
    return Standard(matrices(*up), matrices(*down))


def route(experts: Tensor, count: int, height: int) -> Route:
    """Rows of experts [T, k] sorted, in tiles of ``height``, without waiting for the device."""
    owner, order = experts.flatten().sort(stable=True)
    every = torch.arange(count, device=experts.device)
    ends = torch.searchsorted(owner, every, right=True)
    starts = F.pad(ends[:-1], (1, 0))
    tiles = (ends - starts + height - 1) // height
    through = tiles.cumsum(0)
    number = torch.arange(
        grouped_product.most_tiles(len(order), count, height), device=experts.device
    )
    expert = torch.searchsorted(through, number, right=True)
    own = expert.clamp(max=count - 1)
    first = starts[own] + (number - (through - tiles)[own]) * height
    end = torch.minimum(first + height, ends[own])
    expert = torch.where(expert < count, expert, -1)
    return Route(*(value.to(torch.int32) for value in (order, ends, expert, first, end)))


def loop(weights: Standard, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """One expert after the other, on the tokens that chose it."""
    y = torch.zeros_like(x)
    for number in range(len(weights.up)):
        tokens, slots = (experts == number).nonzero(as_tuple=True)
        hidden = F.gelu(F.linear(x[tokens], weights.up[number]))
        rows = F.linear(hidden, weights.down[number])
        y.index_add_(0, tokens, rows * gates[tokens, slots].to(x.dtype).unsqueeze(-1))
    return y


def gathered(weights: Standard, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """Each row with its expert's matrices beside it: for few tokens."""
    hidden = torch.einsum("tkfd,td->tkf", weights.up[experts], x)
    rows = torch.einsum("tkdf,tkf->tkd", weights.down[experts], F.gelu(hidden))
    return (rows * gates.to(x.dtype).unsqueeze(-1)).sum(dim=1)


def by_library(weights: Standard, x: Tensor, gates: Tensor, routed: Route) -> Tensor:
    """By the grouped product of the library, rows gathered in front of it."""
    order = routed.order.long()
    rows = F.grouped_mm(x[order // CHOSEN], weights.up.mT, offs=routed.ends)
    rows = F.grouped_mm(F.gelu(rows), weights.down.mT, offs=routed.ends)
    back = torch.empty_like(rows).index_copy(0, order, rows)
    gated_rows = torch.unflatten(back, 0, gates.shape) * gates.to(x.dtype).unsqueeze(-1)
    return gated_rows.sum(dim=1)


class Tiled:
    """Our own grouped kernels on one copy of weights."""

    def __init__(
        self, found: Plan, how: Driven | Interpreted, weights: Standard, x: Tensor, added: bool
    ) -> None:
        self._planned = Planned({"layer": found}, how)
        hidden = x.new_empty(len(x) * CHOSEN, weights.up.shape[1])
        placed = x.new_empty(CHOSEN, *x.shape)
        y = x.new_empty(x.shape, dtype=torch.float32 if added else x.dtype)
        held = {"x": x, "up": weights.up, "down": weights.down}
        self._buffers = {**held, "hidden": hidden, "placed": placed, "y": y}

    def run(self, gates: Tensor, routed: Route) -> Tensor:
        indices = {
            "order": routed.order,
            "tile_expert": routed.expert,
            "tile_first": routed.first,
            "tile_end": routed.end,
        }
        self._planned.run("layer", {**self._buffers, "gates": gates, **indices})
        return self._buffers["y"]


def tiled_plan(way: Mapping[str, int], shape: Shape, dtype: str) -> Plan:
    """The plan of our own grouped kernels."""
    s = shape
    return grouped_product.plan(way, s.tokens, CHOSEN, s.experts, s.channels, s.outputs, dtype)


class Mixtures:
    """The standard mixture of a shape on a device, in as many copies as it takes."""

    def __init__(self, shape: Shape, dtype: str, device: Device, active: int) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        each = 2 * shape.channels * shape.outputs * torch_dtype(dtype).itemsize
        copies = copies_for(device, shape, each * active, each * shape.experts)
        self.calls = calls_for(device, shape, copies)
        self.weights = [standard(shape, dtype, device.place, seed) for seed in range(copies)]
        self.x = tokens_of(shape, dtype, device.place)

    def plain(
        self, name: str, function: Callable[..., Tensor], captured: bool, copies: int | None = None
    ) -> Contender:
        """A way that needs no sorting."""

        def call(copy: int, draw: Draw) -> Tensor:
            return function(self.weights[copy], self.x, draw.gates, draw.experts)

        count = copies or len(self.weights)
        calls = self.calls if captured else 1
        return Contender(name, "standard", call, count, calls, captured)

    def loop(self) -> Contender:
        return self.plain("standard loop", loop, captured=False, copies=1)

    def gathered(self, compiled: bool = False) -> Contender:
        """For few tokens: matrices are copied for each row."""
        function = self.device.optimised(gathered) if compiled else gathered
        name = "standard gathered compiled" if compiled else "standard gathered"
        return self.plain(name, function, captured=True)

    def library(self, routed: bool = False) -> Contender:
        routes: dict[int, Route] = {}

        def call(copy: int, draw: Draw) -> Tensor:
            gates, found = self._routed(draw, 1, routes, routed)
            return by_library(self.weights[copy], self.x, gates, found)

        return Contender(
            "standard grouped_mm", "standard", call, len(self.weights), self.calls, routed=routed
        )

    def tiled(self, way: Mapping[str, int], routed: bool = False) -> Contender:
        """By our own kernels; the launches of `tiled_plan` are compiled."""
        found, added = tiled_plan(way, self.shape, self.dtype), bool(way["split"])
        how = self.device.how(found)
        copies = [Tiled(found, how, weights, self.x, added) for weights in self.weights]
        routes: dict[int, Route] = {}

        def call(copy: int, draw: Draw) -> Tensor:
            gates, route_of = self._routed(draw, way["rows"], routes, routed)
            return copies[copy].run(gates, route_of)

        note = " ".join(f"{name}={value}" for name, value in way.items())
        return Contender(
            "standard triton", "standard", call, len(copies), self.calls, routed=routed, note=note
        )

    def _routed(
        self, draw: Draw, height: int, routes: dict[int, Route], anew: bool
    ) -> tuple[Tensor, Route]:
        """Gates and the route: of the logits, if ``anew``; else as it was the first time."""
        if anew:
            gates, experts = gated(draw.logits)
            return gates, route(experts, self.shape.experts, height)
        if id(draw) not in routes:
            routes[id(draw)] = route(draw.experts, self.shape.experts, height)
        return draw.gates, routes[id(draw)]
