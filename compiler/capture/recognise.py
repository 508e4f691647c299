"""Recognition: Butterfly layers found by what they compute, and written in butterfly ops.

The probe is the interpreter. Constants are folded; behind each routing op the mixture is cut out,
probed, factored, rebuilt, and the whole is run against the original. What does not come out equal
stays as the plain ops it was captured as.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..ir.build import result
from ..ir.graph import Graph, Node
from .recognise_build import build
from .recognise_check import Residual, residual, routes_by_order
from .recognise_claims import Claim, claimed_first, judged, without_claims
from .recognise_evidence import describe, flaws
from .recognise_layer import Layer, parse
from .recognise_probe import OutOfReach, Probe, ancestors, fold_constants, with_used_constants
from .recognise_routers import with_one_router, with_top_k
from .recognise_routing import NotRecognised, find_mixtures
from .recognise_unfold import unfolded

Progress = Callable[[str], None]
DIFFERS = 7  # the last stage of `NotRecognised`: all parts were found, but do not make the layer


@dataclass(frozen=True)
class LayerReport:
    """What was found behind one routing op.

    ``recognised`` is "full"; "partial" where the layer was rebuilt exactly although a part is not
    what the papers have (``reason`` says which); "none" where it stays as captured. ``residual``:
    the largest relative difference in float64 of the rebuilt layer from the captured one.
    """

    path: str
    source: str
    recognised: str
    parts: Mapping[str, str]
    residual: float | None
    reason: str
    experts_found: int
    experts: int
    k: int

    @property
    def rank(self) -> int:
        """2 where the layer is recognised in full, 1 in part, 0 not at all."""
        return ("none", "partial", "full").index(self.recognised)

    def as_dict(self) -> dict[str, object]:
        """The report as plain data, for ``--json``."""
        return {**vars(self), "parts": dict(self.parts)}


@dataclass(frozen=True)
class Recognised:
    """The graph with its Butterfly layers rebuilt, a report for each mixture, and marks judged."""

    graph: Graph
    layers: tuple[LayerReport, ...]
    claims: tuple[Claim, ...] = ()


def recognise(graph: Graph, *, seed: int = 0, progress: Progress | None = None) -> Recognised:
    """The graph with each Butterfly mixture as k chains of butterfly ops, and what was found."""
    found = _recognise(graph, seed, progress)
    if all(layer.recognised == "full" for layer in found.layers):
        return found
    apart = unfolded(graph)
    if apart is None:
        return found
    if progress is not None:
        progress("recognise: once more, with products of matrices taken apart")
    other = _recognise(apart, seed, progress)
    return max(found, other, key=lambda each: sum(layer.rank for layer in each.layers))


def _recognise(graph: Graph, seed: int, progress: Progress | None) -> Recognised:
    """What is found in ``graph`` as it is."""
    graph = with_one_router(with_top_k(fold_constants(graph)))
    store = dict(graph.constants)
    probe = Probe(store)
    rng = np.random.default_rng(seed)
    # What sorts whole numbers puts rows in order: it chooses no experts.
    routers = [n for n in graph.nodes if n.op == "top_k" and n.operands[0].type.is_float]
    reports: list[LayerReport] = []
    found: dict[Node, tuple[str, Layer]] = {}
    for number, top_k in enumerate(routers):
        start = time.perf_counter()
        report, layer = _recognise_layer(graph, probe, top_k, rng)
        if layer is not None:
            path = _path(layer) or (graph.name if len(routers) == 1 else layer.y.name)
            report = replace(report, path=path)
            found[layer.y] = path, layer
        reports.append(report)
        if progress is not None:
            verdict = report.recognised + (f": {report.reason}" if report.reason else "")
            place = f"{number + 1}/{len(routers)} {report.path}"
            progress(f"recognise {place}: {verdict} ({time.perf_counter() - start:.1f} s)")
    paths = {y: path for y, (path, _) in found.items()}
    claims = judged(graph, dict(zip(routers, reports, strict=True)), paths)
    return Recognised(without_claims(_replaced(graph, found, store)), tuple(reports), claims)


def _recognise_layer(
    graph: Graph, probe: Probe, top_k: Node, rng: np.random.Generator
) -> tuple[LayerReport, Layer | None]:
    """The layer behind one routing op: the first mixture that proves equal, or why none does."""
    count, k = top_k.operands[0].type.shape[-1], int(top_k["k"])
    none = LayerReport(top_k.name, top_k.source, "none", {}, None, "", 0, count, k)
    refused: list[tuple[int, LayerReport]] = []
    best: tuple[LayerReport, Layer | None] | None = None
    try:
        mixtures = find_mixtures(graph, probe, top_k, rng)
        for region, y, y_rows in claimed_first(graph, mixtures):
            try:
                layer = parse(region, y, y_rows, rng)
                report = _report(layer, none, rng)
            except (NotRecognised, OutOfReach) as reason:
                report = replace(none, reason=str(reason))
                stage = getattr(reason, "stage", 0)
            else:
                stage = DIFFERS
            if report.recognised == "none":
                # Gates put together of several nodes are a guess: where wrong, it tells little.
                refused.append((stage if len(region.gates.parts) == 1 else -1, report))
                continue
            best = best or (report, layer)
            if report.recognised == "full":
                return report, layer
    except NotRecognised as reason:
        refused.append((0, replace(none, reason=str(reason))))
    except IndexError:
        there = min(_table_sizes(graph, top_k), default=count)
        text = f"the gate chooses among {count} experts, but only {there} exist"
        if there >= count:
            there, text = 0, "with gates of any size, something is looked up that does not exist"
        refused.append((DIFFERS, replace(none, reason=text, experts_found=there)))
    return best or (max(refused, key=lambda pair: pair[0], default=(0, none))[1], None)


def _report(layer: Layer, none: LayerReport, rng: np.random.Generator) -> LayerReport:
    """What is said of ``layer``, rebuilt and checked; ``none`` with a reason where it differs."""
    found = _check(layer, rng)
    worst = found.captured
    if not found.passes:
        text = f"rebuilt, it differs by {worst:.1e} on {found.where}"
        return replace(none, reason=text, residual=worst)
    parts = describe(layer)
    if routes_by_order(layer.region, rng):
        parts["routing"] += ", which depend on the order of the tokens"
    flawed = "; ".join(flaws(layer))
    return replace(
        none,
        path="",
        source=layer.y.source or none.source,
        recognised="partial" if flawed else "full",
        parts=parts,
        residual=worst,
        reason=flawed,
        experts_found=none.experts,
    )


def _table_sizes(graph: Graph, top_k: Node) -> Iterator[int]:
    """For how many experts each table that is read by the chosen numbers has rows."""
    for node in graph.nodes:
        if node.op == "take" and top_k in ancestors(node.operands[1]):
            yield node.operands[0].type.shape[node["axis"]]


def _check(layer: Layer, rng: np.random.Generator) -> Residual:
    """How far the rebuilt layer is from the captured one."""
    region = layer.region
    store = region.probe.constants
    new = build(layer, layer.x, region.experts, region.gates.heads, store, "rebuilt")
    return residual(layer, new, rng)


def _path(layer: Layer) -> str:
    """What the names of the layer's parameters have in common; "" if nothing."""
    region = layer.region
    plan = region.probe.plan((layer.y,), {region.h, *region.forced})
    names = [n.name.split(".") for n in plan if n.op == "constant" and n.type.size > 1]
    common: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1 or len(names) == 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _replaced(
    graph: Graph, found: Mapping[Node, tuple[str, Layer]], store: dict[str, np.ndarray]
) -> Graph:
    """The graph in which the y of each layer found is the rebuilt one."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in found:
            path, layer = found[node]
            region = layer.region
            experts = region.experts
            if experts not in new:
                new[experts] = result(new[region.top_k], 1, experts.name)
            gates = tuple(new[node] for node in region.gates.heads)
            ends = (new[layer.x], new[experts], gates)
            new[node] = build(layer, *ends, store, path)
        else:
            operands = tuple(new[operand] for operand in node.operands)
            new[node] = replace(node, operands=operands) if operands != node.operands else node
    inputs = tuple(new[node] for node in graph.inputs)
    outputs = tuple(new[node] for node in graph.outputs)
    return with_used_constants(Graph(graph.name, inputs, outputs, store, graph.notes))
