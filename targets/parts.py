"""What families share: the passes of integer mode, and the kernels that a graph names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.ir import Graph, Node
from ..compiler.ir.schedule import steps_of
from ..compiler.lower.driver import Called, Symbols
from ..kernels import all_kernels
from ..kernels.lanes import Lanes
from ..kernels.record import Kernel, Spec
from ..kernels.tir import DISTINCT
from ..passes.base import Pass
from ..passes.budget import SIZE, Budgets
from ..passes.canonicalize import Canonicalize
from ..passes.combine_before_down import CombineBeforeDown
from ..passes.fold_permutations import FoldPermutations
from ..passes.merge_rotations import MergeRotations
from ..passes.pack_weights import PackWeights
from ..passes.plan_memory import PlanMemory
from ..passes.quantize import Quantize
from ..passes.quantize_angles import QuantizeAngles
from ..passes.select_kernels import (
    Price,
    SelectKernels,
    Tuned,
    kernel_of,
    spec_of,
    unpriced,
    untuned,
)
from ..passes.share_expert_matmul import ShareExpertMatmul
from ..passes.spare_arena import SpareArena
from ..passes.split_heads import SplitHeads
from ..passes.split_work import part_of, sizes_of
from .prices import smallest


def check_mode(target: str, mode: str, modes: Sequence[str]) -> None:
    """Raises UsageError for a mode that ``target`` does not have."""
    if mode not in modes:
        raise UsageError(f"target {target} has no mode '{mode}'", help=f"modes: {', '.join(modes)}")


def rounded_angles(budgets: Budgets) -> tuple[Pass, ...]:
    """The pass that rounds angles, if they are to be."""
    return (QuantizeAngles(budgets.angles),) if budgets.angles else ()


def integer_passes(
    samples: Sequence[tuple[np.ndarray, ...]],
    budgets: Budgets,
    lanes: Lanes,
    keep_routing: bool,
    after: Sequence[Pass] = (),
    sharing: bool = False,
    price: Price = unpriced,
    tuned: Tuned = untuned,
) -> tuple[Pass, ...]:
    """Mode int8, in order: ``samples`` are those of `Quantize`.

    ``after`` are a family's own passes on integers; ``sharing`` is `PlanMemory`'s, ``price`` and
    ``tuned`` are `SelectKernels`'.
    """
    kernels = all_kernels()
    small = budgets.prefer == SIZE
    # What was tuned is the fastest.
    chosen_by = (untuned, smallest(price)) if small else (tuned, price)
    select = SelectKernels(kernels, lanes, *chosen_by)
    # Of sizes the price is in bytes: the arena spares none that constants would take more of.
    spare = SpareArena(select, keep_routing, sharing, 1.0 if small else inf)
    return (
        Canonicalize(),
        MergeRotations(),
        *rounded_angles(budgets),
        FoldPermutations(),
        ShareExpertMatmul(),
        CombineBeforeDown(),
        SplitHeads(),
        Quantize(samples, budgets.weight_snr, budgets.angles),
        *after,
        select,
        spare,
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes, keep_routing, sharing),
    )


def kernel_functions(
    graph: Graph, lanes: Lanes, name: str, progress: Callable[[str], None]
) -> tuple[Symbols, dict[str, Any]]:
    """How each node, or some rows of it, is computed; and the TIR of all functions by symbol."""
    kernels = all_kernels()
    symbols: Symbols = {}
    functions: dict[str, Any] = {}
    for node, rows, kernel, asked in _calls(graph, kernels):
        spec = kernel.opened(asked)
        symbol = f"{name}_k_{kernel.name}_{spec.digest}"
        in_place = bool(node.notes.get("in_place"))
        symbol += "_in_place" if in_place else ""
        symbols[node, rows] = Called(symbol, kernel.arguments(asked))
        if symbol not in functions:
            progress(f"kernel {kernel.name} for {node.name}")
            made = kernel.build(spec, lanes, symbol)
            functions[symbol] = made.without_attr(DISTINCT) if in_place else made
    return symbols, functions


def _calls(graph: Graph, kernels: tuple[Kernel, ...]) -> Iterator[tuple[Node, int, Kernel, Spec]]:
    """Each node, how many of its rows a call computes (0: all), by which kernel, asked what.

    The calls of several threads come last.
    """
    nodes = [(node, step) for step in steps_of(graph) for node in step.nodes]
    nodes = [(node, step) for node, step in nodes if "kernel" in node.notes]
    for node, step in nodes:
        for _, _, rows in step.tiles:
            yield node, rows, kernel_of(node, kernels), spec_of(node, rows)
    for node, _ in nodes:
        if "split" in node.notes:
            for _, rows in sizes_of(node, int(graph.notes["threads"])):  # type: ignore[arg-type]
                yield node, rows, *part_of(node, rows, kernels)
