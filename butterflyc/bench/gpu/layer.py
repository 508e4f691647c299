"""One point: our ways, PyTorch's ways with the same layer, and standard mixtures, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ...kernels.gpu import grouped_product
from ...kernels.gpu.launch import Launch, Plan
from ...kernels.record import Kernel
from ..timing import Row
from . import eager, ours
from .contender import FEW_TOKENS, Contender, active_experts, draws_for
from .device import Clock, Device, launches_of
from .measure import ERRORS, Figure, disagreeing, fastest, interleaved, ratio, reason
from .points import EAGER, Point, wanted
from .problem import Draw, Shape, spec
from .standard import Mixtures, tiled_plan
from .tuning import Layers, Tuning

SUITE = "gpu"
# Seconds for the ways of one grouped product, and parts of a point's time for each comparison.
TRIAL_SECONDS, FIXED_PART, ROUTED_PART = 0.02, 0.6, 0.3
# Names of our fastest way the second time, for the spread, and with routing in the call.
AGAIN, ROUTED = "ours again", "ours routed"
REHEARSED_WAYS = 1
# That compiling what a point needs may take.
COMPILE_SECONDS = 60.0


@dataclass
class Measured:
    """What was found at a point. ``left_out``: why contenders have no figure."""

    point: Point
    active: int
    figures: dict[str, Figure] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, str]:
        """Of what was left out, ours."""
        return {name: why for name, why in self.left_out.items() if "differs" in why}

    def as_dict(self) -> dict[str, Any]:
        s = self.point.shape
        return {
            "d": s.channels,
            "F": s.outputs,
            "E": s.experts,
            "T": s.tokens,
            "routing": self.point.routing,
            "compiled": self.point.compiled,
            "active_experts": self.active,
            "figures": {name: figure.as_dict() for name, figure in self.figures.items()},
            "left_out": self.left_out,
            "rows": [row.as_dict() for row in self.rows],
        }


class Bench:
    """What all points share."""

    def __init__(
        self, kernels: Sequence[Kernel], layers: Layers, tuning: Tuning, device: Device
    ) -> None:
        self.kernels, self.layers, self.tuning, self.device = kernels, layers, tuning, device

    def compile(self, points: Sequence[Point], clock: Clock) -> None:
        """Compiles what the points need together, which is faster than for one after another."""
        launches: list[Launch] = []
        for point in points:
            launches += self._tiled_launches(point.shape)
            for found in self._ways(point):
                launches += launches_of(found.plan)
        self.device.compile(launches, clock, spilling=True)

    def measure(self, point: Point, seconds: float, progress: Callable[[str], None]) -> Measured:
        """The figures of one point, in about ``seconds`` beside what it takes to prepare."""
        progress(f"timing {point}")
        draws = draws_for(self.device, point.shape, point.routing)
        found = Measured(point, active_experts(draws))
        mixtures = Mixtures(point.shape, self.layers.dtype, self.device, found.active)
        made = self._contenders(found, mixtures, draws)
        sound = self._sound(found, made, draws)
        self._time(found, sound, draws, seconds * FIXED_PART)
        best = fastest(found.figures, "ours")
        if best is not None:
            self._again(found, best, mixtures, draws, seconds * ROUTED_PART)
            found.rows += rows(found, best)
        return found

    def _time(
        self, found: Measured, contenders: Sequence[Contender], draws: list[Draw], seconds: float
    ) -> None:
        figures, left_out = interleaved(self.device, contenders, draws, seconds)
        found.figures |= figures
        found.left_out |= left_out

    def _sound(
        self, found: Measured, made: Sequence[Contender], draws: list[Draw]
    ) -> list[Contender]:
        """Those that agree with the first of their side, eager or of the library."""
        faults = disagreeing(made, draws, self.layers.dtype)
        found.left_out |= faults
        return [c for c in made if c.name not in faults]

    def _contenders(
        self, found: Measured, mixtures: Mixtures, draws: list[Draw]
    ) -> list[Contender]:
        """All that can be made; torch's ways first, which the others must agree with."""
        point, dtype, device = found.point, self.layers.dtype, self.device
        shape, few = point.shape, point.shape.tokens <= FEW_TOKENS
        held = self.layers.weights(shape.channels, shape.outputs)
        both = held, shape, dtype, device
        makers: dict[str, Callable[[], Contender]] = {
            "butterfly sum-first": lambda: eager.contender(
                "butterfly sum-first", *both, found.active, captured=False
            ),
        }
        if point.compiled:
            makers["butterfly compiled"] = lambda: eager.contender(
                "butterfly compiled", *both, found.active, compiled=True
            )
        else:
            makers["butterfly eager"] = lambda: eager.modelled("butterfly eager", *both)
            makers["standard loop"] = mixtures.loop
            if few:
                # With more tokens launches cost nothing, and a graph holds as much memory again.
                makers["butterfly sum-first graph"] = lambda: eager.contender(
                    "butterfly sum-first graph", *both, found.active
                )
        makers["standard grouped_mm"] = mixtures.library
        if few:
            makers["standard gathered"] = lambda: mixtures.gathered(point.compiled)
        makers["standard triton"] = lambda: self._tiled(mixtures, draws)
        makers |= self._ours(point, found.active)
        made = []
        for name, make in makers.items():
            try:
                made.append(make())
            except ERRORS as error:
                found.left_out[name] = reason(error)
        return made

    def _ours(self, point: Point, active: int) -> dict[str, Callable[[], Contender]]:
        """Each of our kernels, with the parameters that were fastest."""
        shape = point.shape
        constants = self.layers.constants(shape.channels, shape.outputs)

        def make(found: ours.Way) -> Contender:
            self._compile(found.plan)
            return ours.contender(found, self.device, constants, shape, active)

        return {found.name: partial(make, found) for found in self._ways(point)}

    def _ways(self, point: Point) -> list[ours.Way]:
        asked, gpu = spec(point.shape, self.layers.dtype), self.device.gpu
        return [
            ours.way(kernel, asked, gpu, self._parameters(kernel, point))
            for kernel in ours.serving(self.kernels, asked, gpu)
        ]

    def _parameters(self, kernel: Kernel, point: Point) -> Mapping[str, int] | None:
        return self.tuning.parameters(kernel, spec(point.shape, self.layers.dtype))

    def _compile(self, plan: Plan) -> None:
        """Raises ValueError with the reason if a plan has no code."""
        launches = launches_of(plan)
        clock = Clock(COMPILE_SECONDS)
        for symbol, why in self.device.compile(launches, clock, spilling=True).items():
            raise ValueError(f"{symbol}: {why}")

    def _tiled_space(self, shape: Shape) -> Sequence[Mapping[str, int]]:
        space = grouped_product.space(shape.tokens)
        return space[:REHEARSED_WAYS] if self.device.rehearsal else space

    def _tiled_launches(self, shape: Shape) -> list[Launch]:
        plans = (tiled_plan(way, shape, self.layers.dtype) for way in self._tiled_space(shape))
        return [launch for plan in plans for launch in launches_of(plan)]

    def _tiled(self, mixtures: Mixtures, draws: list[Draw]) -> Contender:
        """Our grouped kernels with the parameters that are fastest here."""
        space = self._tiled_space(mixtures.shape)
        launches = self._tiled_launches(mixtures.shape)
        failed = self.device.compile(launches, Clock(COMPILE_SECONDS))
        best: Figure | None = None
        for each in space:
            found = tiled_plan(each, mixtures.shape, mixtures.dtype)
            if any(step.symbol in failed for step in launches_of(found)):
                continue
            figures, _ = interleaved(self.device, [mixtures.tiled(each)], draws, TRIAL_SECONDS)
            # Only the best is kept, since each has buffers as large as all hidden rows.
            for figure in figures.values():
                best = figure if best is None or figure.median < best.median else best
        if best is None:
            raise ValueError(f"no way of {len(space)} works: {next(iter(failed.values()), '')}")
        return best.contender

    def _again(
        self,
        found: Measured,
        best: Figure,
        mixtures: Mixtures,
        draws: list[Draw],
        seconds: float,
    ) -> None:
        """Our fastest way twice, for the spread; and with routing in the calls of both sides."""
        name, shape = best.contender.name, found.point.shape
        kernel = next(k for k in self.kernels if k.name == name)
        asked = spec(shape, self.layers.dtype)
        way = ours.way(kernel, asked, self.device.gpu, self._parameters(kernel, found.point))
        constants = self.layers.constants(shape.channels, shape.outputs)
        routed = ours.contender(
            way, self.device, constants, shape, found.active, routed=True, name=ROUTED
        )
        against = [best.contender, replace(best.contender, name=AGAIN), routed]
        standard = found.figures.get("standard grouped_mm")
        if standard is not None:
            against.append(
                replace(mixtures.library(routed=True), name="standard grouped_mm routed")
            )
        tiled = found.figures.get("standard triton")
        if tiled is not None:
            parts = (part.partition("=") for part in tiled.contender.note.split())
            made = mixtures.tiled({key: int(value) for key, _, value in parts}, routed=True)
            against.append(replace(made, name="standard triton routed"))
        figures, left_out = interleaved(self.device, against, draws, seconds)
        found.left_out |= left_out
        first = figures.pop(name, None)
        found.figures |= figures
        if first is not None and AGAIN in figures:
            found.rows.append(row(found.point, "the same again", figures[AGAIN], first, None))


def rows(found: Measured, best: Figure) -> list[Row]:
    """Our fastest way against each contender, and against the fastest of each side."""
    own = (AGAIN, ROUTED)
    fixed = {n: f for n, f in found.figures.items() if not f.contender.routed and n not in own}
    fields: dict[str, tuple[Figure | None, Figure, float | None]] = {
        n: (f, best, None) for n, f in fixed.items() if f.contender.side != "ours"
    }
    goal = None if found.point.routing != "uniform" else wanted(found.point.shape)
    fields["fastest standard"] = fastest(fixed, "standard"), best, goal
    eagers = {n: f for n, f in fixed.items() if f.contender.how == "stream"}
    fields["fastest eager butterfly"] = fastest(eagers, "butterfly"), best, EAGER
    routed = {n: f for n, f in found.figures.items() if f.contender.routed}
    if ROUTED in routed:
        fields["fastest standard, both with routing"] = (
            fastest(routed, "standard"), routed[ROUTED], None,
        )  # fmt: skip
    return [
        row(found.point, name, against, mine, goal)
        for name, (against, mine, goal) in fields.items()
        if against is not None
    ]


def row(point: Point, name: str, against: Figure, mine: Figure, goal: float | None) -> Row:
    times, spread = ratio(against, mine)
    theirs = against.contender.name
    return Row(
        SUITE,
        mine.contender.name,
        str(point),
        "times as fast",
        mine.median * 1e6,
        name if name == theirs else f"{name} ({theirs})",
        times,
        spread,
        target_ratio=goal,
    )
