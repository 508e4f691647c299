"""Claims against what was recognised: a marked value is a layer's result, or it is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..errors import Unsupported
from ..ir.graph import Graph, Node, rebuild
from .claimed import CLAIM
from .recognise_probe import ancestors
from .recognise_routing import Region
from .recognise_rows import Rows

# What only lays values out anew.
_LAYOUT = frozenset({"reshape", "transpose"})
_NO_ROUTING = "no top-k, argmax or sort of gate scores leads to it: it is no mixture of experts"


Candidate = tuple[Region, Node, Rows]


class Verdict(Protocol):
    """What is needed of a report on a layer."""

    @property
    def source(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Claim:
    """A claim, and the path of the ``layer`` that proves it, or the ``reason`` why none does."""

    what: str
    source: str
    layer: str
    reason: str

    def as_dict(self) -> dict[str, object]:
        """The claim as plain data, for ``--json``."""
        return dict(vars(self))


def claimed_first(graph: Graph, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """The mixtures whose result is marked first; in the order found where nothing is marked."""
    if not any("claims" in node.notes for node in graph.nodes):
        return candidates
    return iter(sorted(candidates, key=lambda candidate: "claims" not in candidate[1].notes))


def judged(
    graph: Graph, reports: Mapping[Node, Verdict], results: Mapping[Node, str]
) -> tuple[Claim, ...]:
    """Each claim of ``graph`` with its proof or its refutation.

    ``reports`` are those of the routing ops, ``results`` the y of each layer found, with its path.
    """
    proofs = {_laid_out(y): path for y, path in results.items()}
    found = []
    for name, claim in graph.notes.items():
        if not name.startswith(CLAIM):
            continue
        assert isinstance(claim, tuple), "a claim is what and where"
        what, source = map(str, claim)
        nodes = [node for node in graph.nodes if name.removeprefix(CLAIM) in _keys(node)]
        proved = [proofs[end] for node in nodes if (end := _laid_out(node)) in proofs]
        reason = "" if proved else _reason(graph, nodes, reports, results)
        found.append(Claim(what, source, proved[0] if proved else "", reason))
    return tuple(found)


def check_claims(claims: Sequence[Claim]) -> None:
    """Unsupported, with the line and the recogniser's reason of each, if a claim is false."""
    false = [claim for claim in claims if not claim.layer]
    if not false:
        return
    head = "a marked value is" if len(false) == 1 else f"{len(false)} marked values are"
    lines = [
        f"  {claim.what} ({claim.source or 'no source line'}): {claim.reason}" for claim in false
    ]
    raise Unsupported(
        "\n".join([f"{head} not the result of a Butterfly layer:", *lines]),
        where=next((claim.source for claim in false if claim.source), None),
        help="mark the layer's own result, before a residual or a norm; or remove the mark: "
        "what is not recognised is compiled as it is written",
    )


def without_claims(graph: Graph) -> Graph:
    """The graph without notes on claims."""
    notes = {key: value for key, value in graph.notes.items() if not key.startswith(CLAIM)}
    if len(notes) == len(graph.notes):
        return graph

    def plain(node: Node) -> Node:
        kept = {key: value for key, value in node.notes.items() if key != "claims"}
        return node if len(kept) == len(node.notes) else replace(node, notes=kept)

    clean = rebuild(graph, plain)
    return Graph(clean.name, clean.inputs, clean.outputs, clean.constants, notes)


def _keys(node: Node) -> tuple[object, ...]:
    keys = node.notes.get("claims", ())
    assert isinstance(keys, tuple), "the note lists keys"
    return keys


def _laid_out(node: Node) -> Node:
    """The value that ``node`` has in another layout."""
    while node.op in _LAYOUT:
        node = node.operands[0]
    return node


def _reason(
    graph: Graph,
    nodes: Sequence[Node],
    reports: Mapping[Node, Verdict],
    results: Mapping[Node, str],
) -> str:
    """Why none of ``nodes`` is a layer's result, by the routing nearest to the last of them."""
    if not nodes:
        return "it depends on no input, or its rows are computed in another form"
    before = ancestors(nodes[-1])
    routers = [node for node in graph.nodes if node in reports and node in before]
    if not routers:
        return _NO_ROUTING
    report = reports[routers[-1]]
    for y, path in results.items():
        if routers[-1] in ancestors(y):
            place = f"'{path}' ({y.source or report.source})"
            if _laid_out(y) in before:
                return f"nothing routes between the result of the layer {place} and this value"
            return f"it lies inside of the layer {place}, and is not its result"
    return f"{report.reason} (routing at {report.source or 'no source line'})"
