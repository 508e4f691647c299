"""The chain of an expert: the places through which all that the expert computes must pass.

Each such cut holds one row a token, or one for each (token, slot), or for each (token, expert):
as an axis of one tensor, or in a node for each where the model loops. Between two cuts lies a map
of rows that can be probed alone: from its own cut with a full basis, since from h only the
reachable part of a padded space is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node
from ..ir.ops.elementwise import ACTIVATIONS
from .recognise_probe import separators
from .recognise_rotation import RowProbe
from .recognise_routing import Region, random_gates, some_of
from .recognise_rows import Rows, layouts

Array = np.ndarray
TOKEN, SLOT, EXPERT = "token", "slot", "expert"


@dataclass(frozen=True)
class Cut:
    """One place in the chain, with rows [T, S, n]; ``kind`` says for what S stands.

    token: S = 1, all experts of a token share its row. slot: S = k. expert: S = E.
    One node holds all S rows of a token, or each of S nodes one.
    """

    nodes: tuple[Node, ...]
    rows: Rows
    kind: str

    @property
    def slots(self) -> int:
        return len(self.nodes) if len(self.nodes) > 1 else self.rows.slots

    @property
    def channels(self) -> int:
        return self.rows.channels

    def write(self, value: Array) -> dict[Node, Array]:
        """The nodes' values where the rows are ``value`` [T, S, n]."""
        if len(self.nodes) == 1:
            return {self.nodes[0]: self.rows.write(value)}
        return {node: self.rows.write(value[:, i : i + 1]) for i, node in enumerate(self.nodes)}

    def read(self, values: Sequence[Array]) -> Array:
        """The rows [T, S, n] of the nodes' values."""
        return np.concatenate([self.rows.read(value) for value in values], axis=1)


def slots_of(region: Region, kind: str) -> int:
    return {TOKEN: 1, SLOT: region.k, EXPERT: region.count}[kind]


def path(region: Region, start: Node, end: Node, beside: Iterable[Node] = ()) -> tuple[Node, ...]:
    """The nodes through which every path from ``start`` to ``end`` leads, with routing forced.

    Nodes ``beside`` the start are given too: those of the other slots or experts.
    """
    return separators(region.probe, start, end, {*region.forced, *beside} - {start})


def cuts(
    region: Region,
    places: Sequence[tuple[Node, ...]],
    target: Cut,
    lanes: str,
    rng: np.random.Generator,
) -> list[Cut]:
    """Those ``places``, given from ``target`` backwards, that hold rows.

    Each is found by which rows of the cut behind it follow its own. Where a place has several
    nodes, they are ``lanes``, slots or experts.
    """
    found = []
    for nodes in places:
        cut = target if nodes == target.nodes else cut_of(region, nodes, target, lanes, rng)
        if cut is not None:
            target = cut
            found.append(cut)
    return found


def cut_of(
    region: Region, nodes: tuple[Node, ...], target: Cut, lanes: str, rng: np.random.Generator
) -> Cut | None:
    """``nodes`` as a cut: the layout in which changed rows change just those of ``target``."""
    if not nodes[0].type.is_float:
        return None
    if [(node.op in ACTIVATIONS, node.operands) for node in target.nodes] == [
        (True, (node,)) for node in nodes
    ]:
        return Cut(nodes, target.rows, target.kind)
    for kind in (SLOT, EXPERT, TOKEN) if len(nodes) == 1 else (lanes,):
        count = slots_of(region, kind)
        if count == 1 and kind != TOKEN and len(nodes) == 1:
            continue
        for rows in layouts(nodes[0].type.shape, region.tokens, count if len(nodes) == 1 else 1):
            cut = Cut(nodes, rows, kind)
            if all(
                _agrees(region, cut, target, *trial, rng) for trial in _trials(region, cut, rng)
            ):
                return cut
    return None


def _trials(
    region: Region, cut: Cut, rng: np.random.Generator
) -> Iterator[tuple[Array, Array, Array]]:
    """Which rows to change [T, S], the experts [T, k], and the one slot of each token to see [T].

    First a single row, which no other layout with as many rows has in the same place, seen and not
    seen; then several.
    """
    t, k, slots = region.tokens, region.k, cut.slots
    for token, slot in ((0, slots - 1), (t - 1, 0)):
        single = np.zeros((t, slots), bool)
        single[token, slot] = True
        for other in (0, 1) if slots > 1 else (0,):
            lit = slot + other if cut.kind == SLOT else 0
            first = slot + other if cut.kind == EXPERT else rng.integers(region.count)
            experts = (first + np.arange(t)[:, None] - token + np.arange(k)) % region.count
            yield single, experts, np.full(t, lit % k)
    for _ in range(2):
        yield some_of((t, slots), rng), region.spread(rng), rng.integers(k, size=t)


def _agrees(
    region: Region,
    cut: Cut,
    target: Cut,
    touched: Array,
    experts: Array,
    lit: Array,
    rng: np.random.Generator,
) -> bool:
    """Whether changing the rows ``touched`` changes the same rows of ``target`` and no other.

    Each token has one slot whose gate is not zero, ``lit``: behind the sum only that one is seen.
    """
    gates = random_gates(region.tokens, region.k, rng)
    gates[np.arange(region.k) != lit[:, None]] = 0
    wanted = _followers(cut.kind, target.kind, touched, experts, lit)
    if wanted is None:
        return False
    base = rng.standard_normal((region.tokens, cut.slots, cut.channels))
    other = np.where(touched[:, :, None], rng.standard_normal(base.shape), base)
    seen = [
        target.read(region.probe.run(target.nodes, region.force(experts, gates) | cut.write(value)))
        for value in (base, other)
    ]
    changed = (seen[0] != seen[1]).any(2)
    return np.array_equal(changed, np.broadcast_to(wanted, changed.shape))


def _followers(kind: str, target: str, touched: Array, experts: Array, lit: Array) -> Array | None:
    """Which rows of a ``target`` change where rows ``touched`` do; None if it cannot be so."""
    if kind in (target, TOKEN):
        return touched
    if target == EXPERT:
        return None
    if kind == EXPERT:
        touched = np.take_along_axis(touched, experts, 1)  # [T, k]
    return touched if target == SLOT else np.take_along_axis(touched, lit[:, None], 1)


def row_probe(region: Region, start: Cut, end: Cut) -> RowProbe:
    """The map of rows from ``start`` to ``end``, for rows of any experts."""

    def run(rows: Array, experts: Array) -> Array:
        out = np.empty((len(rows), end.channels))
        batch, token, slot = _places(region, start, end, experts)
        for number in range(int(batch.max(initial=-1)) + 1):
            here = np.flatnonzero(batch == number)
            t, s, e = token[here], slot[here], experts[here]
            value = np.zeros((region.tokens, start.slots, start.channels))
            value[t, s] = rows[here]
            chosen = np.full((region.tokens, region.k), e[0])
            chosen[t, s if start.kind == SLOT else slice(None)] = (
                e if start.kind == SLOT else e[:, None]
            )
            given = region.force(chosen, np.ones(chosen.shape)) | start.write(value)
            result = end.read(region.probe.run(end.nodes, given))
            if end.kind == EXPERT:
                s = e
            elif start.kind != SLOT or end.kind == TOKEN:
                s = np.zeros_like(s)
            out[here] = result[t, s]
        return out

    return run


def _places(region: Region, start: Cut, end: Cut, experts: Array) -> tuple[Array, Array, Array]:
    """Where each row runs: in which batch, as which token, in which slot of ``start``."""
    number, t = np.arange(len(experts)), region.tokens
    if start.kind == SLOT:
        size = t * region.k
        return number // size, number % size // region.k, number % region.k
    slot = experts if start.kind == EXPERT else np.zeros_like(experts)
    if start.kind == end.kind == EXPERT:
        for expert in np.unique(experts):  # experts have rows of their own for the same token
            number[experts == expert] = np.arange((experts == expert).sum())
    return number // t, number % t, slot


def needs_gates(region: Region, start: Cut, end: Cut) -> bool:
    """Whether the map from ``start`` to ``end`` reads the gates."""
    given = {*region.forced, *start.nodes}
    plan = region.probe.plan(end.nodes, given)
    return any(operand in region.gates for node in plan for operand in node.operands)


def is_before_routing(region: Region, cut: Cut) -> bool:
    """Whether ``cut`` is one node that needs neither gates nor experts, with one row a token.

    The row may stand there several times, where the model repeats it before it norms it.
    """
    if len(cut.nodes) > 1:
        return False
    plan = region.probe.plan(cut.nodes, {region.h, *region.forced})
    if any(operand in region.forced for node in plan for operand in node.operands):
        return False
    h = np.random.default_rng(0).standard_normal(region.h.type.shape)
    rows = cut.read(region.probe.run(cut.nodes, {region.h: h}))
    return bool((rows == rows[:, :1]).all())
