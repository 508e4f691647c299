"""CPUs: kernels through TVM and LLVM, a C driver, one shared library.

The passes stand in the order in which they run.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.errors import UsageError, unknown_name
from ..compiler.ir import Graph, Node
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
from ..passes.quantize import Quantize
from ..passes.quantize_activations import QuantizeActivations
from ..passes.select_kernels import SelectKernels, kernel_of, spec_of
from ..passes.share_expert_matmul import ShareExpertMatmul
from ..passes.spread_rotations import SpreadRotations
from .lanes_x86 import Avx2
from .registry import Core

LANES: dict[str, Lanes] = {"scalar": Lanes(), "avx2": Avx2()}
# The CPU features, as the system names them, that code for a vector unit needs.
FEATURES: dict[str, tuple[str, ...]] = {"scalar": (), "avx2": ("avx2", "fma", "bmi2", "f16c")}
MODES = ("f32", "a8", "int8")


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
    core: Core, mode: str, samples: Sequence[tuple[np.ndarray, ...]] = ()
) -> tuple[Pass, ...]:
    """The pipeline, in order; ``samples`` are what int8 chooses its scales by.

    Raises UsageError for a mode that CPUs do not have.
    """
    if mode not in MODES:
        raise UsageError(
            f"target {core.name} has no mode '{mode}'", help=f"modes: {', '.join(MODES)}"
        )
    lanes, kernels = machine(core).lanes, all_kernels()
    if mode == "int8":
        return (
            Canonicalize(),
            MergeRotations(),
            FoldPermutations(),
            ShareExpertMatmul(),
            CombineBeforeDown(),
            Quantize(samples),
            SelectKernels(kernels, lanes),
            PackWeights(kernels, lanes),
            PlanMemory(kernels, lanes, keep_routing=True),
        )
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
    )


def emit(
    graph: Graph, core: Core, name: str, progress: Callable[[str], None] = lambda _: None
) -> dict[str, bytes]:
    """The compiled model: ``libNAME.so``, its header and driver, and the kernels' object."""
    built, kernels = machine(core), all_kernels()
    symbols: dict[Node, str] = {}
    functions: dict[str, Any] = {}
    for node in graph.nodes:
        if "kernel" not in node.notes:
            continue
        spec = spec_of(node)
        symbols[node] = f"{name}_k_{node.notes['kernel']}_{spec.digest}"
        if symbols[node] not in functions:
            progress(f"kernel {node.notes['kernel']} for {node.name}")
            kernel = kernel_of(node, kernels)
            functions[symbols[node]] = kernel.build(spec, built.lanes, symbols[node])
    progress(f"compiling {len(functions)} kernels for {built.target['mcpu']}")
    objects = build_object(functions, built.target)
    model = write_model(graph, name, symbols)
    progress("linking")
    return {
        f"lib{name}.so": link_shared(model, objects, c_compiler(core.toolchain)),
        f"{name}.h": model.header.encode(),
        f"{name}.c": model.source.encode(),
        f"{name}_kernels.o": objects,
    }
