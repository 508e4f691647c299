"""Our ways to compute a layer: kernel records with parameters, and their buffers on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from ...compiler.ir.ops import OPS
from ...compiler.run.gpu import Driven, Interpreted, Planned
from ...compiler.run.kernel import with_layouts
from ...kernels.gpu.launch import Gpu, Launch, Plan, Step
from ...kernels.gpu.library import torch_dtype
from ...kernels.layout import pack
from ...kernels.record import Kernel, Spec, Tensor
from .contender import Contender, calls_for, copies_for
from .device import Device
from .problem import Array, Draw, Shape, gated, tokens_of

Buffers = dict[str, torch.Tensor]
How = Interpreted | Driven
# Operands that a call gives; all others are constants.
GIVEN = ("x", "gates", "experts")


@dataclass(frozen=True)
class Way:
    """A record with parameters, and its plan for ``spec``."""

    kernel: Kernel
    spec: Spec
    plan: Plan

    @property
    def name(self) -> str:
        return self.kernel.name

    @property
    def parameters(self) -> dict[str, int]:
        return dict(self.spec.parameters)

    def scratch(self, gpu: Gpu) -> tuple[Tensor, ...]:
        return self.kernel.scratch(self.spec, gpu)


def way(kernel: Kernel, spec: Spec, gpu: Gpu, parameters: Mapping[str, int] | None = None) -> Way:
    """``kernel`` for ``spec``, which it supports; its default without ``parameters``."""
    chosen = kernel.space(spec, gpu)[0] if parameters is None else parameters
    packed = with_layouts(kernel, spec.with_parameters(chosen), gpu)
    plan: Any = kernel.build(kernel.opened(packed), gpu, "layer")
    return Way(kernel, packed, plan)


def without_asm(found: Way) -> Way:
    """The same without inline assembly, as the interpreter computes it."""

    def plain(step: Step) -> Step:
        if not isinstance(step, Launch):
            return step
        constants = tuple((k, False if k == "ASM" else v) for k, v in step.constants)
        return replace(step, constants=constants)

    plan = replace(found.plan, steps=tuple(map(plain, found.plan.steps)))
    return replace(found, plan=plan)


def tensor(array: Array, dtype: str, device: str) -> torch.Tensor:
    """``array`` on the device; ternary weights, which are packed, are bytes there."""
    kind = "u8" if dtype == "ternary" else dtype
    return torch.from_numpy(np.ascontiguousarray(array)).to(device).to(torch_dtype(kind))


def poison(wanted: Tensor, device: str) -> torch.Tensor:
    """NaN, or the largest integers: nothing that a kernel may leave there."""
    dtype = torch_dtype(wanted.dtype)
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(wanted.shape, value, dtype=dtype, device=device)


class Constants:
    """The constants of a layer on a device, packed once for each layout.

    They may be of more experts than a spec has: it gets the first ones.
    """

    def __init__(self, operands: Mapping[str, Array], device: str) -> None:
        self._operands, self._device = operands, device
        self._packed = cache(self._pack)

    def _pack(self, name: str, dtype: str, layout: str | None) -> torch.Tensor:
        array = self._operands[name]
        return tensor(pack(layout, array) if layout else array, dtype, self._device)

    def of(self, spec: Spec) -> Buffers:
        named = dict(zip(OPS[spec.op].names, spec.operands, strict=True))
        found = {n: self._packed(n, t.dtype, t.layout) for n, t in named.items() if n not in GIVEN}
        return {
            name: held[: named[name].shape[0]] if name.startswith("pairs") else held
            for name, held in found.items()
        }


class Runner:
    """A way on a device, whose launches are compiled there: buffers, and calls on them.

    ``how`` does the launches.
    """

    def __init__(
        self, found: Way, device: Device, how: How, constants: Constants, x: torch.Tensor
    ) -> None:
        self.way, self._device = found, device
        self._planned = Planned({"layer": found.plan}, how)
        self._buffers = {"x": x, **constants.of(found.spec)}
        self._planned.load("layer", self._buffers)
        self.poison()

    def poison(self) -> None:
        """Fills the result and scratch with what is no result."""
        written = {"y": self.way.spec.results[0]}
        scratch = self.way.scratch(self._device.gpu)
        written |= {f"scratch{i}": wanted for i, wanted in enumerate(scratch)}
        self._buffers |= {n: poison(t, self._device.place) for n, t in written.items()}

    def run(self, gates: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """The result, which the next call writes over."""
        self._planned.run("layer", {**self._buffers, "gates": gates, "experts": experts})
        return self._buffers["y"]


def touched_bytes(found: Way, constants: Constants, experts: int) -> int:
    """Bytes of weights that a call reads, which goes to so many experts."""
    buffers = constants.of(found.spec)
    dense = {copy.source for copy in found.plan.once}
    size = sum(
        copy.shape[0] * copy.shape[1] * torch_dtype(copy.dtype).itemsize for copy in found.plan.once
    )
    for name, held in buffers.items():
        if name.startswith("pairs"):
            size += held.nbytes * min(experts, held.shape[0]) // held.shape[0]
        elif name not in dense:
            size += held.nbytes
    return size


class Cloned(Constants):
    """Constants of their own, at addresses of their own."""

    def __init__(self, constants: Constants) -> None:
        self._source = constants

    def of(self, spec: Spec) -> Buffers:
        return {name: held.clone() for name, held in self._source.of(spec).items()}


def contender(
    found: Way,
    device: Device,
    constants: Constants,
    shape: Shape,
    active: int,
    routed: bool = False,
    name: str = "",
) -> Contender:
    """``found``, for calls that go to ``active`` experts."""
    touched = touched_bytes(found, constants, active)
    copies = copies_for(device, shape, touched, touched)
    x = tokens_of(shape, found.spec.operands[0].dtype, device.place)
    how = device.how(found.plan)
    runners = [Runner(found, device, how, Cloned(constants), x) for _ in range(copies)]

    def call(copy: int, draw: Draw) -> torch.Tensor:
        gates, experts = gated(draw.logits) if routed else (draw.gates, draw.experts)
        return runners[copy].run(gates, experts)

    calls = calls_for(device, shape, copies)
    note = " ".join(f"{key}={value}" for key, value in found.parameters.items())
    return Contender(name or found.name, "ours", call, copies, calls, routed=routed, note=note)


def serving(kernels: Sequence[Kernel], spec: Spec, gpu: Gpu) -> list[Kernel]:
    """Those that compute ``spec`` by default."""
    able = [k for k in kernels if spec.op in k.ops and k.supports(spec, gpu)]
    return [k for k in able if k.supports(spec.with_parameters(k.space(spec, gpu)[0]), gpu)]
