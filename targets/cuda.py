"""NVIDIA GPUs: layers by Triton kernels that are compiled here, all else by torch's library.

The passes stand in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import attrs
import numpy as np

from ..compiler.errors import ToolMissing, Unsupported, UsageError
from ..compiler.ir import Graph
from ..compiler.run.plans import PATH, LayerPlan, Plans, launches_of, pack_plans
from ..kernels.gpu.launch import Gpu
from ..kernels.record import Kernel
from ..passes.base import Pass
from ..passes.budget import DEFAULT, Budgets
from ..passes.canonicalize import Canonicalize
from ..passes.combine_before_down import CombineBeforeDown
from ..passes.fold_permutations import FoldPermutations
from ..passes.fuse_attention import FuseAttention
from ..passes.fuse_deep_layers import FuseDeepLayers
from ..passes.fuse_experts import FuseExperts
from ..passes.fuse_layers import FuseLayers
from ..passes.half_products import HalfProducts
from ..passes.merge_rotations import MergeRotations
from ..passes.narrow_constants import NarrowConstants
from ..passes.pack_weights import PackWeights
from ..passes.quantize_activations import QuantizeActivations
from ..passes.select_kernels import SelectKernels, Tuned, kernel_of, spec_of, untuned
from ..passes.share_expert_matmul import ShareExpertMatmul
from . import tuned as by_device
from .parts import check_mode, rounded_angles
from .registry import Core, core_names, load_core

# What products of each mode are of: i8 is f16 but for the ternary products.
HALVES = {"f16": "f16", "bf16": "bf16", "i8": "f16"}
MODES = ("f16", "bf16", "f32", "i8")
MEMORIES = ()  # no limit that matters
THREADS = 1  # at most
OLDEST = 75  # the compute capability that Triton compiles for at least


@dataclass(frozen=True)
class Machine:
    """What code is made for; no features of a CPU."""

    lanes: Gpu
    features: tuple[str, ...] = ()


def machine(core: Core) -> Machine:
    """The machine that ``core`` describes; `native` is resolved to the GPU that is here.

    Raises Unsupported for a GPU that is too old, ToolMissing where there is none, UsageError for a
    core without sizes of a GPU.
    """
    core = here() if core.cpu == "native" else core
    facts = core.gpu
    if facts is None:
        raise UsageError(
            f"target {core.name} says nothing of its GPU",
            help="give it a table [gpu], as targets/cores/cuda-sm90.toml has",
        )
    if facts.capability < OLDEST:
        raise Unsupported(
            f"{core.name} is of compute capability {facts.capability / 10}, Triton compiles for "
            f"{OLDEST / 10} and later",
            help="a Jetson Nano runs models on its CPU: --target cortex-a57",
        )
    return Machine(Gpu(name=core.name.removeprefix("cuda-"), **attrs.asdict(facts)))


def here() -> Core:
    """The core of this machine's GPU: of its compute capability, or the next lower one.

    Raises ToolMissing where there is no GPU.
    """
    found = _capability()
    known = [core for core in map(load_core, core_names()) if core.family == "cuda" and core.gpu]
    fitting = [core for core in known if core.gpu and core.gpu.capability <= (found or 0)]
    if found is None or not fitting:
        names = ", ".join(core.name for core in known if core.gpu and core.gpu.capability >= OLDEST)
        raise ToolMissing(
            "no NVIDIA GPU is here that torch can use, whose kind --target cuda takes",
            help=f"name the kind that you compile for: {names}",
        )
    return max(fitting, key=lambda core: core.gpu.capability if core.gpu else 0)


def _capability() -> int | None:
    """The compute capability of this machine's GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def device_name(capability: int) -> str:
    """The driver's name of this machine's GPU, if it is of that capability; else nothing."""
    import torch

    return torch.cuda.get_device_name() if _capability() == capability else ""


def kernels() -> tuple[Kernel, ...]:
    """The records of kernels/gpu. Raises ToolMissing without Triton, in which they are written."""
    try:
        from ..kernels.gpu import all_kernels
    except ImportError as error:
        raise no_triton() from error
    return all_kernels()


def no_triton() -> ToolMissing:
    return ToolMissing(
        "Triton is not installed, in which the kernels of GPUs are written",
        help='pip install "butterflyc[gpu]"',
    )


def passes(
    core: Core,
    mode: str,
    samples: Sequence[tuple[np.ndarray, ...]] = (),
    budgets: Budgets = DEFAULT,
    tuned: Tuned = untuned,
) -> tuple[Pass, ...]:
    """The pipeline, in order; ``samples`` are of another mode.

    ``tuned`` comes before what is shipped of the GPU's kind.
    Raises UsageError for a mode that GPUs, or this one, do not have.
    """
    check_mode(core.name, mode, MODES)
    gpu, records = machine(core).lanes, kernels()
    if mode == "bf16" and not gpu.has_bf16:
        check_mode(core.name, mode, [each for each in MODES if each != "bf16"])
    shipped, _ = by_device.find(device_name(gpu.capability), gpu.capability)
    return (
        Canonicalize(),
        MergeRotations(),
        *rounded_angles(budgets),
        FoldPermutations(),
        ShareExpertMatmul(),
        CombineBeforeDown(),
        *((QuantizeActivations(),) if mode == "i8" else ()),
        FuseAttention(),
        FuseDeepLayers(),
        FuseExperts(),
        FuseLayers(),
        NarrowConstants(),
        *((HalfProducts(HALVES[mode]),) if mode in HALVES else ()),
        SelectKernels(records, gpu, _either(tuned, shipped), required=False),
        PackWeights(records, gpu),
    )


def _either(tuned: Tuned, shipped: by_device.Tuned | None) -> Tuned:
    """What is ``tuned``, else what is ``shipped``."""
    return lambda spec: tuned(spec) or (shipped.choice(spec) if shipped else None)


def emit(
    graph: Graph,
    core: Core,
    name: str,
    progress: Callable[[str], None] = lambda _: None,
    golden: Mapping[str, np.ndarray] | None = None,
) -> dict[str, bytes]:
    """The compiled model: how each layer is computed, and the code of its kernels.

    An artefact holds the graph and its weights beside that. Raises ToolMissing without Triton.
    """
    from ..compiler.lower.cubin import compile_all, to_files

    gpu = machine(core).lanes
    plans = layer_plans(graph, gpu)
    launches = launches_of(plans)
    progress(f"compiling {len(launches)} kernels for {gpu.name}")
    codes = compile_all(launches, gpu.capability, progress)
    files = {PATH: pack_plans(plans), **to_files(codes.values())}
    return {path.removeprefix("kernels/"): content for path, content in files.items()}


def layer_plans(graph: Graph, gpu: Gpu) -> Plans:
    """The plan of every node that a kernel was chosen for."""
    records, plans = kernels(), {}
    for node in graph.nodes:
        if "kernel" in node.notes:
            kernel, spec = kernel_of(node, records), spec_of(node)
            plan: Any = kernel.build(kernel.opened(spec), gpu, node.name)
            plans[node.name] = LayerPlan(kernel.name, plan, kernel.scratch(spec, gpu))
    return plans
