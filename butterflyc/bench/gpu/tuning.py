"""The parameters of each kernel that are fastest on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from ...kernels.record import Kernel, Spec
from ...targets.tuned import Entry, Sizes, sizes_of
from .contender import Contender, active_experts, draws_for
from .device import Clock, Device, check_alive, launches_of
from .measure import ALIKE, ERRORS, interleaved, reason
from .ours import Constants, Way, contender, serving, way
from .problem import Shape, Weights, difference, spec, weights

# The most experts of any point: layers of fewer are of its first ones.
MOST_EXPERTS = 256
# How many times the modelled cost of the cheapest a kernel may have, for more than its default.
HOPELESS = 1.5
SECONDS_EACH = 0.05
# Ways of a kernel that a rehearsal tries.
REHEARSED = 1


class Layers:
    """The Butterfly layers of all points, each made once."""

    def __init__(self, device: Device, dtype: str, most_experts: int = MOST_EXPERTS) -> None:
        self.dtype, self._device, self._most = dtype, device, most_experts
        self.weights = cache(self._weights)
        self.constants = cache(self._constants)

    def _weights(self, channels: int, outputs: int) -> Weights:
        return weights(channels, outputs, self._most)

    def _constants(self, channels: int, outputs: int) -> Constants:
        operands = self.weights(channels, outputs).operands(self.dtype)
        return Constants(operands, self._device.place)


@dataclass
class Tuning:
    """The best parameters of each kernel for each size, what they take, and all that was tried."""

    best: dict[tuple[Sizes, str], tuple[Mapping[str, int], float]] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)

    def parameters(self, kernel: Kernel, asked: Spec) -> Mapping[str, int] | None:
        found = self.best.get((sizes_of(asked), kernel.name))
        return found[0] if found else None

    def entries(self) -> tuple[Entry, ...]:
        """The fastest kernel of each size."""
        least: dict[Sizes, Entry] = {}
        for (sizes, kernel), (parameters, seconds) in self.best.items():
            entry = Entry(sizes, kernel, dict(parameters), round(seconds * 1e6, 3))
            if sizes not in least or entry.median_us < least[sizes].median_us:
                least[sizes] = entry
        return tuple(least.values())


def candidates(kernels: Sequence[Kernel], asked: Spec, device: Device) -> list[Way]:
    """All ways worth trying: of a kernel that costs far more than another, its default."""
    able = serving(kernels, asked, device.gpu)
    costs = {kernel.name: kernel.cost(asked, device.gpu) for kernel in able}
    found = []
    for kernel in able:
        space = kernel.space(asked, device.gpu)
        worth = costs[kernel.name] <= HOPELESS * min(costs.values())
        supported = [p for p in space if kernel.supports(asked.with_parameters(p), device.gpu)]
        kept = supported[: (REHEARSED if device.rehearsal else None) if worth else 1]
        found += [way(kernel, asked, device.gpu, parameters) for parameters in kept]
    return found


def tune(
    kernels: Sequence[Kernel],
    shapes: Iterable[Shape],
    layers: Layers,
    device: Device,
    clock: Clock,
    progress: Callable[[str], None],
) -> Tuning:
    """The fastest way of each kernel at each of ``shapes``, the first ones first."""
    found = Tuning()
    todo = [(s, candidates(kernels, spec(s, layers.dtype), device)) for s in shapes]
    count = sum(len(ways) for _, ways in todo)
    progress(f"compiling {count} ways of our kernels")
    launches = [launch for _, ways in todo for w in ways for launch in launches_of(w.plan)]
    # The rest of the time is for measuring them.
    failed = device.compile(launches, clock.part(clock.left * 0.6))
    for shape, ways in todo:
        progress(f"tuning {shape}")
        able = []
        for each in ways:
            faults = [failed[s.symbol] for s in launches_of(each.plan) if s.symbol in failed]
            if faults:
                found.tried.append(_tried(each, shape, None, faults[0]))
            else:
                able.append(each)
        _at(shape, able, layers, device, clock, found)
    return found


def _at(
    shape: Shape, ways: Sequence[Way], layers: Layers, device: Device, clock: Clock, found: Tuning
) -> None:
    draws = draws_for(device, shape, "uniform")
    constants = layers.constants(shape.channels, shape.outputs)
    active = active_experts(draws)
    wanted: torch.Tensor | None = None
    for each in ways:
        if clock.left <= 0:
            found.tried.append(_tried(each, shape, None, "not tried: the time was over"))
            continue
        try:
            made = contender(each, device, constants, shape, active)
            result = made.once(draws).clone()
            wanted = result if wanted is None else wanted
            seconds, fault = _seconds(made, draws, device, difference(result, wanted), layers.dtype)
        except ERRORS as error:
            check_alive(device, each.name, error)
            seconds, fault = None, reason(error)
        found.tried.append(_tried(each, shape, seconds, fault))
        key = sizes_of(each.spec), each.name
        if seconds is not None and (key not in found.best or seconds < found.best[key][1]):
            found.best[key] = each.parameters, seconds


def _seconds(
    made: Contender, draws: list[Any], device: Device, error: float, dtype: str
) -> tuple[float | None, str]:
    if not error < ALIKE[dtype]:
        return None, f"differs from the first way by {error:.2g}"
    figures, left_out = interleaved(device, [made], draws, SECONDS_EACH)
    if left_out:
        return None, left_out[made.name]
    return figures[made.name].median, ""


def _tried(each: Way, shape: Shape, seconds: float | None, fault: str) -> dict[str, Any]:
    us = None if seconds is None else round(seconds * 1e6, 3)
    parameters = each.parameters
    return {
        "shape": str(shape), "kernel": each.name, "parameters": parameters, "us": us, "fault": fault
    }  # fmt: skip
