"""Running parts of a graph on values of our choice: the instrument of recognition.

A probe sets some nodes to given values and asks for others. Given floats are double precision, and
so is all that follows from them; what follows only from constants and expert numbers is computed in
the graph's own precision, exactly as eager PyTorch does, and lifted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, constant, topological_order
from ..ir.interpret import constant_value
from ..ir.ops import OPS

Array = np.ndarray
PRODUCTS_OF_ROWS = frozenset({"linear", "ternary_matmul"})
_Key = tuple[tuple[Node, ...], frozenset[Node]]
_Steps = list[tuple[Node, list[Node]]]


class OutOfReach(Exception):
    """A value was asked for that depends on a graph input which no given value cuts off."""


class Probe:
    """Evaluates nodes of one graph; ``constants`` may grow while nodes are added to it."""

    def __init__(self, constants: dict[str, Array]) -> None:
        self.constants = constants
        self._plans: dict[_Key, tuple[Node, ...]] = {}
        self._done: dict[_Key, _Steps] = {}

    def plan(self, targets: Sequence[Node], given: Iterable[Node]) -> tuple[Node, ...]:
        """The nodes that ``targets`` need beyond ``given``, operands first. Raises OutOfReach."""
        key = tuple(targets), frozenset(given)
        if key not in self._plans:
            order = topological_order(targets, key[1])
            plan = tuple(node for node in order if node not in key[1])
            for node in plan:
                if node.op == "input":
                    raise OutOfReach(f"the result needs '{node.name}' by a way past its experts")
            self._plans[key] = plan
        return self._plans[key]

    def run(self, targets: Sequence[Node], given: Mapping[Node, Any]) -> list[Any]:
        """The values of ``targets`` where the nodes in ``given`` have those values."""
        values: dict[Node, Any] = dict(given)
        for node, done in self._steps(targets, given):
            values[node] = self.evaluate(node, values)
            for other in done:
                del values[other]
        return [values[node] for node in targets]

    def _steps(self, targets: Sequence[Node], given: Iterable[Node]) -> _Steps:
        """The plan, and with each node those whose values nothing needs after it."""
        key = tuple(targets), frozenset(given)
        if key not in self._done:
            plan = self.plan(targets, given)
            last = {operand: node for node in plan for operand in node.operands}
            done: dict[Node, list[Node]] = {node: [] for node in plan}
            for operand, node in last.items():
                if operand in done and operand not in key[0]:
                    done[node].append(operand)
            self._done[key] = [(node, done[node]) for node in plan]
        return self._done[key]

    def evaluate(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """One node from the values of its operands."""
        if node.op == "constant":
            return constant_value(self.constants, node)
        if node.op == "result":
            return values[node.operands[0]][int(node["index"])]
        return apply(node, [values[operand] for operand in node.operands])


def apply(node: Node, arguments: Sequence[Array]) -> Any:
    """What ``node`` makes of ``arguments``; double precision wherever one of them is lifted."""
    lifted = any(
        argument.dtype == np.float64 and operand.type.dtype != "f64"
        for argument, operand in zip(arguments, node.operands, strict=True)
    )
    if lifted:
        arguments = [
            argument.astype(np.float64) if operand.type.is_float else argument
            for argument, operand in zip(arguments, node.operands, strict=True)
        ]
    if node.op in PRODUCTS_OF_ROWS:
        # One product in place of a stack of small ones, which NumPy runs one by one.
        arguments = [arguments[0].reshape(-1, arguments[0].shape[-1]), *arguments[1:]]
    with np.errstate(all="ignore"):
        outcome = OPS[node.op].meaning(*arguments, **node.attributes)
    if node.op in PRODUCTS_OF_ROWS:
        outcome = outcome.reshape(node.type.shape)
    parts = outcome if isinstance(outcome, tuple) else (outcome,)
    typed = tuple(
        np.asarray(part).astype(
            np.float64 if lifted and type.is_float else type.storage, copy=False
        )
        for part, type in zip(parts, node.types, strict=True)
    )
    return typed if len(node.types) > 1 else typed[0]


def fold_constants(graph: Graph) -> Graph:
    """The graph with all that depends on no input computed, in each node's own precision."""
    probe = Probe(dict(graph.constants))
    store: dict[str, Array] = {}
    folded: dict[Node, Any] = {}
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "constant" or (node.operands and all(x in folded for x in node.operands)):
            folded[node] = probe.evaluate(node, folded)
    for node in graph.nodes:
        if node.op == "constant":
            new[node] = node
            store[str(node["digest"])] = graph.value(node)
        elif node in folded and len(node.types) == 1:
            kept = constant(store, folded[node], node.name, node.type)
            new[node] = replace(kept, source=node.source)
        elif node not in folded:
            operands = tuple(new[operand] for operand in node.operands)
            new[node] = replace(node, operands=operands) if operands != node.operands else node
    outputs = tuple(new[node] for node in graph.outputs)
    inputs = tuple(new[node] for node in graph.inputs)
    return with_used_constants(Graph(graph.name, inputs, outputs, store, graph.notes))


def with_used_constants(graph: Graph) -> Graph:
    """The graph without the constants that none of its nodes reads."""
    used = {str(node["digest"]) for node in graph.nodes if node.op == "constant"}
    kept = {digest: array for digest, array in graph.constants.items() if digest in used}
    return Graph(graph.name, graph.inputs, graph.outputs, kept, graph.notes)


def ancestors(node: Node) -> frozenset[Node]:
    """Every node that ``node`` needs, itself too."""
    return frozenset(topological_order((node,)))


def separators(probe: Probe, start: Node, end: Node, given: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes, in order, that lie on every path from ``start`` to ``end`` past ``given``.

    Counted, not searched: a node separates if (paths to it) x (paths from it) = all paths.
    """
    plan = probe.plan((end,), {start, *given})
    paths_to: dict[Node, int] = {start: 1}
    for node in plan:
        paths_to[node] = sum(paths_to.get(operand, 0) for operand in node.operands)
    paths_from: dict[Node, int] = {end: 1}
    for node in reversed(plan):
        for operand in node.operands:
            paths_from[operand] = paths_from.get(operand, 0) + paths_from.get(node, 0)
    total = paths_to[end]
    return tuple(
        node
        for node in (start, *plan)
        if total and paths_to[node] * paths_from.get(node, 0) == total
    )
