"""Where a mixture lies in a graph: its routing op, its gates, the activation it reads, its result.

The result y is affine in the gates, token by token, with an offset that is the same for all tokens;
beyond the gates and the chosen experts it depends on one activation only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..ir.build import result
from ..ir.graph import Graph, Node, topological_order
from .recognise_gates import Gates, gate_candidates
from .recognise_masks import BY_MASK
from .recognise_probe import OutOfReach, Probe, ancestors
from .recognise_rotation import close
from .recognise_rows import Rows, layouts
from .recognise_signs import is_never_negative

Array = np.ndarray


class NotRecognised(Exception):
    """A layer is not what it was taken for; the message is the reason that a person reads.

    ``stage``: how much of the layer had been found by then. Of several attempts the one that came
    furthest tells most.
    """

    def __init__(self, reason: str, stage: int = 0) -> None:
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True)
class Region:
    """A mixture of ``count`` experts: y = f(h, experts, gates), one row of y a token.

    ``experts`` is the node that holds, token by token, the k numbers.
    """

    probe: Probe
    top_k: Node
    experts: Node
    gates: Gates
    tokens: int
    k: int
    count: int
    h: Node
    positive: bool = False  # whether it is only said of gates that are never below zero
    by_value: bool = False  # whether experts are chosen by their scores, and not by numbers

    @property
    def forced(self) -> frozenset[Node]:
        """The nodes that `force` sets."""
        return frozenset((self.top_k, *self.gates.nodes))

    def force(self, experts: Array, gates: Array, others: Array | None = None) -> dict[Node, Any]:
        """Given values by which tokens go to ``experts`` [T, k] with factors ``gates`` [T, k].

        The values of the routing op become NaN, so that no use of them beside the gates hides.
        Experts that are not chosen have a factor of zero, or that of ``others`` [T, E], if any.
        """
        values, numbers = self.top_k.types
        numbered = experts.reshape(numbers.shape).astype(np.int64)
        given: dict[Node, Any] = {self.top_k: (np.full(values.shape, np.nan), numbered)}
        rest = np.zeros((self.tokens, self.count)) if others is None else others
        return given | self.gates.write(experts, gates, rest)

    def random_gates(self, rng: np.random.Generator) -> Array:
        """Gates [T, k] of either sign where both may be, none near zero."""
        size = rng.uniform(0.3, 1.5, (self.tokens, self.k))
        return size if self.positive else np.where(rng.random(size.shape) < 0.7, size, -size)

    def spread(self, rng: np.random.Generator) -> Array:
        """Expert numbers [T, k], no token with one twice, spread over all experts."""
        first = np.arange(self.tokens)[:, None] + rng.integers(self.count)
        return np.asarray((first + np.arange(self.k)) % self.count)


def find_mixtures(
    graph: Graph, probe: Probe, top_k: Node, rng: np.random.Generator
) -> Iterator[tuple[Region, Node, Rows]]:
    """The mixtures that ``top_k`` may route, each with y and its rows; the furthest y first.

    Raises NotRecognised if there is none.
    """
    k, count = int(top_k["k"]), top_k.operands[0].type.shape[-1]
    tokens = top_k.operands[0].type.size // count
    results = [node for node in graph.nodes if node.op == "result" and top_k in node.operands]
    values = tuple(node for node in results if node["index"] == 0)
    numbers = [node for node in results if node["index"] == 1]
    # A threshold at the last value chosen needs no numbers.
    experts = numbers[0] if numbers else result(top_k, 1, f"{top_k.name}.experts")
    by_value = not numbers or BY_MASK in top_k.notes
    router = ancestors(top_k)
    found = False
    partly = ""
    for gates in gate_candidates(graph, top_k, values, tokens, count):
        for h, candidates in _dependents(graph, router, top_k, gates).items():
            region = Region(probe, top_k, experts, gates, tokens, k, count, h, by_value=by_value)
            region, mixtures = _any_mixtures(region, candidates, rng)
            if not mixtures:
                continue
            reach = reached(region, rng)
            if reach < count:
                partly = f"the gates %{gates.nodes[0].name} reach {reach} of {count} experts"
                continue
            found = True
            for y, rows in mixtures:
                yield region, y, rows
    if not found:
        nothing = "nothing behind the routing is a sum of gate times a function of one activation"
        unused = "" if numbers else "the numbers of the chosen experts are not used"
        raise NotRecognised(partly or unused or nothing)


def _any_mixtures(
    region: Region, candidates: list[Node], rng: np.random.Generator
) -> tuple[Region, list[tuple[Node, Rows]]]:
    """The mixtures for gates of either sign or, where they cannot be negative, for the others.

    A model may send a row only where its gate is above zero.
    """
    mixtures = list(_mixtures(region, candidates, rng))
    if mixtures or not all(is_never_negative(region.probe, node) for node in region.gates.heads):
        return region, mixtures
    region = replace(region, positive=True)
    return region, list(_mixtures(region, candidates, rng))


def reached(region: Region, rng: np.random.Generator) -> int:
    """How many experts have a gate that is not zero: all, unless it is the gate of one expert."""
    if region.gates.is_dense:
        return region.count - len(_never_weighed(region, rng)[0])
    found: set[int] = set()
    for first in range(0, region.count, region.tokens):
        chosen = (first + np.arange(region.tokens)[:, None] + np.arange(region.k)) % region.count
        gates = region.gates.read(
            region.probe.run(region.gates.heads, _any_scores(region, chosen, rng)), chosen
        )
        found.update(chosen[gates != 0].tolist())
    if len(found) < region.count:
        # Scores of no pattern may leave gates at zero that scores with one do not.
        never, weighed = _never_weighed(region, rng)
        return region.count if weighed and not never else len(found | weighed)
    return region.count


def _any_scores(region: Region, chosen: Array, rng: np.random.Generator) -> dict[Node, Any]:
    """Random values of all that the routing of tokens to ``chosen`` [T, k] computes."""
    values, numbers = region.top_k.types
    given: dict[Node, Any] = {
        part: rng.uniform(0.1, 1, part.type.shape)
        for part in topological_order((region.top_k,))
        if part.op != "constant" and len(part.types) == 1 and part.type.is_float
    }
    scores = rng.uniform(0.1, 1, values.shape)
    return {**given, region.top_k: (scores, chosen.reshape(numbers.shape).astype(np.int64))}


def leaves_out_others(region: Region, rng: np.random.Generator) -> bool:
    """Whether gates of all experts are zero for those not chosen, whatever the scores are."""
    chosen = region.spread(rng)
    try:
        heads = region.probe.run(region.gates.heads, _any_scores(region, chosen, rng))
    except OutOfReach:
        return False
    others = np.ones((region.tokens, region.count), bool)
    np.put_along_axis(others, chosen, False, 1)
    parts = zip(region.gates.parts, heads, strict=True)
    return all(not part.rows.read(value)[:, 0][others].any() for part, value in parts)


def _never_weighed(region: Region, rng: np.random.Generator) -> tuple[set[int], set[int]]:
    """The experts that random activations choose: those never with a gate, and those with one."""
    numbers, weighed = set[int](), set[int]()
    for _ in range(4):
        h = rng.standard_normal(region.h.type.shape)
        try:
            experts, *values = region.probe.run(
                [region.experts, *region.gates.heads], {region.h: h}
            )
        except OutOfReach:
            break  # the router reads more than the experts do
        experts = experts.reshape(region.tokens, region.k)
        numbers.update(experts.reshape(-1).tolist())
        weighed.update(experts[region.gates.read(values, experts) != 0].tolist())
    return numbers - weighed, weighed


def _dependents(
    graph: Graph, router: frozenset[Node], top_k: Node, gates: Gates
) -> dict[Node, list[Node]]:
    """For each activation h of the router's world: the nodes that need the gates and only h.

    Nodes behind another routing op are left out: they belong to later layers. A sort of the expert
    numbers is none.
    """
    needs: dict[Node, frozenset[Node] | None] = {}
    gated: set[Node] = set(gates.nodes)
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node in gates.nodes or node is top_k or node.op == "constant":
            needs[node] = frozenset()
        elif node in router or node.op == "input":
            needs[node] = frozenset((node,))
        else:
            needs[node] = _union(needs[operand] for operand in node.operands)
            if node.op == "top_k" and needs[node]:
                needs[node] = None
            if not gated.isdisjoint(node.operands):
                gated.add(node)
        need = needs[node]
        usable = node in gated and node not in gates.nodes and len(node.types) == 1
        if need is not None and len(need) == 1 and usable and node.type.is_float:
            found.setdefault(next(iter(need)), []).append(node)
    return found


def _union(parts: Iterable[frozenset[Node] | None]) -> frozenset[Node] | None:
    """All nodes of ``parts``; None, which stands for "too many", beyond a handful."""
    union: frozenset[Node] = frozenset()
    for part in parts:
        if part is None:
            return None
        union |= part
    return union if len(union) <= 4 else None


def _mixtures(
    region: Region, candidates: list[Node], rng: np.random.Generator
) -> Iterator[tuple[Node, Rows]]:
    """The candidates that are affine in the gates as y must be, with their rows; last first."""
    t, k = region.tokens, region.k
    candidates = [node for node in candidates if node.type.size % t == 0]
    if not candidates or not region.h.type.is_float:
        return
    experts = region.spread(rng)
    h = rng.standard_normal(region.h.type.shape)
    a, b = region.random_gates(rng), region.random_gates(rng)
    touched = some_of((t,), rng)
    other = np.where(touched[:, None], b, a)
    # Each channel of y is a sum over the slots: none belongs to one slot alone.
    single = [np.where(np.arange(k) == slot, a, 0.0) for slot in ((0, k - 1) if k > 1 else ())]
    given = {**region.force(experts, a), region.h: h}
    border = _before_gates(region, candidates)
    fixed = dict(zip(border, region.probe.run(border, given), strict=True))
    runs = [
        region.probe.run(candidates, given | fixed | region.force(experts, gates))
        for gates in (np.zeros((t, k)), a, b, a + b, other, *single)
    ]
    for node, zero, at_a, at_b, at_sum, at_other, *at_slot in reversed(
        list(zip(candidates, *runs, strict=True))
    ):
        if not all(np.isfinite(value).all() for value in (zero, at_a, at_b, at_sum)):
            continue
        if not close(at_a + at_b - zero, at_sum, 1e-10) or close(at_a, zero):
            continue
        for rows in layouts(node.type.shape, t, 1):
            offset = rows.read(zero)
            moved = (rows.read(at_other) != rows.read(at_a)).any((1, 2))
            reached = [(rows.read(value) != offset).any((0, 1)) for value in at_slot]
            same = all(np.array_equal(channels, reached[0]) for channels in reached)
            if np.array_equal(moved, touched) and same and (offset == offset[:1]).all():
                yield node, rows
                break


def _before_gates(region: Region, candidates: list[Node]) -> list[Node]:
    """What ``candidates`` need that does not itself need the gates: run once for many gates."""
    gated = set(region.gates.nodes)
    border: dict[Node, None] = {}
    for node in region.probe.plan(candidates, {region.h, *region.forced}):
        if not gated.isdisjoint(node.operands):
            gated.add(node)
            border.update(dict.fromkeys(node.operands))
    given = {region.h, *region.forced}
    return [node for node in border if node not in gated and node not in given]


def some_of(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A random mask with at least one element set and, where there are several, one not."""
    mask = rng.random(shape) < 0.5
    flat = mask.reshape(-1)
    first, last = rng.permutation(flat.size)[[0, -1]]
    flat[last] = False
    flat[first] = True
    return mask
