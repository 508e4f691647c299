"""Compiling: capture, recognise, the target's passes in order, emit, one artefact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from .compiler.artefact import Artefact
from .compiler.capture.export import capture
from .compiler.capture.recognise import LayerReport, recognise
from .compiler.capture.recognise_claims import check_claims
from .compiler.codes import interpret_real
from .compiler.errors import UsageError
from .compiler.files import make_folder, write_whole
from .compiler.ir import Graph, verify
from .compiler.ir.views import root_of
from .compiler.lower.model_c import check_name, step_names, threads_of
from .compiler.run.user_mode import EMULATORS
from .compiler.tensors import pack_arrays
from .explain import Record
from .passes.base import Pass
from .passes.budget import Budgets
from .passes.select_kernels import Tuned, untuned
from .placed import programs_of
from .program import Program, stage_section
from .quantization import quantization_report
from .report import report_sections
from .source import Source, open_model
from .targets.memories import sized
from .targets.registry import Core, family_of, load_core
from .tuning.records import records_for

Progress = Callable[[str], None]
GOLDEN_ROWS = 8


def compile(
    model: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    target: str = "host",
    mode: str | None = None,
    calibration: Any = None,
    weight_snr: float | None = None,
    threads: int = 1,
    act_bits: int | None = None,
    angles: str | None = None,
    prefer: str | None = None,
    name: str = "bfly",
    target_file: str | Path | None = None,
    memories: Mapping[str, str | int] | None = None,
    records: str | Path | bool = True,
    dump_ir: str | Path | None = None,
    keep_stages: bool = False,
    record: Record | None = None,
    progress: Progress = lambda _: None,
) -> Program:
    """Compile ``model`` for ``target``.

    ``model`` is a torch module or exported program with ``example_inputs``, or a string:
    ``model.pt2``, ``file.py:function`` or ``checkpoint.safetensors``. ``example_inputs`` are the
    arguments of forward, a tuple, or a dict by their names: tensors in them are the inputs of the
    program, anything else is fixed (docs/inputs_and_outputs.md). ``mode`` is a numeric mode of the
    target, by default its first; ``calibration`` are samples by which int8 chooses its scales: rows
    of the one input. In int8 dense weights have as few digits as keep ``weight_snr``, a signal to
    noise in dB, of 40 by default (docs/modes.md). In a8 activations are codes of ``act_bits`` bits,
    8 by default, or 7 for cores without dot products. In any mode ``angles`` of rotations may be
    rounded: to ``i8``, 256 of a turn, ``i16``, or ``f16`` (docs/modes.md). In int8 kernels are
    chosen by what ``prefer`` says: by default ``speed``, or the ``size`` of their constants.
    ``threads`` of a CPU compute at once, at most, with the same result for any number of them
    (docs/threads.md).
    ``dump_ir`` names a folder that gets the text of each stage as it is made, so that a failed pass
    leaves something to look at; ``record`` gets what was recognised and each stage, also of a
    compilation that fails.

    ``memories`` are a board's that differ from what `targets` says: ``{"flash": "8M", "partition":
    "3M", "sram": "200K", "psram": "8M"}``, or some of these. ``records`` say which kernels `tune`
    measured best (docs/tuning.md): a file of them, by default the user's own; none with False.

    Raises UnknownName (target, memory), UsageError (mode, name, size, budget, threads), BadInput
    (examples, NaN weights), Unsupported (ops, listed with source lines), DoesNotFit, ToolMissing
    (no C compiler).
    """
    check_name(name)
    core = load_core(target, Path(target_file) if target_file else None)
    family = family_of(core)
    core = sized(core, memories or {}, family.MEMORIES)
    mode = mode or family.MODES[0]
    _check_threads(threads, core, family.THREADS)
    given = {"weight_snr": weight_snr, "act_bits": act_bits, "angles": angles, "prefer": prefer}
    budgets = Budgets.asked(mode, **given)
    source = replace(open_model(model, example_inputs, progress), budgets=budgets)
    if calibration is not None:
        source = replace(source, calibration=np.asarray(calibration))
    record = record or Record()
    dump = Path(dump_ir) if dump_ir else None
    known = records_for(core, records)
    built = lower(source, core, mode, name, dump, record, progress, threads, known.tuned)
    if family.MEMORIES:
        family.place(built.last, core, name)  # what cannot fit is told before kernels are built
    golden = _golden(source, built.last)
    files = family.emit(built.last, core, name, progress, golden)
    reports = {}
    if family.MEMORIES:
        progress("placing")
        placed = family.place(built.last, core, name, files)
        took = family.predict(built.last, core)
        reports = report_sections(built, placed, files, golden, took)
    if "quantize" in built.stages:
        progress("measuring what integers cost")
        built.record.quantization = _cost_of_integers(built.stages, source)
    tuning = known.taken(built.unselected, built.last, built.passes)
    program = _assemble(built, source, files, golden, keep_stages, reports, tuning)
    if core.runner not in EMULATORS:
        return program
    # Who takes it to its machine may have no compiler. One for this machine is made when asked for.
    made = {f"kernels/{name}": code for name, code in programs_of(program, progress).items()}
    sections = {**program.artefact.sections, **made}
    return Program(Artefact(program.manifest, sections), program.fresh_stages)


def _check_threads(threads: int, core: Core, most: int) -> None:
    if not 1 <= threads <= most:
        some = f"1 to {most} threads" if most > 1 else "one thread"
        raise UsageError(
            f"{threads} threads for {core.name}, which takes {some}",
            help="as many as the CPU has cores are enough" if most > 1 else "leave it out",
        )


@dataclass(frozen=True)
class Lowered:
    """A model after all ``passes``: what it was lowered for, and the record of how."""

    core: Core
    mode: str
    name: str
    record: Record
    passes: tuple[Pass, ...]

    @property
    def stages(self) -> Mapping[str, Graph]:
        return self.record.stages

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        return self.record.layers or ()

    @property
    def last(self) -> Graph:
        return self.stages[list(self.stages)[-1]]

    @property
    def unselected(self) -> Graph:
        """The graph whose kernels are to be chosen."""
        return self.stages[before_kernels(list(self.stages))]


def before_kernels(stages: Sequence[str]) -> str:
    """The name of the stage whose kernels are to be chosen."""
    return stages[stages.index("select_kernels") - 1]


def lower(
    source: Source,
    core: Core,
    mode: str,
    name: str,
    dump: Path | None = None,
    record: Record | None = None,
    progress: Progress = lambda _: None,
    threads: int = 1,
    tuned: Tuned = untuned,
) -> Lowered:
    """Capture, recognise, and run the target's passes; every stage is verified and recorded."""
    samples = source.samples(progress) if mode == "int8" else ()
    several = {"threads": threads} if threads > 1 else {}
    family = family_of(core)
    passes = family.passes(core, mode, samples, source.budgets, **several, tuned=tuned)
    record = record or Record()
    stages = _Stages(record.stages, dump)
    progress("capturing with torch.export")
    captured = capture(source.module, source.examples, name=name, progress=progress)
    stages.add("capture", captured.graph)
    recognised = recognise(captured.graph, progress=progress)
    record.layers, record.claims = recognised.layers, recognised.claims
    check_claims(recognised.claims)
    graph = stages.add("recognise", recognised.graph)
    for step in passes:
        progress(f"pass {step.name}")
        graph = stages.add(step.name, step(graph))
    return Lowered(core, mode, name, record, passes)


class _Stages:
    """The graph after each step: verified, kept, and written out if a folder is given."""

    def __init__(self, graphs: dict[str, Graph], folder: Path | None) -> None:
        self.graphs = graphs
        self._folder = folder
        if folder is not None:
            make_folder(folder)

    def add(self, step: str, graph: Graph) -> Graph:
        if self._folder is not None:
            # Before it is verified: the text of a bad graph is what one wants to see.
            file = Path(stage_section(len(self.graphs), step)).name
            write_whole(self._folder / file, [str(graph).encode() + b"\n"])
        verify(graph, after=step)
        self.graphs[step] = graph
        return graph


def _cost_of_integers(stages: Mapping[str, Graph], source: Source) -> dict[str, Any]:
    """The stage in front of quantize against the one behind it, on what scales were chosen by."""
    names = list(stages)
    before = stages[names[names.index("quantize") - 1]]
    return quantization_report(before, stages["quantize"], source.samples())


def _golden(source: Source, last: Graph) -> dict[str, np.ndarray]:
    """Inputs with what eager PyTorch and the interpreter (same mode) make of them.

    The inputs are the examples and, if there is one input, samples of the calibration set.
    """
    pairs: dict[str, np.ndarray] = {}
    arrays = source.arrays
    samples = [arrays]
    if source.calibration is not None and len(arrays) == 1:
        samples += source.samples()[:GOLDEN_ROWS]
    for i, sample in enumerate(samples):
        for kind, values in (
            ("input", sample),
            ("eager", source.eager(sample)),
            ("expected", interpret_real(last, *sample)),
        ):
            pairs |= {f"{i:03}.{kind}.{j}": np.asarray(v, order="C") for j, v in enumerate(values)}
    return pairs


def _samples_are_independent(source: Source) -> bool:
    """Whether two batches computed at once give what each gives alone."""
    arrays, alone = source.arrays, source.eager(source.arrays)
    if any(a.ndim == 0 for a in (*arrays, *alone)):
        return False
    other = tuple(np.roll(a, 1, axis=-1) for a in arrays)
    both = tuple(np.concatenate(pair) for pair in zip(arrays, other, strict=True))
    try:
        together, apart = source.eager(both), zip(alone, source.eager(other), strict=True)
    except Exception:  # the model, or its exported program, takes no other batch size
        return False
    return all(
        y.shape == (len(a) + len(b), *a.shape[1:])
        and np.allclose(y, np.concatenate((a, b)), rtol=1e-4, atol=1e-4 * float(np.abs(a).max()))
        for y, (a, b) in zip(together, apart, strict=True)
    )


def _assemble(
    built: Lowered,
    source: Source,
    files: Mapping[str, bytes],
    golden: Mapping[str, np.ndarray],
    keep_stages: bool,
    reports: Mapping[str, bytes],
    tuning: Mapping[str, Any],
) -> Program:
    last, stages, layers = built.last, built.stages, built.layers
    sections = {f"kernels/{file}": content for file, content in files.items()}
    sections |= reports
    for i, (step, graph) in enumerate(stages.items()):
        sections[stage_section(i, step)] = f"{graph}\n".encode()
    sections["weights.safetensors"] = pack_arrays(last.constants)
    if keep_stages:
        every = {k: v for g in stages.values() for k, v in g.constants.items()}
        sections["stages.safetensors"] = pack_arrays(every)
    sections["golden.safetensors"] = pack_arrays(golden)
    report = built.record.explanation()
    sections["report.json"] = json.dumps(report, indent=1, sort_keys=True).encode()
    threads = threads_of(last, built.name)
    manifest = {
        "name": built.name,
        "target": built.core.name,
        "core": attrs.asdict(built.core),
        "mode": built.mode,
        **source.budgets.said(built.mode),
        **ports(last),
        "stages": list(stages),
        "census": {
            "layers": len(layers),
            "recognised": sum(layer.recognised == "full" for layer in layers),
            "found": sum(layer.experts_found for layer in layers),
            "choosable": sum(layer.experts for layer in layers),
        },
        "memory": {
            "weights": sum(array.nbytes for array in last.constants.values()),
            "arena": last.notes.get("arena_bytes", 0),
            "arena_lower_bound": last.notes.get("arena_lower_bound", 0),
            **({"arena_mt": threads.bytes} if threads.count > 1 else {}),
        },
        "routing": _routing(last),
        "steps": step_names(last),
        "splits": _samples_are_independent(source),
        "cpu_features": list(family_of(built.core).machine(built.core).features),
        "tools": tool_versions(),
        "tuning": tuning,
        **({"threads": threads.count} if threads.count > 1 else {}),
    }
    return Program(Artefact(manifest, sections), stages)


def ports(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """The manifest's ``inputs`` and ``outputs``."""
    return {
        "inputs": _ports([node.name for node in graph.inputs], graph.inputs),
        "outputs": _ports(graph.results, graph.outputs),
    }


def _ports(names: Sequence[str], nodes: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": node.type.dtype, "shape": list(node.type.shape)}
        | ({} if node.type.scale is None else {"scale": node.type.scale})
        for name, node in zip(names, nodes, strict=True)
    ]


def _routing(graph: Graph) -> list[dict[str, Any]]:
    """Where the chosen experts of each routed layer lie after a run: in the arena, or an output."""
    leaving = {root_of(node): i for i, node in reversed(list(enumerate(graph.outputs)))}
    found: list[dict[str, Any]] = []
    for node in graph.nodes:
        if node.op == "top_k" and "at" in node.notes:
            at = node.notes["at"][1]  # type: ignore[index]
            place = {"output": leaving[node, 1]} if (node, 1) in leaving else {"at": at}
            type = node.types[1]
            found.append(
                {"name": node.name, "dtype": type.dtype, "shape": list(type.shape), **place}
            )
    return found


def tool_versions() -> dict[str, str]:
    from . import __version__

    found = {"butterflyc": __version__}
    for package in ("torch", "apache-tvm", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
