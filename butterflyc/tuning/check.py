"""What can be said of the ways of a GPU's kernels where no GPU is: that they compile, and what
their code takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import attrs

from ..compiler.errors import UsageError
from ..kernels.gpu.launch import Gpu, Launch
from ..targets import cuda
from .calls import Call
from .meter_gpu import planned
from .search import Way
from .subject import Told, subject_of
from .tuner import budget_of

if TYPE_CHECKING:
    from ..bench.gpu.device import Codes


# Kernels that are compiled between two looks at the clock.
BATCH = 8


@attrs.frozen
class Checked:
    """A way of a call, and the most that one of its kernels takes; or what is wrong with it.

    ``registers`` of a thread, ``shared`` bytes of a block, ``spills``: loads and stores of what
    registers do not hold; ``tensor_core`` instructions of all its kernels.
    """

    call: Call
    way: Way
    registers: int = 0
    shared: int = 0
    spills: int = 0
    tensor_core: int = 0
    fault: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it is what `compile` takes where nothing was measured."""
        return self.way == self.call.ways[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        figures = attrs.asdict(self, filter=attrs.filters.exclude("call", "way"))
        way = {"kernel": self.way.kernel, "parameters": dict(self.way.parameters)}
        return {"call": self.call.key, **way, "default": self.is_default, **figures}


def check(
    model: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    budget: str = "5m",
    only: str = "",
    progress: Told = lambda _: None,
    **asked: Any,
) -> list[Checked]:
    """Compile the ways that `tune` would time on a GPU, on a machine that needs none.

    ``model``, ``example_inputs`` and what else is ``asked`` are as `subject_of` takes them, and
    ``only`` and ``budget`` as `tune` does: of each call so many ways, or those that there is
    time for.
    Nothing is measured and nothing recorded. Raises UsageError where the target is no GPU,
    ToolMissing without Triton, and what `subject_of` and its calls raise.
    """
    from ..bench.gpu.device import launches_of

    spent = budget_of(budget)
    subject = subject_of(model, example_inputs, progress=progress, **asked)
    core = subject.core
    if core.family != "cuda":
        raise UsageError(
            f"{core.name} is no GPU: what is checked there is measured as well",
            help="tune without --check",
        )
    gpu = cuda.machine(core).lanes
    ways = [(call, way) for call in subject.calls(only) for way in call.ways[: spent.trials]]
    plans = [launches_of(planned(call.spec, way, gpu).plan) for call, way in ways]
    progress(f"compiling what {len(ways)} ways launch")
    with TemporaryDirectory(prefix="butterflyc-triton-") as folder:
        codes, failed = _compiled(plans, gpu, Path(folder), spent.seconds)
    return [
        _checked(call, way, launches, codes, failed, gpu)
        for (call, way), launches in zip(ways, plans, strict=True)
    ]


def _compiled(
    plans: Sequence[Sequence[Launch]], gpu: Gpu, folder: Path, seconds: float | None
) -> tuple[Codes, dict[str, str]]:
    from ..bench.gpu.device import Clock, Codes

    codes = Codes(gpu.capability, folder, BATCH)
    every = (launch for launches in plans for launch in launches)
    clock = Clock(float("inf") if seconds is None else seconds)
    return codes, codes.add(every, clock, spilling=True)


def _checked(
    call: Call,
    way: Way,
    launches: Sequence[Launch],
    codes: Codes,
    failed: Mapping[str, str],
    gpu: Gpu,
) -> Checked:
    symbols = [launch.symbol for launch in launches]
    if faults := sorted({failed[symbol] for symbol in symbols if symbol in failed}):
        return Checked(call, way, fault="; ".join(faults))
    uses = [codes.uses[symbol] for symbol in symbols]
    shared = max((codes.found[symbol].shared for symbol in symbols), default=0)
    over = f"asks for {shared:,} bytes of shared memory, a block has {gpu.shared_bytes:,}"
    return Checked(
        call,
        way,
        max((use.registers for use in uses), default=0),
        shared,
        max((use.spills for use in uses), default=0),
        sum(use.tensor_core for use in uses),
        over if shared > gpu.shared_bytes else "",
    )
