"""Values that the numbers of experts never keep: what leads nowhere is left out.

where(expert == 1, b(z), z) of z = where(expert == 0, a(x), x)
    ->  where(expert == 1, b(x), where(expert == 0, a(x), 0))

Of two experts each row has one: those of the second are still x, and no x is left at the end. The
layer that is found so is held against the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..ir.build import make, remake
from ..ir.graph import Node, constant
from .recognise_probe import OutOfReach
from .recognise_routing import Region

Array = np.ndarray
Plan = tuple[Node, ...]


def without_unused(region: Region, y: Node, rng: np.random.Generator) -> Node | None:
    """``y`` without what no row keeps, whatever the experts' numbers; None where all counts."""
    trials = list(_trials(region, rng))
    wanted = [region.probe.run([y], given)[0] for given in trials]
    best = y
    for form in (_reads_rest, _keeps_zeros):
        # In order, so that what reads a simpler value is tried after that has become simpler.
        tried: set[str] = set()
        while True:
            plan = region.probe.plan((best,), {region.h, *region.forced})
            others = ((name, other) for name, other in form(region, plan) if name not in tried)
            name, other = next(others, ("", best))
            if not name:
                break
            tried.add(name)
            values = (region.probe.run([other], given)[0] for given in trials)
            if all(np.array_equal(a, b) for a, b in zip(values, wanted, strict=True)):
                best = other
    return None if best is y else best


def _trials(region: Region, rng: np.random.Generator) -> Iterator[Mapping[Node, Any]]:
    """Routings in which each token goes to each expert, and all to the same ones."""
    t, k, count = region.tokens, region.k, region.count
    for first in range(count):
        for step in (1, 0):
            numbers = (first + step * np.arange(t)[:, None] + np.arange(k)) % count
            given = region.force(numbers, region.random_gates(rng))
            yield {**given, region.h: rng.standard_normal(region.h.type.shape)}


def _chosen_by_number(region: Region, plan: Plan) -> list[Node]:
    """The `where` of floats whose condition the numbers of the experts tell, and nothing else."""
    found = []
    for node in plan:
        if node.op != "where" or not node.type.is_float:
            continue
        try:
            needed = region.probe.plan(node.operands[:1], {region.top_k})
        except OutOfReach:
            continue
        if not any(part.op == "result" and part["index"] == 0 for part in needed):
            found.append(node)
    return found


def _reads_rest(region: Region, plan: Plan) -> Iterator[tuple[str, Node]]:
    """Each reader of such a value on that in front of it, before any expert's rows were kept."""
    chosen = set(_chosen_by_number(region, plan))
    for reader in plan:
        for place, value in enumerate(reader.operands):
            rest = value
            while rest in chosen:
                rest = rest.operands[2]
            is_next = reader in chosen and place == 2
            if rest is not value and rest.type == value.type and not is_next:
                operands = list(reader.operands)
                operands[place] = rest
                new = remake(reader, *operands)
                yield f"{reader.name}.{place}", _substituted(plan, {reader: new})


def _keeps_zeros(region: Region, plan: Plan) -> Iterator[tuple[str, Node]]:
    """Each such value with zeros in place of what is kept where the condition holds, or is not."""
    for node in _chosen_by_number(region, plan):
        zero = constant(region.probe.constants, np.zeros((), node.type.storage), "zero")
        condition, first, second = node.operands
        for place, values in ((2, (first, zero)), (1, (zero, second))):
            new = make("where", condition, *values, name=node.name, source=node.source)
            if node.operands[place].op != "constant" and new.type == node.type:
                yield f"{node.name}.{place}", _substituted(plan, {node: new})


def _substituted(plan: Plan, changed: Mapping[Node, Node]) -> Node:
    """The last of ``plan`` where others stand in place of some of its nodes."""
    new: dict[Node, Node] = {}
    for node in plan:
        at = changed.get(node, node)
        operands = tuple(new.get(operand, operand) for operand in at.operands)
        same = all(a is b for a, b in zip(operands, at.operands, strict=True))
        new[node] = at if same else remake(at, *operands)
    return new[plan[-1]]
