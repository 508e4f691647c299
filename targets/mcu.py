"""Microcontrollers: integers alone, as C99 that any compiler of the chip takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..compiler.errors import DoesNotFit
from ..compiler.ir import Graph
from ..compiler.lower.emit_c import emit as print_c
from ..compiler.lower.emit_c import emit_header, lower_for_c
from ..compiler.lower.model_c import ALIGNMENT, write_model
from ..kernels.lanes import Lanes
from ..passes.base import Pass
from ..passes.budget import DEFAULT, Budgets
from ..passes.fewer_digits import FewerDigits
from ..passes.fuse_epilogues import FuseEpilogues
from ..passes.select_kernels import Tuned, untuned
from ..passes.tile_rows import TileRows
from . import placement
from .code_size import Code, estimated, measured
from .fit import does_not_fit
from .instructions import Prediction, predicted
from .lanes_dsp import Dsp
from .package import package
from .parts import check_mode, integer_passes, kernel_functions
from .prices import prices_of
from .registry import Core

MODES = ("int8",)
MEMORIES = placement.MEMORIES
THREADS = 1  # at most
BYTES_A_LINE = 20


@dataclass(frozen=True)
class Machine:
    """What code is made for: one number at a time, or pairs of them; no features beyond C."""

    lanes: Lanes = field(default_factory=Lanes)
    features: tuple[str, ...] = ()


def machine(core: Core) -> Machine:
    """The machine that ``core`` describes."""
    return Machine(Dsp()) if "dsp" in core.features else Machine()


def passes(
    core: Core,
    mode: str,
    samples: Sequence[tuple[np.ndarray, ...]] = (),
    budgets: Budgets = DEFAULT,
    tuned: Tuned = untuned,
) -> tuple[Pass, ...]:
    """`integer_passes`; ``tuned`` is `SelectKernels`'.

    Raises UsageError for a mode that these targets do not have.
    """
    check_mode(core.name, mode, MODES)
    own = FuseEpilogues(), TileRows()
    lanes, price = machine(core).lanes, prices_of(core.runner).instructions
    return integer_passes(samples, budgets, lanes, False, own, True, price, tuned)


def emit(
    graph: Graph,
    core: Core,
    name: str,
    progress: Callable[[str], None] = lambda _: None,
    golden: Mapping[str, np.ndarray] | None = None,
) -> dict[str, bytes]:
    """The compiled model as C: the driver and its header, the kernels and theirs, the weights.

    They lie in ``src/``. With ``golden`` pairs come a self-test, and all else of a `package`.
    """
    symbols, functions = kernel_functions(graph, machine(core).lanes, name, progress)
    progress(f"printing {len(functions)} kernels as C")
    lowered = [lower_for_c(function) for function in functions.values()]
    kernels_header = f"{name}_kernels.h"
    model = write_model(graph, name, symbols, kernels_header)
    guard = f"BUTTERFLYC_{name.upper()}_KERNELS_H"
    sources = {
        f"{name}.h": model.header,
        f"{name}.c": model.source,
        kernels_header: emit_header(lowered, guard),
        f"{name}_kernels.c": print_c(lowered),
        f"{name}_weights.c": weights_c(name, model.weights),
    }
    files = {f"src/{file}": text for file, text in sources.items()}
    if golden is not None:
        files |= package(graph, core, name, golden)
    return {file: text.encode() for file, text in files.items()}


def place(
    graph: Graph, core: Core, name: str, files: Mapping[str, bytes] | None = None
) -> placement.Placement:
    """Where the model goes on ``core``; with its ``files`` its code is measured, if it can be.

    Raises DoesNotFit: without files only for what is known exactly, which is all but the code.
    """

    code = (measured(files, name, core) if files else None) or estimated(graph)
    placed = _on(core, code, graph)
    if not (placed if files else _on(core, Code(0), graph)).fits:
        raise misfit(graph, placed)
    return placed


def misfit(graph: Graph, placed: placement.Placement) -> DoesNotFit:
    """What is said of a model that is ``placed`` where it does not fit."""
    core, code = placed.core, placed.code

    def coarser(digits: int) -> placement.Placement:
        steps = passes(core, "int8")
        again = [step.name for step in steps].index("tile_rows")
        fewer = FewerDigits(digits)(graph)
        for step in steps[again:]:
            fewer = step(fewer)
        return _on(core, code, fewer)

    return does_not_fit(graph, placed, lambda other: _on(other, code, graph), coarser)


def _on(core: Core, code: Code, graph: Graph) -> placement.Placement:
    return placement.place(graph, core, machine(core).lanes, code)


def predict(graph: Graph, core: Core) -> Prediction:
    """The instructions that the model takes on ``core``, as a table of counts has them."""
    return predicted(graph, core, machine(core).lanes)


def weights_c(name: str, weights: bytes) -> str:
    """The weights as one constant array; a macro may put them into a section of their own."""
    upper = name.upper()
    lines = [
        "    " + ", ".join(map(str, weights[i : i + BYTES_A_LINE])) + ","
        for i in range(0, len(weights), BYTES_A_LINE)
    ]
    return "\n".join(
        [
            f"/* The weights of {name}. Made by butterflyc; do not edit.",
            f"   {upper}_WEIGHTS_SECTION may say where they go: __attribute__((section(...))). */",
            f"#ifndef {upper}_WEIGHTS_SECTION",
            f"#define {upper}_WEIGHTS_SECTION",
            "#endif",
            "",
            f"extern const unsigned char {name}_weights[{max(1, len(weights))}];",
            f"{upper}_WEIGHTS_SECTION",
            f"__attribute__((aligned({ALIGNMENT})))",
            f"const unsigned char {name}_weights[{max(1, len(weights))}] = {{",
            *(lines or ["    0"]),
            "};",
            "",
        ]
    )
