"""CPUs: kernels through TVM and LLVM, a C driver, libraries, and a program on files of arrays.

The passes stand in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from attrs import evolve

from ..compiler.errors import unknown_name
from ..compiler.ir import Graph
from ..compiler.lower.command import command_name, command_program
from ..compiler.lower.cross import compiler_for, this_architecture
from ..compiler.lower.link import link_libraries
from ..compiler.lower.model_c import write_model
from ..compiler.lower.tir import build_object
from ..compiler.run.native import cpu_features
from ..kernels import all_kernels
from ..kernels.lanes import Lanes
from ..passes.base import Pass
from ..passes.budget import DEFAULT, Budgets
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
from ..passes.select_kernels import SelectKernels, Tuned, untuned
from ..passes.share_expert_matmul import ShareExpertMatmul
from ..passes.split_work import SplitWork
from ..passes.spread_rotations import SpreadRotations
from .lanes_in_order import NeonInOrder
from .lanes_in_order_dot import NeonDotInOrder
from .lanes_neon import Neon, NeonDot, NeonV7
from .lanes_x86 import Avx2
from .parts import check_mode, integer_passes, kernel_functions, rounded_angles
from .registry import Core, load_core

LANES: dict[str, Lanes] = {
    lanes.name: lanes
    for lanes in (
        Lanes(),
        Avx2(),
        Neon(),
        NeonInOrder(),
        NeonDot(),
        NeonDotInOrder(),
        NeonV7(),
    )
}
# The CPU features, as the system names them, that code for a vector unit needs.
FEATURES: dict[str, tuple[str, ...]] = {
    "scalar": (),
    "avx2": ("avx2", "fma", "bmi2", "f16c"),
    "neon": ("asimd",),
    "neon-in-order": ("asimd",),
    "neon-dotprod": ("asimd", "asimddp"),
    "neon-dotprod-in-order": ("asimd", "asimddp"),
    "neon-v7": ("neon",),
}
# What a machine that compiles for itself may be, by architecture: the better ones first.
HOSTS: dict[str, tuple[str, ...]] = {
    "x86_64": ("x86-64-v3",),
    "aarch64": ("aarch64+dotprod", "aarch64"),
    "arm": ("armv7a",),
}
MODES = ("f32", "a8", "int8")
MEMORIES = ()  # no limit that matters
THREADS = 64  # at most


@dataclass(frozen=True)
class Machine:
    """What code is made for: LLVM's view of it (``target``), and ours (``lanes``)."""

    triple: str
    target: dict[str, Any]
    lanes: Lanes
    features: tuple[str, ...]


def machine(core: Core) -> Machine:
    """The machine that ``core`` describes; `native` is resolved to the one we run on.

    Raises UnknownName for lanes that we do not have.
    """
    if "native" in (core.triple, core.cpu, core.lanes):
        core = host()
    if core.lanes not in LANES:
        raise unknown_name("vector unit", core.lanes, LANES)
    description: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": _in_full(core.triple),
        "mcpu": core.cpu,
    }
    if core.features:
        description["mattr"] = [f"+{feature}" for feature in core.features]
    return Machine(core.triple, description, LANES[core.lanes], _features(core))


def _in_full(triple: str) -> str:
    """``triple`` with a vendor, without which LLVM takes the system for one and misses the ABI."""
    return triple.replace("-linux-", "-unknown-linux-") if triple.count("-") == 2 else triple


def host() -> Core:
    """This machine: a core with vectors where we have one for it, else portable code."""
    name = this_architecture()
    for core in map(load_core, HOSTS.get(name, ())):
        if set(_features(core)) <= cpu_features():
            return core
    own = load_core("host")
    return evolve(own, triple=f"{name}-linux-gnu", cpu="generic", lanes="scalar")


def _features(core: Core) -> tuple[str, ...]:
    """The CPU features, as the system names them, that code for ``core`` needs."""
    return tuple(dict.fromkeys((*(core.cpu_features or ()), *FEATURES[core.lanes])))


def passes(
    core: Core,
    mode: str,
    samples: Sequence[tuple[np.ndarray, ...]] = (),
    budgets: Budgets = DEFAULT,
    threads: int = 1,
    tuned: Tuned = untuned,
) -> tuple[Pass, ...]:
    """The pipeline, in order; ``samples`` are what int8 chooses codes by.

    ``tuned`` is `SelectKernels`'. For more than one of ``threads`` work is split at the end:
    ``NAME_run`` stays what it is.
    Raises UsageError for a mode that CPUs do not have.
    """
    check_mode(core.name, mode, MODES)
    lanes, kernels = machine(core).lanes, all_kernels()
    split = (SplitWork(kernels, lanes, threads),) if threads > 1 else ()
    if mode == "int8":
        whole = integer_passes(samples, budgets, lanes, keep_routing=True, tuned=tuned)
        return *whole, *split
    return (
        Canonicalize(),
        MergeRotations(),
        *rounded_angles(budgets),
        SpreadRotations(lanes.float_lanes),
        FoldPermutations(),
        ShareExpertMatmul(),
        CombineBeforeDown(),
        *((QuantizeActivations(budgets.act_bits),) if mode == "a8" else ()),
        FuseAttention(),
        FuseExperts(),
        NarrowConstants(),
        SelectKernels(kernels, lanes, tuned),
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
    """The compiled model: ``libNAME.so`` and ``libNAME.a``, header, driver, the kernels' object.

    A library holds no ``golden`` pairs: where it runs, those of the artefact can be read.
    Raises ToolMissing with what to install.
    """
    built = machine(core)
    compiler = compiler_for(built.triple, core.toolchain)
    symbols, functions = kernel_functions(graph, built.lanes, name, progress)
    progress(f"compiling {len(functions)} kernels for {built.target['mcpu']}")
    objects = build_object(functions, built.target)
    model = write_model(graph, name, symbols)
    progress(f"linking {compiler.notice}".rstrip())
    shared, static = link_libraries(model, objects, compiler)
    pool = {f"{name}_pool.c": model.pool.encode()} if model.pool else {}
    return {
        f"lib{name}.so": shared,
        f"lib{name}.a": static,
        f"{name}.h": model.header.encode(),
        f"{name}.c": model.source.encode(),
        f"{name}_kernels.o": objects,
        **pool,
    }


def programs(
    core: Core,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, bytes]:
    """The program ``NAME-run``, made of the ``files`` of `emit` and of the artefact's manifest."""
    name = manifest["name"]
    compiler = compiler_for(machine(core).triple, core.toolchain)
    header, library = files[f"{name}.h"], files[f"lib{name}.a"]
    program = command_program(manifest, header, library, compiler, progress)
    return {command_name(name): program}
