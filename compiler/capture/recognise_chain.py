"""The chain of an expert: the nodes through which all that the expert computes must pass.

Each such cut holds one row a token, or one a (token, slot) pair. Between two cuts lies a map of
rows that can be probed alone: from its own cut with a full basis, since from h only the reachable
part of a padded space is seen.

Written without an expert loop, one chain serves all experts; in a masked loop each has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node
from .recognise_probe import separators
from .recognise_rotation import RowProbe
from .recognise_routing import Region, random_gates, some_of
from .recognise_rows import Rows, layouts

Array = np.ndarray


@dataclass(frozen=True)
class Cut:
    """One place in the chain: one node for all experts, or one an expert; and its rows."""

    nodes: tuple[Node, ...]
    rows: Rows

    def node(self, expert: int) -> Node:
        return self.nodes[expert if len(self.nodes) > 1 else 0]

    @property
    def is_shared(self) -> bool:
        return len(self.nodes) == 1


def path(region: Region, start: Node, end: Node) -> tuple[Node, ...]:
    """The nodes through which every path from ``start`` to ``end`` leads, with routing forced."""
    return separators(region.probe, start, end, region.forced)


def cuts(
    region: Region,
    places: Sequence[tuple[Node, ...]],
    target: Cut,
    rng: np.random.Generator,
) -> list[Cut]:
    """Those ``places``, given from ``target`` backwards, that hold rows.

    Each is found by which rows of the cut behind it follow its own.
    """
    found = []
    for nodes in places:
        rows = rows_of(region, nodes, target, rng)
        if rows is not None:
            target = Cut(nodes, rows)
            found.append(target)
    return found


def rows_of(
    region: Region, nodes: tuple[Node, ...], target: Cut, rng: np.random.Generator
) -> Rows | None:
    """How ``nodes`` hold rows: the layout in which changed rows change just those of ``target``."""
    if nodes == target.nodes:
        return target.rows
    if not nodes[0].type.is_float:
        return None
    for rows in layouts(nodes[0].type.shape, region.tokens, region.k):
        trials = _touched(region, rows, rng)
        if all(_rows_agree(region, nodes, rows, target, *trial, rng) for trial in trials):
            return rows
    return None


def _touched(region: Region, rows: Rows, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Which rows to change [T, slots], and the slot of each token whose gate is not zero [T].

    First a single row, which no other layout with as many rows has in the same place, seen and
    not seen by the gates; then several.
    """
    t, slots = region.tokens, rows.slots
    for token, slot in ((0, slots - 1), (t - 1, 0)):
        single = np.zeros((t, slots), bool)
        single[token, slot] = True
        yield single, np.full(t, slot)
        if slots > 1:
            yield single, np.full(t, (slot + 1) % slots)
    for _ in range(2):
        yield some_of((t, slots), rng), rng.integers(region.k, size=t)


def _rows_agree(
    region: Region,
    nodes: tuple[Node, ...],
    rows: Rows,
    target: Cut,
    touched: Array,
    lit: Array,
    rng: np.random.Generator,
) -> bool:
    """Whether changing some rows of ``nodes`` changes the same rows of ``target`` and no other.

    Each token has one slot whose gate is not zero (``lit``), so that a target behind the sum over
    the slots shows that slot.
    """
    t, k = region.tokens, region.k
    gates = np.where(np.arange(k) == lit[:, None], random_gates(t, k, rng), 0.0)
    base = rng.standard_normal((t, rows.slots, rows.channels))
    fresh = rng.standard_normal(base.shape)
    other = np.where(touched[:, :, None], fresh, base)
    experts = region.spread(rng)
    target_nodes: Iterable[Node] = dict.fromkeys(target.nodes)
    if len(target.nodes) > 1:
        experts = np.full_like(experts, rng.integers(region.count))
        target_nodes = [target.node(int(experts[0, 0]))]
    seen = []
    for value in (base, other):
        given = region.force(experts, gates)
        given.update(dict.fromkeys(nodes, rows.write(value)))
        seen.append(target.rows.read(region.probe.run(list(target_nodes), given)[0]))
    changed = (seen[0] != seen[1]).any(2)
    if target.rows.slots == rows.slots:
        return np.array_equal(changed, touched)
    if rows.slots == 1:
        return np.array_equal(changed, np.broadcast_to(touched, changed.shape))
    behind_sum = np.take_along_axis(touched, lit[:, None], 1)
    return np.array_equal(changed, behind_sum)


def row_probe(region: Region, start: Cut, end: Cut) -> RowProbe:
    """The map of rows from ``start`` to ``end``, for rows of any experts."""

    def run(rows: Array, experts: Array) -> Array:
        out = np.empty((len(rows), end.rows.channels))
        for index, chosen in _batches(region, start, end, experts):
            place = np.zeros((region.tokens * start.rows.slots, start.rows.channels))
            place[: len(index)] = rows[index]
            shape = (region.tokens, start.rows.slots, start.rows.channels)
            given = region.force(chosen, np.ones(chosen.shape))
            first = int(experts[index[0]])
            given[start.node(first)] = start.rows.write(place.reshape(shape))
            value = end.rows.read(region.probe.run([end.node(first)], given)[0])
            value = value if start.rows.slots > 1 else value[:, :1]
            out[index] = value.reshape(-1, end.rows.channels)[: len(index)]
        return out

    return run


def _batches(region: Region, start: Cut, end: Cut, experts: Array) -> Iterator[tuple[Array, Array]]:
    """Which rows run together, and the experts [T, k] that each then goes to."""
    groups = [np.arange(len(experts))]
    if len(start.nodes) > 1 or len(end.nodes) > 1:
        groups = [np.flatnonzero(experts == expert) for expert in np.unique(experts)]
    size = region.tokens * start.rows.slots
    for group in groups:
        for low in range(0, len(group), size):
            index = group[low : low + size]
            chosen = np.full(size, experts[index[0]])
            chosen[: len(index)] = experts[index]
            repeats = region.k // start.rows.slots
            yield index, np.repeat(chosen, repeats).reshape(region.tokens, region.k)


def needs_gates(region: Region, start: Cut, end: Cut) -> bool:
    """Whether the map from ``start`` to ``end`` reads the gates."""
    given = {*region.forced, *start.nodes}
    plan = region.probe.plan(tuple(dict.fromkeys(end.nodes)), given)
    return any(operand in region.gates for node in plan for operand in node.operands)


def is_before_routing(region: Region, cut: Cut) -> bool:
    """Whether ``cut`` is one node that needs neither gates nor experts."""
    if not cut.is_shared:
        return False
    plan = region.probe.plan((cut.nodes[0],), {region.h, *region.forced})
    return not any(operand in region.forced for node in plan for operand in node.operands)
