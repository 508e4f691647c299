"""Routing ops that are not written as a top k, written as one: the same numbers, fewer forms.

argmax(x), max(x), along any axis    ->  top_k(x, that axis last) {k = 1}
argmax(-x), min(x)                   ->  top_k(-x) {k = 1}
top_k(x) {k = E}, of which 0..k read ->  top_k(x) {k = k}
top_k(x) {k = a}, top_k(x without the chosen) {k = b}  ->  top_k(x) {k = a + b}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..ir.build import make, remake, result
from ..ir.graph import Graph, Node, rebuild
from .recognise_probe import OutOfReach, Probe, ancestors
from .recognise_signs import is_never_negative

# What reads the number of an expert, perhaps in another shape, or negative where it is sorted.
READERS = frozenset({"take", "gather", "equal"})
SHAPES = frozenset({"reshape", "broadcast", "cast", "transpose", "concat", "neg"})


def with_top_k(graph: Graph) -> Graph:
    """The graph whose routing is all by top_k; argmax that chooses nothing stays as it is."""
    chosen = {
        (node.operands[0], extreme(node))
        for node in graph.nodes
        if node.op == "argmax" and _chooses(graph, node)
    }
    narrow = {
        node: sizes.pop()
        for node in graph.nodes
        if node.op == "top_k" and len(sizes := _read_sizes(graph, node)) == 1
    }
    original = dict(zip((node.name for node in graph.nodes), graph.nodes, strict=True))
    lowest = {(scores.operands[0], axis) for scores, axis in chosen if scores.op == "neg"}
    made: dict[tuple[Node, int | None, bool], Node] = {}

    def router(x: Node, axis: int, least: bool) -> Node:
        if (x, axis, least) not in made:
            scores = make("neg", x, name=f"{x.name}.neg") if least else x
            last = with_last(scores, axis)
            made[x, axis, least] = make("top_k", last, name=f"{x.name}.top", k=1)
        return made[x, axis, least]

    def change(node: Node) -> Node:
        was = original[node.name]
        if was in narrow:
            return remake(node, *node.operands, k=narrow[was])
        if was.op == "result":
            return result(node.operands[0], node["index"], node.name)
        if was.op == "neg" and _top_k_of(was.operands[0]) in narrow:
            return remake(node, *node.operands)
        if was.op == "slice" and _source(was) in narrow:
            return replace(node.operands[0], name=node.name)
        largest, smallest = extreme(was), _least(was)
        if largest is not None and (was.operands[0], largest) in chosen:
            scores = node.operands[0]
            least = scores.op == "neg"
            top_k = router(scores.operands[0] if least else scores, largest, least)
            best = result(top_k, int(was.op == "argmax"), f"{node.name}.best")
        elif smallest is not None and (was.operands[0], smallest) in lowest:
            value = result(router(node.operands[0], smallest, True), 0, f"{node.name}.best")
            best = make("neg", value)
        else:
            return node
        shape = node.type.shape
        return make("reshape", best, name=node.name, source=node.source, shape=shape)

    return rebuild(graph, change) if chosen or narrow else graph


def _is_last(node: Node, axis: int) -> bool:
    return axis % node.operands[0].type.rank == node.operands[0].type.rank - 1


def extreme(node: Node) -> int | None:
    """The axis along which ``node`` is the largest, or where it is; None if it is neither."""
    if node.op == "argmax":
        return int(node["axis"]) % node.operands[0].type.rank
    return _only_axis(node) if node.op == "max" else None


def _least(node: Node) -> int | None:
    """The axis along which ``node`` is the smallest; None if it is not."""
    return _only_axis(node) if node.op == "min" else None


def _only_axis(node: Node) -> int | None:
    axes = node["axes"]
    return int(axes[0]) % node.operands[0].type.rank if len(axes) == 1 else None


def with_last(x: Node, axis: int) -> Node:
    """``x`` with ``axis`` as its last."""
    order = (*(i for i in range(x.type.rank) if i != axis), axis)
    if axis == x.type.rank - 1:
        return x
    return make("transpose", x, name=f"{x.name}.last", source=x.source, order=order)


def with_axis_back(x: Node, axis: int) -> Node:
    """``x`` with its last axis as ``axis``: what `with_last` moved, moved back."""
    last = x.type.rank - 1
    order = [*range(axis), last, *range(axis, last)]
    if axis == last:
        return x
    return make("transpose", x, name=f"{x.name}.back", source=x.source, order=tuple(order))


def _chooses(graph: Graph, node: Node) -> bool:
    """Whether something is looked up, masked or put in order by the numbers ``node``."""
    return any(
        user.op in READERS
        or (user.op == "top_k" and not user.operands[0].type.is_float)
        or (user.op in SHAPES and _chooses(graph, user))
        for user in graph.users[node]
    )


def _top_k_of(node: Node) -> Node | None:
    """The top_k of which ``node`` is a result or, where the lowest come first, minus one."""
    node = node.operands[0] if node.op == "neg" else node
    return node.operands[0] if node.op == "result" and node.operands[0].op == "top_k" else None


def _source(node: Node) -> Node | None:
    """The top_k of which ``node`` slices a result along the last axis from 0 on."""
    if not _is_last(node, node["axis"]) or (node["start"], node["step"]) != (0, 1):
        return None
    return _top_k_of(node.operands[0])


def _read_sizes(graph: Graph, top_k: Node) -> set[int]:
    """How many of the chosen are read, for each reader; more than one size if it is not clear."""
    sizes: set[int] = set()
    parts = list(graph.users[top_k])
    for part in parts:
        for reader in graph.users[part]:
            if reader.op == "neg" and part.op != "neg":
                parts.append(reader)
            elif reader.op != "slice" or _source(reader) is not top_k:
                return {0, 1}
            else:
                sizes.add(int(reader["stop"]))
        if part in graph.outputs:
            return {0, 1}
    return sizes


def with_one_router(graph: Graph) -> Graph:
    """The graph in which choosing the best, then the best of the rest, is choosing the best two."""
    while True:
        routers = [n for n in graph.nodes if n.op == "top_k" and n.operands[0].type.is_float]
        probe = Probe(dict(graph.constants))
        pair = next(
            (
                (scores, first, second)
                for number, second in enumerate(routers)
                for first in routers[:number]
                if (scores := _chooses_next(graph, probe, first, second)) is not None
            ),
            None,
        )
        if pair is None:
            return graph
        graph = _joined(graph, *pair)


@dataclass(frozen=True)
class Scores:
    """What experts are chosen by: a node, and its axes in the order that has theirs last."""

    node: Node
    order: tuple[int, ...]

    def as_rows(self) -> Node:
        return with_last(self.node, self.order[-1])


def scores_of(router: Node) -> Scores:
    """What a top_k chooses by, before its axis of experts was made the last."""
    scores = router.operands[0]
    order = tuple(range(scores.type.rank))
    if scores.op != "transpose":
        return Scores(scores, order)
    moved = Scores(scores.operands[0], scores["order"])
    return moved if moved.as_rows()["order"] == moved.order else Scores(scores, order)


def _chooses_next(graph: Graph, probe: Probe, first: Node, second: Node) -> Scores | None:
    """The scores of which ``first`` always chooses the best, and ``second`` what comes next.

    Those of ``first`` or, where it is only asked for numbers, the logits they come from. The second
    must need them, and what was chosen, alone. Tried on many random scores.
    """
    scores, rest = first.operands[0], second.operands[0]
    a, b = int(first["k"]), int(second["k"])
    if scores.type != rest.type or a + b > scores.type.shape[-1] or rest is scores:
        return None
    if first not in ancestors(rest):
        return None
    is_read = {
        router: any(n.op == "result" and not n["index"] for n in graph.users[router])
        for router in (first, second)
    }
    own = scores_of(first)
    bases = [own]
    if own.node.op == "softmax" and not is_read[first]:
        bases += [Scores(logits, own.order) for logits in own.node.operands]
    follow = (base for base in bases if _follows(probe, base, second, a, is_read[second]))
    return next(follow, None)


def _follows(probe: Probe, base: Scores, second: Node, after: int, is_read: bool) -> bool:
    """Whether of any scores ``base`` the choice of ``second`` is what comes after the best ones."""
    rng = np.random.default_rng(0)
    scores = base.node
    positive = is_never_negative(probe, scores)
    for size in (1, 1, 1, 1, 30, 30, 1000, 1000):  # what stands for "chosen" must be below all
        value = rng.uniform(0, 1, scores.type.shape)
        if not positive:
            value = size * rng.standard_normal(scores.type.shape)
        try:
            values, numbers = probe.run([second], {scores: value})[0]
        except OutOfReach:
            return False
        value = value.transpose(base.order)
        wanted = np.argsort(-value, axis=-1, kind="stable")[..., after : after + int(second["k"])]
        if not np.array_equal(numbers, wanted):
            return False
        if is_read and not np.array_equal(values, np.take_along_axis(value, wanted, -1)):
            return False
    return True


def _joined(graph: Graph, scores: Scores, first: Node, second: Node) -> Graph:
    """The graph in which one top_k of ``scores`` makes the results of both."""
    a, b = int(first["k"]), int(second["k"])
    both: list[Node] = []
    base: list[Node] = []
    original = dict(zip((node.name for node in graph.nodes), graph.nodes, strict=True))

    def change(node: Node) -> Node:
        was = original[node.name]
        if was is scores.node:
            base.append(Scores(node, scores.order).as_rows())
        if was is first:
            both.append(make("top_k", base[0], name=node.name, source=node.source, k=a + b))
            return both[0]
        if was.op != "result" or was.operands[0] not in (first, second):
            return node
        index = int(was["index"])
        start, stop = (0, a) if was.operands[0] is first else (a, a + b)
        whole = result(both[0], index, f"{both[0].name}.{index}.both")
        part: dict[str, Any] = {"axis": whole.type.rank - 1, "start": start, "stop": stop}
        return make("slice", whole, name=node.name, source=node.source, **part)

    return rebuild(graph, change)
