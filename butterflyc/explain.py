"""What a compilation found and did, layer by layer and pass by pass, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler.capture.recognise import LayerReport
    from .compiler.capture.recognise_claims import Claim
    from .compiler.ir import Graph, Node

# Ops that compute nothing.
_SILENT = frozenset({"constant", "input", "result"})


@dataclass
class Record:
    """How far a compilation came: its stages; its layers and marks once they were looked for.

    ``quantization`` is what mode int8 costs, once that is measured.

    `compile` fills the record it is given, so that a compilation that fails can be explained too.
    """

    stages: dict[str, Graph] = field(default_factory=dict)
    layers: tuple[LayerReport, ...] | None = None
    claims: tuple[Claim, ...] = ()
    quantization: dict[str, Any] | None = None

    def explanation(self) -> dict[str, Any]:
        """What was found and done so far; ``layers`` is None if none were looked for yet."""
        found = None
        if self.layers is not None:
            last = self.stages[list(self.stages)[-1]] if self.stages else None
            found = [_as_data(layer) | {"compiled": ops_of(layer, last)} for layer in self.layers]
        marks = [claim.as_dict() for claim in self.claims]
        measured = {} if self.quantization is None else {"quantization": self.quantization}
        return {"layers": found, "marks": marks, "rewrites": rewrites(self.stages), **measured}


def _as_data(layer: LayerReport) -> dict[str, Any]:
    """The report for JSON, which knows no infinite residual: ``reason`` tells of it."""
    residual = layer.residual
    finite = residual is not None and isfinite(residual)
    return layer.as_dict() | {"residual": residual if finite else None}


def ops_of(layer: LayerReport, graph: Graph | None) -> dict[str, int]:
    """How often each op computes something under the layer's name, once kernels are chosen."""
    if graph is None or layer.recognised == "none":
        return {}
    found = Counter(
        node.op
        for node in graph.nodes
        if "kernel" in node.notes and f"{node.name}.".startswith(f"{layer.path}.")
    )
    return dict(sorted(found.items()))


def rewrites(stages: Mapping[str, Graph]) -> list[dict[str, Any]]:
    """For each pass: how many ops there are after it, which counts changed, how many are new.

    ``changes`` holds [before, after] of each op whose count is another; ``changed`` counts the ops
    that the graph before did not have, be it only with other attributes, types or notes.
    """
    rows = []
    for before, after in pairwise(stages):
        was, now = (_computing(stages[name]) for name in (before, after))
        counts = [Counter(node.op for node in nodes) for nodes in (was, now)]
        known = {_facts(node) for node in was}
        row = {
            "pass": after,
            "ops": len(now),
            "changed": sum(_facts(node) not in known for node in now),
            "changes": {
                op: [counts[0][op], counts[1][op]]
                for op in sorted(counts[0] | counts[1])
                if counts[0][op] != counts[1][op]
            },
        }
        rows.append(row)
    return rows


def _computing(graph: Graph) -> Sequence[Node]:
    return [node for node in graph.nodes if node.op not in _SILENT]


def _facts(node: Node) -> tuple[Any, ...]:
    """What a node says of itself."""
    attributes, notes = (tuple(sorted(part.items())) for part in (node.attributes, node.notes))
    return node.name, node.op, node.types, attributes, notes
