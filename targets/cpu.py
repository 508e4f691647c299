"""CPUs: kernels through TVM and LLVM, a C driver, one shared library.

The passes stand in the order in which they run.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.errors import unknown_name
from ..compiler.ir import Graph
from ..compiler.lower.link import c_compiler, link_shared
from ..compiler.lower.model_c import write_model
from ..compiler.lower.tir import build_object
from ..compiler.run.native import cpu_features
from ..kernels import all_kernels
from ..kernels.lanes import Lanes
from ..passes.base import Pass
from ..passes.canonicalize import Canonicalize
from ..passes.combine_before_down import CombineBeforeDown
from ..passes.fold_permutations import FoldPermutations
from ..passes.fuse_attention import FuseAttention
from ..passes.fuse_experts import FuseExperts
from ..passes.merge_rotations import MergeRotations
from ..passes.narrow_constants import NarrowConstants
from ..passes.pack_weights import PackWeights
from ..passes.plan_memory import PlanMemory
from ..passes.quantize_activations import QuantizeActivations
from ..passes.quantize_weights import WEIGHT_SNR
from ..passes.select_kernels import SelectKernels
from ..passes.share_expert_matmul import ShareExpertMatmul
from ..passes.split_work import SplitWork
from ..passes.spread_rotations import SpreadRotations
from .lanes_x86 import Avx2
from .parts import check_mode, integer_passes, kernel_functions
from .registry import Core

LANES: dict[str, Lanes] = {"scalar": Lanes(), "avx2": Avx2()}
# The CPU features, as the system names them, that code for a vector unit needs.
FEATURES: dict[str, tuple[str, ...]] = {"scalar": (), "avx2": ("avx2", "fma", "bmi2", "f16c")}
MODES = ("f32", "a8", "int8")
MEMORIES = ()  # no limit that matters
THREADS = 64  # at most


@dataclass(frozen=True)
class Machine:
    """What code is made for: LLVM's view of it, and ours (``lanes``)."""

    target: dict[str, Any]
    lanes: Lanes
    features: tuple[str, ...]


def machine(core: Core) -> Machine:
    """The machine that ``core`` describes; `native` is resolved to the one we run on.

    Raises UnknownName for lanes that we do not have.
    """
    triple, cpu, lanes = core.triple, core.cpu, core.lanes
    if "native" in (triple, cpu, lanes):
        triple, cpu, lanes = host()
    if lanes not in LANES:
        raise unknown_name("vector unit", lanes, LANES)
    description: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    if core.features:
        description["mattr"] = [f"+{feature}" for feature in core.features]
    return Machine(description, LANES[lanes], FEATURES[lanes])


def host() -> tuple[str, str, str]:
    """This machine as (triple, cpu, lanes): vectors where we have them, else portable code."""
    name = platform.machine()
    if name == "x86_64":
        wide = set(FEATURES["avx2"]) <= cpu_features()
        return "x86_64-linux-gnu", "x86-64-v3" if wide else "x86-64", "avx2" if wide else "scalar"
    return f"{name}-linux-gnu", "generic", "scalar"


def passes(
    core: Core,
    mode: str,
    samples: Sequence[tuple[np.ndarray, ...]] = (),
    weight_snr: float = WEIGHT_SNR,
    threads: int = 1,
) -> tuple[Pass, ...]:
    """The pipeline, in order; ``samples`` and ``weight_snr`` are what int8 chooses codes by.

    For more than one of ``threads`` work is split at the end: ``NAME_run`` stays what it is.
    Raises UsageError for a mode that CPUs do not have.
    """
    check_mode(core.name, mode, MODES)
    lanes, kernels = machine(core).lanes, all_kernels()
    split = (SplitWork(kernels, lanes, threads),) if threads > 1 else ()
    if mode == "int8":
        return *integer_passes(samples, weight_snr, lanes, keep_routing=True), *split
    return (
        Canonicalize(),
        MergeRotations(),
        SpreadRotations(lanes.float_lanes),
        FoldPermutations(),
        ShareExpertMatmul(),
        CombineBeforeDown(),
        *((QuantizeActivations(),) if mode == "a8" else ()),
        FuseAttention(),
        FuseExperts(),
        NarrowConstants(),
        SelectKernels(kernels, lanes),
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes, keep_routing=True),
        *split,
    )


def emit(
    graph: Graph,
    core: Core,
    name: str,
    progress: Callable[[str], None] = lambda _: None,
    golden: Mapping[str, np.ndarray] | None = None,
) -> dict[str, bytes]:
    """The compiled model: ``libNAME.so``, its header and driver, and the kernels' object.

    A library holds no ``golden`` pairs: where it runs, those of the artefact can be read.
    """
    built = machine(core)
    symbols, functions = kernel_functions(graph, built.lanes, name, progress)
    progress(f"compiling {len(functions)} kernels for {built.target['mcpu']}")
    objects = build_object(functions, built.target)
    model = write_model(graph, name, symbols)
    progress("linking")
    pool = {f"{name}_pool.c": model.pool.encode()} if model.pool else {}
    return {
        f"lib{name}.so": link_shared(model, objects, c_compiler(core.toolchain)),
        f"{name}.h": model.header.encode(),
        f"{name}.c": model.source.encode(),
        f"{name}_kernels.o": objects,
        **pool,
    }
