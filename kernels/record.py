"""What a kernel file exports: one ``Kernel`` record, and the ``Spec`` that it is asked to serve.

Kernels are leaves. A kernel knows neither graph nor target: it gets a ``Spec`` (op, attributes,
tensors) and ``lanes`` (the vector unit, as data and a handful of expression builders) and returns a
TIR function. TVM is imported inside ``build`` only, so records can be listed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lanes import Lanes


@dataclass(frozen=True)
class Tensor:
    """A dense row-major tensor: ``dtype`` as in the IR, ``shape``, and how it is packed, if so."""

    dtype: str
    shape: tuple[int, ...]
    layout: str | None = None

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.dtype}[{dims}]" + (f" {self.layout}" if self.layout else "")


@dataclass(frozen=True)
class Spec:
    """What is to be computed. ``parameters`` are the kernel's own choices (tile sizes ...)."""

    op: str
    attributes: tuple[tuple[str, Any], ...]
    operands: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    parameters: tuple[tuple[str, int], ...] = ()

    def attribute(self, name: str) -> Any:
        return dict(self.attributes)[name]

    def parameter(self, name: str, default: int) -> int:
        return dict(self.parameters).get(name, default)

    def with_parameters(self, parameters: Mapping[str, int]) -> Spec:
        """The same asked of one way to compute it."""
        return replace(self, parameters=tuple(sorted(parameters.items())))

    @property
    def open(self) -> tuple[str, ...]:
        """Attributes whose values each call gives: see `Kernel.numbers`."""
        return tuple(name for name, value in self.attributes if value is None)

    @property
    def digest(self) -> str:
        """A name for this spec that is stable between runs and machines (8 hex digits)."""
        return sha256(repr(self).encode()).hexdigest()[:8]


def no_scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    return ()


def no_layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {}


def one_way(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    return ({},)


def no_knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    return {}


def as_asked(spec: Spec, lanes: Lanes) -> Hashable:
    return spec.parameters


@dataclass(frozen=True)
class Kernel:
    """One way to compute one family of ops.

    ``build(opened(spec), lanes, name)`` returns a TIR ``PrimFunc`` whose parameters are one buffer
    per operand, then per result, then per ``scratch`` tensor, in that order, each contiguous, and
    the ``numbers`` behind them.
    """

    name: str
    ops: tuple[str, ...]
    supports: Callable[[Spec, Lanes], bool]
    build: Callable[[Spec, Lanes, str], Any]
    # Cost in cycles, a model only: it orders kernels that serve the same spec.
    cost: Callable[[Spec, Lanes], float]
    # Buffers that live only while the kernel runs.
    scratch: Callable[[Spec, Lanes], tuple[Tensor, ...]] = field(default=no_scratch)
    # Packed layout wanted for constant operands, by operand number.
    layouts: Callable[[Spec, Lanes], Mapping[int, str]] = field(default=no_layouts)
    # The parameter choices worth trying; the first is the default.
    space: Callable[[Spec, Lanes], tuple[Mapping[str, int], ...]] = field(default=one_way)
    # Values of every parameter that a tuner may choose, by name; it tries what `supports` takes.
    knobs: Callable[[Spec, Lanes], Mapping[str, tuple[int, ...]]] = field(default=no_knobs)
    # What parameters come to: the same only for functions that do the same in the same order.
    plan: Callable[[Spec, Lanes], Hashable] = field(default=as_asked)
    # Attributes that a function takes as int32 parameters behind its buffers, in the order of a
    # spec's attributes: one function serves all their values.
    numbers: tuple[str, ...] = ()

    # Attributes that say nothing to this kernel.
    ignored: tuple[str, ...] = ()

    def opened(self, spec: Spec) -> Spec:
        """``spec`` without the values of ``numbers`` and what is ``ignored``, for ``build``."""
        said = [(k, v) for k, v in spec.attributes if k not in self.ignored]
        attributes = ((k, None if k in self.numbers else v) for k, v in said)
        return replace(spec, attributes=tuple(attributes))

    def ways(self, spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
        """Parameters that a tuner may try: those of `space`, the default first, then of `knobs`.

        A combination of knobs that comes to the same as one before it is left out.
        """

        listed = [w for w in self.space(spec, lanes) if self._serves(spec, w, lanes)]
        known = {self.plan(spec.with_parameters(way), lanes) for way in listed}
        others = self.combinations(spec, lanes).items()
        return (*listed, *(way for plan, way in others if plan not in known))

    def combinations(self, spec: Spec, lanes: Lanes) -> dict[Hashable, Mapping[str, int]]:
        """A combination of all knobs, by what it comes to; of several that do, the first."""
        found: dict[Hashable, Mapping[str, int]] = {}
        if knobs := self.knobs(spec, lanes):
            for values in product(*knobs.values()):
                way = dict(zip(knobs, values, strict=True))
                if self._serves(spec, way, lanes):
                    found.setdefault(self.plan(spec.with_parameters(way), lanes), way)
        return found

    def _serves(self, spec: Spec, way: Mapping[str, int], lanes: Lanes) -> bool:
        return self.supports(spec.with_parameters(way), lanes)

    def arguments(self, spec: Spec) -> tuple[int, ...]:
        """The values of ``numbers`` for a call of the function that serves ``spec``."""
        return tuple(int(v) for k, v in spec.attributes if k in self.numbers)
