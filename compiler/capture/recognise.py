"""Recognition: Butterfly layers found by what they compute, and written in butterfly ops.

The probe is the interpreter. Constants are folded; behind each routing op the mixture is cut out,
probed, factored, rebuilt, and the whole is run against the original. What does not come out equal
stays as the plain ops it was captured as.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.build import result
from ..ir.graph import Graph, Node, topological_order
from .recognise_axes import chooses_neighbours
from .recognise_build import build
from .recognise_check import Residual, residual, routes_by_order
from .recognise_claims import Claim, claimed_first, judged, without_claims
from .recognise_evidence import describe, flaws
from .recognise_layer import Layer, parse
from .recognise_masks import (
    BY_MASK,
    Choice,
    agree,
    choices_by_mask,
    routers_within,
    with_masks,
    without,
)
from .recognise_probe import OutOfReach, Probe, ancestors, fold_constants, with_used_constants
from .recognise_routers import with_one_router, with_top_k
from .recognise_routing import NotRecognised, Region, find_mixtures
from .recognise_rows import Rows
from .recognise_tidy import simpler
from .recognise_unfold import unfolded
from .recognise_unused import without_unused
from .recognise_why import why_it_differs

Progress = Callable[[str], None]
GUESSED = 3  # the stage from which on a wrong guess at the gates says nothing
TIES = "the experts are chosen by a mask, and equal scores cannot be ruled out"

DIFFERS = 7  # the last stage of `NotRecognised`: all parts were found, but do not make the layer
# The same graph in another form, in which more may be seen; None where it is no other.
FORMS: dict[str, Callable[[Graph], Graph | None]] = {
    "products of matrices taken apart": unfolded,
    "repetitions left out and sums in other terms": simpler,
}


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
    for what, form in FORMS.items():
        if all(layer.recognised == "full" for layer in found.layers):
            break
        other = form(graph)
        if other is not None:
            if progress is not None:
                progress(f"recognise: once more, with {what}")
            again = _recognise(other, seed, progress)
            found = max(found, again, key=_rank)
    return found


def _rank(found: Recognised) -> tuple[int, int]:
    """How much was found: layers in full, and of the others how many in part."""
    ranks = [layer.rank for layer in found.layers]
    return ranks.count(2), sum(ranks)


@dataclass(frozen=True)
class _Outcome:
    """What became of one routing op; ``mixes``: whether a mixture of any kind lies behind it."""

    report: LayerReport
    layer: Layer | None
    mixes: bool


def _recognise(graph: Graph, seed: int, progress: Progress | None) -> Recognised:
    """What is found in ``graph`` as it is."""
    graph = with_one_router(with_top_k(fold_constants(graph)))
    choices = choices_by_mask(graph)
    told: dict[str, LayerReport] = {}
    while True:
        masked = with_masks(graph, choices)
        found = _outcomes(masked, seed, progress)
        false = {}
        for top_k, outcome in found.items():
            used = [each for each in choices if each.router == top_k.notes.get(BY_MASK)]
            if used and (outcome := _without_ties(graph, masked, used, outcome)).layer is None:
                false[used[0].router] = outcome
        if not false:
            true = {name for choice in choices for name in routers_within(choice)}
            rest = {name: report for name, report in told.items() if name not in true}
            return _recognised(masked, found, rest)
        # Such masks stay as they are, and are spoken of only where they weigh experts.
        for choice in choices:
            if choice.router in false and false[choice.router].mixes:
                told |= dict.fromkeys(routers_within(choice), false[choice.router].report)
        choices = without(choices, false)


def _needed_beside(graph: Graph, found: Mapping[Node, _Outcome]) -> set[Node]:
    """What the outputs need by another way than the routing and gates of a layer that was found.

    A choice of groups, of which experts are then chosen, is a part of that layer's routing.
    """
    regions = [outcome.layer.region for outcome in found.values() if outcome.layer is not None]
    routing = {node for region in regions for node in region.forced}
    return set(topological_order(graph.outputs, routing))


def _without_ties(
    graph: Graph, masked: Graph, choices: Sequence[Choice], outcome: _Outcome
) -> _Outcome:
    """What became of a routing op that stands for masks of ``graph``; none if these are more."""
    layer, was = outcome.layer, outcome.report
    if layer is None or agree(graph, masked, choices, layer.region.h.name, layer.y.name):
        return outcome
    report = LayerReport(was.path, was.source, "none", {}, None, TIES, 0, was.experts, was.k)
    return _Outcome(report, None, True)


def _outcomes(graph: Graph, seed: int, progress: Progress | None) -> dict[Node, _Outcome]:
    """What becomes of each routing op of ``graph``."""
    probe = Probe(dict(graph.constants))
    rng = np.random.default_rng(seed)
    # What sorts whole numbers puts rows in order: it chooses no experts.
    routers = [
        node
        for node in graph.nodes
        if node.op == "top_k" and node.operands[0].type.is_float and not chooses_neighbours(node)
    ]
    found: dict[Node, _Outcome] = {}
    for number, top_k in enumerate(routers):
        start = time.perf_counter()
        outcome = _recognise_layer(graph, probe, top_k, rng)
        report, layer = outcome.report, outcome.layer
        if layer is not None:
            path = _path(layer) or (graph.name if len(routers) == 1 else layer.y.name)
            report = replace(report, path=path)
        found[top_k] = replace(outcome, report=report)
        if progress is not None:
            verdict = report.recognised + (f": {report.reason}" if report.reason else "")
            place = f"{number + 1}/{len(routers)} {report.path}"
            progress(f"recognise {place}: {verdict} ({time.perf_counter() - start:.1f} s)")
    return found


def _recognised(
    graph: Graph, found: Mapping[Node, _Outcome], told: Mapping[str, LayerReport]
) -> Recognised:
    """The graph with the layers that were found, and what is said of them and others.

    ``told``: reports on masks that stay, by the routing ops that make these.
    """
    reports = {top_k: outcome.report for top_k, outcome in found.items()}
    layers = {
        outcome.layer.y: (outcome.report.path, outcome.layer)
        for outcome in found.values()
        if outcome.layer is not None
    }
    claims = judged(graph, reports, {y: path for y, (path, _) in layers.items()})
    new = _replaced(graph, layers, dict(graph.constants))
    needed = _needed_beside(graph, found)
    apart = [
        report
        for top_k, report in reports.items()
        if report.rank or (top_k in needed and top_k.name not in told)
    ]
    names = {node.name for node in needed}
    others = {report.path: report for name, report in told.items() if name in names}
    return Recognised(without_claims(new), (*apart, *others.values()), claims)


def _recognise_layer(graph: Graph, probe: Probe, top_k: Node, rng: np.random.Generator) -> _Outcome:
    """The layer behind one routing op: the first mixture that proves equal, or why none does."""
    count, k = top_k.operands[0].type.shape[-1], int(top_k["k"])
    none = LayerReport(top_k.name, top_k.source, "none", {}, None, "", 0, count, k)
    refused: list[tuple[int, LayerReport]] = []
    best: tuple[LayerReport, Layer] | None = None
    mixes = False
    try:
        mixtures = find_mixtures(graph, probe, top_k, rng)
        for region, y, y_rows in claimed_first(graph, mixtures):
            mixes = True
            try:
                layer = _parsed(region, y, y_rows, rng)
                report = _report(layer, none, rng)
            except (NotRecognised, OutOfReach) as reason:
                report = replace(none, reason=str(reason))
                stage = getattr(reason, "stage", 0)
            else:
                stage = DIFFERS
            if report.recognised == "none":
                # Gates put together of several nodes are a guess: where wrong, it tells little.
                stage = stage if len(region.gates.parts) == 1 else min(stage, GUESSED)
                refused.append((stage, report))
                continue
            if best is None or report.recognised == "full":
                best = report, layer
            if report.recognised == "full":
                break
    except NotRecognised as reason:
        refused.append((0, replace(none, reason=str(reason))))
    except IndexError:
        there = min(_table_sizes(graph, top_k), default=count)
        text = f"the gate chooses among {count} experts, but only {there} exist"
        if there >= count:
            there, text = 0, "with gates of any size, something is looked up that does not exist"
        refused.append((DIFFERS, replace(none, reason=text, experts_found=there)))
    if best is not None:
        return _Outcome(*best, mixes)
    return _Outcome(max(refused, key=lambda pair: pair[0], default=(0, none))[1], None, mixes)


def _parsed(region: Region, y: Node, y_rows: Rows, rng: np.random.Generator) -> Layer:
    """The parts of a mixture, also where it might keep what is none of its experts'."""
    try:
        return parse(region, y, y_rows, rng)
    except OutOfReach:
        other = without_unused(region, y, rng)
        if other is None:
            raise
        return replace(parse(region, other, y_rows, rng), y=y)


def _report(layer: Layer, none: LayerReport, rng: np.random.Generator) -> LayerReport:
    """What is said of ``layer``, rebuilt and checked; ``none`` with a reason where it differs."""
    found = _check(layer, rng)
    worst = found.captured
    if not found.passes:
        because = why_it_differs(layer, rng)
        text = f"rebuilt, it differs by {worst:.1e} on {found.where}"
        text += f": {because}" if because else ""
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
            notes = {key: value for key, value in node.notes.items() if key != BY_MASK}
            same = operands == node.operands and len(notes) == len(node.notes)
            new[node] = node if same else replace(node, operands=operands, notes=notes)
    inputs = tuple(new[node] for node in graph.inputs)
    outputs = tuple(new[node] for node in graph.outputs)
    return with_used_constants(Graph(graph.name, inputs, outputs, store, graph.notes))
