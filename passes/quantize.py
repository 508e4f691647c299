"""Integers in place of floats, by static scales: mode int8.

    %y = linear(%x, %w, %bias) : f32[T, N]
    ->
    %1 = integer_linear(%x, %w, %bias) {planes = 4} : i32[T, N]
    %y = requantize(%1, %y.multiplier) {drop, shift} : i8[T, N] scale 0.02

Every float becomes codes of 8 bits, or of 16 where values are added up (the residual stream, which
has one scale throughout). Lossy: what it costs is measured (`quantization_report`), not promised.
A code is off by half a scale at most where it is not clipped; scales are chosen for the least mean
square error on the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.errors import Unsupported
from ..compiler.ir import Graph, Node, Type, input_node, make, rebuild, remake
from .base import pruned
from .calibration import calibrate
from .quantize_codes import Quantizer
from .quantize_rules import RULES, as_it_is, why_not
from .quantize_weights import WEIGHT_SNR, deciding

Array = np.ndarray


@dataclass(frozen=True)
class Quantize:
    """All of a graph in integers, with scales by what ``samples`` are: one array an input each.

    Dense weights have as few digits as keep ``weight_snr`` dB, those of routers all five. Rotations
    are kept as ``angles`` of that dtype where they can be, by default as blocks.
    """

    samples: Sequence[tuple[Array, ...]]
    weight_snr: float = WEIGHT_SNR
    angles: str | None = None
    name = "quantize"
    exact = False

    def __call__(self, graph: Graph) -> Graph:
        graph = rebuild(graph, _apart)
        _check_covered(graph)
        budgets = dict.fromkeys(deciding(graph), math.inf)
        seen = calibrate(graph, self.samples)
        quantizer = Quantizer(graph, seen, self.weight_snr, budgets, self.angles)
        for node in graph.nodes:
            if node.op == "input":
                quantizer.done[node] = _input(quantizer, node)
            elif node.op != "constant":
                rule = RULES[node.op] if _has_floats(node) else as_it_is
                quantizer.done[node] = rule(quantizer, node)
        inputs = tuple(quantizer.done[node] for node in graph.inputs)
        outputs = tuple(quantizer.done.get(node, node) for node in graph.outputs)
        return pruned(Graph(graph.name, inputs, outputs, quantizer.store, graph.notes))


def _apart(node: Node) -> Node:
    """``node`` with its activation behind it: in front of a table its sums have codes, too."""
    if node.op != "linear" or node["activation"] == "none":
        return node
    sums = remake(replace(node, name=f"{node.name}.linear"), *node.operands, activation="none")
    return make(str(node["activation"]), sums, name=node.name, source=node.source)


def _has_floats(node: Node) -> bool:
    types = [type for part in (node, *node.operands) for type in part.types]
    return any(type.is_float for type in types)


def _input(quantizer: Quantizer, node: Node) -> Node:
    if not node.type.is_float:
        return node
    scale = quantizer.scale(node, "i8")
    return replace(input_node(node.name, Type("i8", node.type.shape, scale)), source=node.source)


def _divides_by_zero(graph: Graph, node: Node) -> str:
    """What is said of a quotient by a constant that holds 0, on which no sample is finite."""
    by = node.operands[-1]
    if node.op != "div" or by.op != "constant" or graph.value(by).all():
        return ""
    return f"div by the constant '{by.name}', which holds 0"


def _check_covered(graph: Graph) -> None:
    """Unsupported, with every such op and its lines, for what has no integer form."""
    missing: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op in ("input", "constant") or not _has_floats(node):
            continue
        why = why_not(node) or _divides_by_zero(graph, node)
        if why:
            missing.setdefault(why, []).append(node.source or node.name)
    if missing:
        lines = [f"  {what}: {', '.join(dict.fromkeys(where))}" for what, where in missing.items()]
        raise Unsupported(
            "\n".join(["mode int8 has no integer form of", *lines]),
            where=next(iter(missing.values()))[0],
            help="compile in mode f32, or write the layer with ops that have one: "
            + ", ".join(sorted(RULES)),
        )
