"""The whole benchmark: ceilings, checks, tuning, times; what is most wanted comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...compiler.errors import unknown_name
from ...compiler.files import write_whole
from ...kernels.record import Kernel
from ...targets.cuda import kernels as all_kernels
from ...targets.tuned import Entry, Tuned, file_name, to_json
from . import checks as checking
from . import report
from .ceilings import ceilings
from .device import Clock, Device, DeviceLost
from .device import find as find_device
from .document import Document, now
from .layer import Bench
from .measure import ERRORS, reason
from .points import Point, points, rehearsed_points, tuned_shapes
from .tuning import MOST_EXPERTS, Layers, tune

# Seconds of each step at most; all of it is under ten minutes.
SECONDS, CHECK_SECONDS, TUNE_SECONDS = 540.0, 100.0, 150.0
# Of a point's measuring, at most; and what is left for tables and files at the end.
POINT_SECONDS, END_SECONDS = 2.0, 10.0
# What torch.compile may take for a point.
COMPILE_SECONDS = 60.0
REHEARSED_EXPERTS = 4
FAILED = 1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """``skip``: names of kernels that are not run. ``out``: the folder of what is written."""

    out: Path
    dtype: str = "bf16"
    seconds: float = SECONDS
    rehearsal: bool = False
    tune: bool = True
    skip: tuple[str, ...] = ()


def run(options: Options, progress: Progress) -> int:
    """The exit status: 1 if a kernel failed its check, or was not run; Ctrl-C ends it early.

    Raises ToolMissing where there is no GPU, UnknownName for a kernel to skip that is not there,
    DeviceLost for a kernel after which nothing can be done in this process.
    """
    clock = Clock(options.seconds)
    kernels = chosen(options.skip)
    with TemporaryDirectory(prefix="butterflyc-bench-") as folder:
        device = find_device(Path(folder), options.rehearsal)
        document = Document(options.out, device, options.dtype, now())
        skipped = [f"{name} was skipped: not checked, not timed" for name in options.skip]
        document.add("faults", *skipped)
        try:
            _steps(options, kernels, device, document, clock, progress)
            document.put(complete=True)
        except KeyboardInterrupt:
            progress("stopped: what was found so far is kept")
            document.add("faults", "stopped before the end")
        except DeviceLost as lost:
            document.add("faults", str(lost))
            raise
    picture = document.path.with_suffix(".png")
    report.show(document.data)
    for path in (document.path, *([picture] if report.plot(document.data, picture) else [])):
        progress(f"wrote {path}")
    return FAILED if document.data["faults"] else 0


def chosen(skip: Sequence[str]) -> tuple[Kernel, ...]:
    """All kernels but those to skip. Raises UnknownName."""
    kernels = all_kernels()
    names = [kernel.name for kernel in kernels]
    for name in skip:
        if name not in names:
            raise unknown_name("kernel", name, names)
    return tuple(kernel for kernel in kernels if kernel.name not in skip)


def _steps(
    options: Options,
    kernels: tuple[Kernel, ...],
    device: Device,
    document: Document,
    clock: Clock,
    progress: Progress,
) -> None:
    document.put(ceilings=ceilings(device, progress))
    faulty = _check(kernels, device, document, clock.part(CHECK_SECONDS), progress)
    sound = tuple(kernel for kernel in kernels if kernel.name not in faulty)
    most = REHEARSED_EXPERTS if device.rehearsal else MOST_EXPERTS
    layers = Layers(device, options.dtype, most)
    todo = rehearsed_points() if device.rehearsal else points()
    shapes = tuned_shapes(todo) if options.tune else []
    tuning = tune(sound, shapes, layers, device, clock.part(TUNE_SECONDS), progress)
    entries = tuning.entries()
    if entries:
        made = _tuned(entries, device, document)
        path = document.path.with_name(f"tuned-{file_name(device.name)}")
        write_whole(path, [to_json(made)])
        progress(f"wrote {path}: copy it to targets/tuned/ to compile with it")
    document.put(tuning=tuning.tried)
    _time(todo, Bench(sound, layers, tuning, device), document, clock, progress)


def _check(
    kernels: tuple[Kernel, ...],
    device: Device,
    document: Document,
    clock: Clock,
    progress: Progress,
) -> set[str]:
    """The kernels that failed a check of what is timed."""
    faulty = set()
    found = []
    mode = document.data["dtype"]
    for result in checking.run(checking.checks(kernels, device), device, clock, progress):
        found.append(result)
        if not result["fault"]:
            continue
        where = f"{result['kernel']} {result['mode']} {result['shape']} {result['routing']}"
        line = f"{where} asm={result['asm']}: {result['fault']}"
        if result["fault"] == checking.NOT_RUN:
            document.add("not_measured", line)
            continue
        document.add("faults", line)
        # What is timed is in one mode, with inline assembly.
        if result["mode"] == mode and result["asm"]:
            faulty.add(result["kernel"])
    document.put(checks=found)
    return faulty


def _time(
    todo: Sequence[Point], bench: Bench, document: Document, clock: Clock, progress: Progress
) -> None:
    progress("compiling what the points need")
    bench.compile(todo, clock.part(TUNE_SECONDS / 2))
    for done, point in enumerate(todo):
        if point.compiled and clock.left < COMPILE_SECONDS:
            document.add("not_measured", str(point))
            continue
        if clock.left < END_SECONDS:
            document.add("not_measured", *map(str, todo[done:]))
            return
        share = (clock.left - END_SECONDS) / (len(todo) - done) / 2
        try:
            found = bench.measure(point, min(POINT_SECONDS, share), progress)
        except ERRORS as error:
            document.add("not_measured", f"{point}: {reason(error)}")
        else:
            document.add("points", found.as_dict())
            document.add("faults", *(f"{point} {n}: {why}" for n, why in found.faults.items()))
            del found
        try:
            bench.device.release()
        except RuntimeError as lost:
            document.add("faults", f"the GPU is unusable since {point}: {reason(lost)}")
            document.add("not_measured", *map(str, todo[done + 1 :]))
            return


def _tuned(entries: tuple[Entry, ...], device: Device, document: Document) -> Tuned:
    versions = document.data["versions"]
    return Tuned(device.name, device.gpu.capability, versions["triton"], versions["torch"], entries)
