"""What there is to tune in a graph: calls of kernels that can be made in more than one way."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import attrs

from ..compiler.ir import Graph, Node
from ..compiler.ir.schedule import steps_of
from ..compiler.ir.views import VIEWS
from ..kernels import all_kernels
from ..kernels.record import Spec
from ..passes.base import Pass
from ..passes.select_kernels import SelectKernels, spec_of
from .search import Way

# A way of which a model says that it takes so many times the least is not tried.
HOPELESS = 8.0


@attrs.frozen
class Call:
    """Nodes that ask for the same, and the ``ways`` to compute it, of which the first is taken
    where nothing was measured.

    ``key`` is the text by which records know the call, ``count`` how often one inference makes it,
    and ``left_out`` how many ways are hopeless.
    """

    key: str
    spec: Spec
    nodes: tuple[str, ...]
    count: int
    ways: tuple[Way, ...]
    left_out: int = 0


def calls_of(graph: Graph, passes: Sequence[Pass]) -> tuple[Call, ...]:
    """The calls of ``graph``, which is what `select_kernels` of these ``passes`` is given.

    Calls that can be made in one way alone are no choice, and left out. The first way of each is
    what the passes take for its first node; they are to know of nothing that was tuned.
    """
    select, taken = select_of(passes), _taken(graph, passes)
    times = _times(graph)
    found = []
    for key, nodes in asking(graph, select).items():
        first, names = nodes[0], tuple(node.name for node in nodes)
        ways, left_out = _ways(first, taken[first.name], select)
        count = sum(times[name] for name in names)
        found.append(Call(key, spec_of(first), names, count, ways, left_out))
    return tuple(found)


def asking(graph: Graph, select: SelectKernels) -> dict[str, list[Node]]:
    """The nodes that can be computed in more than one way, by the key of what they ask."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op not in VIEWS and _is_choice(node, select):
            found.setdefault(key_of(spec_of(node)), []).append(node)
    return found


def select_of(passes: Iterable[Pass]) -> SelectKernels:
    """The one of ``passes`` that chooses kernels."""
    return next(step for step in passes if isinstance(step, SelectKernels))


def _is_choice(node: Node, select: SelectKernels) -> bool:
    spec, able = spec_of(node).with_parameters({}), select.able(node)
    return len(able) > 1 or any(len(kernel.ways(spec, select.lanes)) > 1 for kernel in able)


def key_of(spec: Spec) -> str:
    """``spec`` as text, without what no kernel for its op has in its code.

    As ``ternary_dot(i8[65x256], ternary[1024x256]) -> i32[65x1024] {bits=8}``.
    """
    serving = [kernel for kernel in all_kernels() if spec.op in kernel.ops]
    apart = [{*kernel.numbers, *kernel.ignored} for kernel in serving]
    aside = set.intersection(*apart) if apart else set()
    said = ", ".join(f"{name}={value}" for name, value in spec.attributes if name not in aside)
    operands = ", ".join(map(str, spec.operands))
    results = ", ".join(map(str, spec.results))
    return f"{spec.op}({operands}) -> {results}" + (f" {{{said}}}" if said else "")


def _taken(graph: Graph, passes: Sequence[Pass]) -> dict[str, tuple[str, Mapping[str, int]]]:
    """The kernel and the parameters that ``passes`` choose for each node."""
    names = [step.name for step in passes]
    for step in passes[names.index("select_kernels") : names.index("pack_weights")]:
        graph = step(graph)
    chosen = {node.name: node for node in graph.nodes if "kernel" in node.notes}
    return {
        name: (str(node.notes["kernel"]), dict(spec_of(node).parameters))
        for name, node in chosen.items()
    }


def _ways(
    node: Node, taken: tuple[str, Mapping[str, int]], select: SelectKernels
) -> tuple[tuple[Way, ...], int]:
    """All ways to compute ``node`` that have a hope, ``taken`` first; and how many have none."""
    spec = spec_of(node).with_parameters({})
    found: dict[Hashable, Way] = {}
    for kernel in sorted(select.able(node), key=lambda kernel: kernel.name != taken[0]):
        places = kernel.combinations(spec, select.lanes)
        first = (taken[1],) if kernel.name == taken[0] else ()
        for parameters in (*first, *kernel.ways(spec, select.lanes)):
            asked = spec.with_parameters(parameters)
            predicted = kernel.cost(asked, select.lanes)
            # Parameters that come to the same function are one way.
            plan = kernel.name, kernel.plan(asked, select.lanes)
            place = places.get(plan[1], parameters)
            found.setdefault(plan, Way(kernel.name, parameters, predicted, place))
    default, *others = found.values()
    least = min(way.predicted or 0.0 for way in found.values())
    hopeful = [way for way in others if (way.predicted or 0.0) <= HOPELESS * least]
    return (default, *hopeful), len(others) - len(hopeful)


def _times(graph: Graph) -> dict[str, int]:
    """How many calls compute each node: one, or one a tile of its rows."""
    return {
        node.name: sum(count for _, count, _ in step.tiles)
        for step in steps_of(graph)
        for node in step.nodes
    }
