"""How ways are measured on a core: by the best that this machine has for it.

A file ``meter_*.py`` beside this one is one kind of measurement. It exports ``meter(core)``, which
gives a `Meter`, or None for cores that it does not measure.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ..compiler.errors import ToolMissing, Unsupported
from ..targets.registry import Core
from . import meter_arm, meter_bare, meter_board, meter_gpu, meter_host
from .measure import HERE, Meter
from .trial import Task, Tools

# Raised by hand when a change of ours makes other code of the same kernels and parameters: a test
# knows the code of some, and tells. What was measured before is then a hint and no more.
EPOCH = 1
KINDS = meter_host, meter_arm, meter_bare, meter_gpu


def meter_of(core: Core, place: str = HERE) -> Meter:
    """The meter for ``core``: here, or on the board at ``place``, as ``ssh:pi@raspberrypi.local``.

    Raises Unsupported where none of ours measures it, UsageError for another place, ToolMissing.
    """
    if place != HERE:
        return meter_board.meter_at(core, place)
    for kind in KINDS:
        found: Meter | None = kind.meter(core)
        if found is not None:
            return found
    raise Unsupported(
        f"nothing here measures kernels for {core.name}",
        help="tune for this machine or its GPU, for an ARM core, or for a microcontroller that is "
        "emulated: `butterflyc targets` lists them",
    )


def tools(core: Core) -> Tools:
    """What makes code for ``core`` here. Raises ToolMissing without it."""
    compiler = "triton" if core.family == "cuda" else "apache-tvm"
    try:
        return Tools(f"{compiler} {version(compiler)}", EPOCH)
    except PackageNotFoundError as error:
        extra = "gpu" if core.family == "cuda" else "compile"
        raise ToolMissing(
            f"{compiler} is not installed, which makes the kernels of {core.name}",
            help=f'pip install "butterflyc[{extra}]"',
        ) from error


def task_of(meter: Meter, key: str = "") -> Task:
    """The task of measuring the call ``key``. Raises ToolMissing."""
    return Task(key, meter.target, meter.features(), meter.method, meter.instrument())
