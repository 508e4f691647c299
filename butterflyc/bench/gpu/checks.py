"""Every kernel on this device against what the op means, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ...kernels.record import Kernel
from .deep import OP as DEEP
from .deep import deepened, operands_of
from .device import Clock, Device, check_alive, launches_of
from .measure import ERRORS, reason
from .ours import Constants, Runner, Way, serving, tensor, way, without_asm
from .problem import (
    Array,
    Draw,
    Routing,
    Shape,
    difference,
    draw,
    meaning,
    rounded,
    spec,
    weights,
)

# Differences that are allowed, relative to what is wanted.
LIMITS = {"f32": 1e-5, "f16": 2e-3, "bf16": 1.6e-2, "i8": 2e-3}
# Modes: rows of what, and whether they become codes.
MODES = {"bf16": ("bf16", False), "f16": ("f16", False), "f32": ("f32", False), "i8": ("f16", True)}
SIZES = (256, 1024)
REHEARSED_SIZES = (16, 32)
# Widths that no tile divides, small enough for every kernel in every mode.
UNEVEN = Shape(100, 140, 8, 32)
TOKENS = (1, 7, 32, 257)
EXPERTS = (8, 64)
NOT_RUN = "not run: the time was over"


@dataclass(frozen=True)
class Check:
    """One way on one problem."""

    found: Way
    mode: str
    shape: Shape
    routing: Routing
    asm: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "kernel": self.found.name,
            "mode": self.mode,
            "shape": str(self.shape),
            "routing": self.routing,
            "asm": self.asm,
            "parameters": self.found.parameters,
        }


def problems(rehearsal: bool) -> list[tuple[Shape, Routing]]:
    """The sizes and routings to check: with idle experts, and with all tokens on one."""
    d, f = REHEARSED_SIZES if rehearsal else SIZES
    tokens, experts = ((3,), (8,)) if rehearsal else (TOKENS, EXPERTS)
    found: list[tuple[Shape, Routing]] = [
        (Shape(d, f, e, t), "uniform") for e in experts for t in tokens
    ]
    # The most tokens that kernels for few serve, and that those for many do.
    crowded = [Shape(d, f, experts[0], t) for t in tokens[-2:]]
    uneven: list[tuple[Shape, Routing]] = [] if rehearsal else [(UNEVEN, "uniform")]
    return [*found, *((shape, "one expert") for shape in crowded), *uneven]


def checks(kernels: Sequence[Kernel], device: Device) -> list[Check]:
    """All of them: every record, mode, problem, with and without inline assembly."""
    found = []
    for mode, (dtype, codes) in MODES.items():
        for (shape, routing), deep in product(problems(device.rehearsal), (False, True)):
            asked = spec(shape, dtype, codes)
            asked = deepened(asked) if deep else asked
            for kernel in serving(kernels, asked, device.gpu):
                default = way(kernel, asked, device.gpu)
                found.append(Check(default, mode, shape, routing, asm=True))
                plain = without_asm(default)
                # Without it products of bfloat16 are of float32, for the interpreter: others.
                # A rehearsal has none in any case.
                if mode != "bf16" and plain != default and not device.rehearsal:
                    found.append(Check(plain, mode, shape, routing, asm=False))
    return found


class Meanings:
    """Operands, and what the op means of them, of one problem at a time."""

    def __init__(self, device: Device) -> None:
        self._device, self._key = device, ("", Shape(0, 0, 0, 0), "", "")
        self._weights: dict[tuple[int, int], Any] = {}

    def of(self, check: Check) -> tuple[Constants, torch.Tensor, Draw, Array]:
        """Constants, x and routing on the device, and what is wanted."""
        key = check.mode, check.shape, check.routing, check.found.spec.op
        if key != self._key:
            self._key, self._value = key, self._make(check)
        return self._value

    def _make(self, check: Check) -> tuple[Constants, torch.Tensor, Draw, Array]:
        shape, dtype = check.shape, MODES[check.mode][0]
        if check.found.spec.op == DEEP:
            layer = operands_of(shape, dtype)
        else:
            layer = weights(shape.channels, shape.outputs, shape.experts).operands(dtype)
        went = draw(shape, check.routing, "cpu", seed=shape.tokens)
        x = torch.randn(shape.tokens, shape.channels, generator=torch.Generator().manual_seed(1))
        values = {
            **layer,
            "x": rounded(x.numpy(), dtype),
            "gates": went.gates.numpy(),
            "experts": went.experts.numpy(),
        }
        wanted = meaning(check.found.spec, values)
        place = self._device.place
        moved = Draw(went.logits.to(place), went.gates.to(place), went.experts.to(place))
        return Constants(layer, place), tensor(values["x"], dtype, place), moved, wanted


def run(
    asked: Iterable[Check], device: Device, clock: Clock, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """What became of each check: ``error`` and ``fault``, which is empty if all is well.

    Raises DeviceLost.
    """
    meanings = Meanings(device)
    todo = list(asked)
    progress(f"compiling the kernels of {len(todo)} checks")
    launches = [launch for check in todo for launch in launches_of(check.found.plan)]
    failed = device.compile(launches, clock, spilling=True)
    for check in todo:
        progress(f"checking {check.found.name} {check.mode} {check.shape}")
        if clock.left <= 0:
            yield {**check.as_dict(), "error": None, "fault": NOT_RUN}
            continue
        reasons = [failed[s.symbol] for s in launches_of(check.found.plan) if s.symbol in failed]
        if reasons:
            yield {**check.as_dict(), "error": None, "fault": reasons[0]}
            continue
        error, fault = guarded(check, device, meanings)
        yield {**check.as_dict(), "error": error, "fault": fault}


def guarded(check: Check, device: Device, meanings: Meanings) -> tuple[float | None, str]:
    """`one`, and what it raises as a fault. Raises DeviceLost."""
    try:
        return one(check, device, meanings)
    except ERRORS as error:
        check_alive(device, check.found.name, error)
        return None, reason(error)


def one(check: Check, device: Device, meanings: Meanings) -> tuple[float, str]:
    """The error of one check, and what is wrong. Results are filled with NaN before each run."""
    constants, x, went, wanted = meanings.of(check)
    runner = Runner(check.found, device, device.how(check.found.plan), constants, x)
    results = []
    for _ in range(2):
        runner.poison()
        results.append(runner.run(went.gates, went.experts))
        device.wait()
    error = difference(results[0].float().cpu().numpy(), wanted)
    limit = LIMITS[check.mode]
    # NaN is not below any limit.
    if not error < limit:
        return error, f"differs from its meaning by {error:.2g}, of {limit:g} allowed"
    if not torch.equal(*results):
        return error, "the same input gives other bits the second time"
    return error, ""
