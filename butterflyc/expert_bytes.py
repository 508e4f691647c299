"""What the experts of a compiled model take: what they share, what each owns, how many more fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .budget import foretold
from .compiler.ir import Graph, Node
from .expert_sizes import LAST, Subject
from .passes.arena import aligned
from .passes.budget import Budgets
from .passes.expert_parts import Routed, routed_layers
from .passes.resize_experts import ResizeExperts
from .passes.select_kernels import untuned
from .targets.code_size import Code
from .targets.placement import constants_of
from .targets.registry import core_from, family_of

if TYPE_CHECKING:
    from .program import Program

KINDS = ("angles", "router", "ternary matrix", "W_down", "scales and tables")


def expert_bytes(program: Program) -> dict[str, Any]:
    """Bytes of weights by layer and kind, as they lie in memory; what another expert takes.

    ``layers`` has those that choose experts, each with its ``path`` and ``bytes`` by the names of
    `KINDS`: experts own their angles and a row of the router, and share the rest. A constant that
    several layers share is counted in the first. ``one_more`` are bytes of weights over all layers,
    None where layers differ in their number of experts; ``more_fit`` is how many more would fit the
    memories that the program was placed in, None where no placement is known.
    """
    graph = program.stages[list(program.stages)[-1]]
    routed = routed_layers(graph)
    rows, counted = [], set[str]()
    for layer in routed:
        path = _path(program, layer)
        rows.append({"path": path, "bytes": _bytes_by_kind(graph, layer, path, counted)})
    same = len({layer.count for layer in routed}) == 1
    return {
        "layers": rows,
        "one_more": _one_more(graph, routed[0].count) if same else None,
        "more_fit": _more_that_fit(program, routed[0]) if same else None,
    }


def _path(program: Program, layer: Routed) -> str:
    """The name of a layer in the model: the one that its angles' names start with."""
    name = layer.rotations[0].name
    paths = [str(each["path"]) for each in program.report["layers"]]
    return next((path for path in paths if name.startswith(f"{path}.")), name)


def _bytes_by_kind(graph: Graph, layer: Routed, path: str, counted: set[str]) -> dict[str, int]:
    sizes = dict.fromkeys(KINDS, 0)
    for node in graph.nodes:
        if node.op != "constant" or str(node["digest"]) in counted:
            continue
        if kind := _kind(node, layer, path):
            counted.add(str(node["digest"]))
            sizes[kind] += aligned(graph.value(node).nbytes)
    return sizes


def _kind(node: Node, layer: Routed, path: str) -> str | None:
    """The kind of a constant of that layer; None if it is another's."""
    if node in layer.rotations:
        return "angles"
    if node in layer.router:
        return "router"
    if not node.name.startswith(f"{path}."):
        return None
    if node.name.removeprefix(f"{path}.").startswith("w_down"):
        return "W_down"
    return "ternary matrix" if node.type.dtype == "ternary" else "scales and tables"


def _one_more(graph: Graph, count: int) -> int:
    """Bytes of weights that another expert in every layer takes."""
    now, then = (
        sum(constant.place for constant in constants_of(each))
        for each in (graph, ResizeExperts(count + 1, stand_ins=True)(graph))
    )
    return then - now


def _more_that_fit(program: Program, layer: Routed) -> int | None:
    """How many more experts a layer would fit beside the code and activations; see `budget`."""
    placement = program.placement
    if placement is None or placement["memory"]["flash"]["usable"] is None:
        return None
    core, budgets = core_from(program.manifest["core"]), Budgets.of(program.manifest)
    passes = family_of(core).passes(core, program.mode, (), budgets)
    code = Code(placement["code"]["bytes"], placement["code"]["measured"])
    graph = program.stages[LAST]
    subject = Subject(
        core, program.mode, passes, budgets, untuned, captured=graph, packed=graph, code=code
    )
    return foretold(subject, subject.first, layer.chosen) - layer.count
