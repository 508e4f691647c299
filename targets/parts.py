"""What families share: the passes of integer mode, and the kernels that a graph names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.ir import Graph, Node
from ..kernels import all_kernels
from ..kernels.lanes import Lanes
from ..passes.base import Pass
from ..passes.canonicalize import Canonicalize
from ..passes.combine_before_down import CombineBeforeDown
from ..passes.fold_permutations import FoldPermutations
from ..passes.merge_rotations import MergeRotations
from ..passes.pack_weights import PackWeights
from ..passes.plan_memory import PlanMemory
from ..passes.quantize import Quantize
from ..passes.select_kernels import SelectKernels, kernel_of, spec_of
from ..passes.share_expert_matmul import ShareExpertMatmul
from ..passes.split_heads import SplitHeads


def check_mode(target: str, mode: str, modes: Sequence[str]) -> None:
    """Raises UsageError for a mode that ``target`` does not have."""
    if mode not in modes:
        raise UsageError(f"target {target} has no mode '{mode}'", help=f"modes: {', '.join(modes)}")


def integer_passes(
    samples: Sequence[tuple[np.ndarray, ...]],
    lanes: Lanes,
    keep_routing: bool,
    after: Sequence[Pass] = (),
) -> tuple[Pass, ...]:
    """Mode int8, in order: ``samples`` are what scales are chosen by.

    ``after`` are a family's own passes on integers.
    """
    kernels = all_kernels()
    return (
        Canonicalize(),
        MergeRotations(),
        FoldPermutations(),
        ShareExpertMatmul(),
        CombineBeforeDown(),
        SplitHeads(),
        Quantize(samples),
        *after,
        SelectKernels(kernels, lanes),
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes, keep_routing=keep_routing),
    )


def kernel_functions(
    graph: Graph, lanes: Lanes, name: str, progress: Callable[[str], None]
) -> tuple[dict[Node, str], dict[str, Any]]:
    """The function that computes each node, by its symbol; and the TIR of each symbol."""
    kernels = all_kernels()
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
            functions[symbols[node]] = kernel.build(spec, lanes, symbols[node])
    return symbols, functions
