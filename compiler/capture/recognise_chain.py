"""The chain of an expert: the places through which all that the expert computes must pass.

Looked at under known routings, in which each token shows one expert: every other gate is zero. Then
each place holds one row a token, in whatever form the model keeps it: in a tensor of its own, in
one of several where the model loops, among the rows of other slots and experts. Between two places
lies a map of rows that can be probed alone: from its own place with a full basis, since from the
layer's activation only the reachable part of a padded space is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..ir.graph import Node
from .recognise_probe import separators
from .recognise_rotation import RowProbe
from .recognise_routing import NotRecognised, Region
from .recognise_rows import Rows
from .recognise_tokens import NONE, Owners, code_words, filled, places

Array = np.ndarray
Lanes = tuple[Node, ...]  # one node for each lane; the same where the lanes share it


@dataclass(frozen=True)
class View:
    """A region under one routing: token t goes to ``shown[t]``, which stands in slot ``lit[t]``.

    ``lane[t]`` is the number of the ternary product that the token passes through. ``base``: the
    value of each node that was learnt; ``owners``: the token that each of its elements follows.
    """

    experts: Array  # [T, k]
    lit: Array  # [T]
    given: Mapping[Node, Any]
    lane: Array  # [T]
    base: Mapping[Node, Array]
    owners: Mapping[Node, Array]

    @property
    def shown(self) -> Array:
        """The expert that each token shows, [T]."""
        return np.asarray(self.experts[np.arange(len(self.lit)), self.lit])


@dataclass(frozen=True)
class Cut:
    """One place in the chain: nodes, and in each view where among them a token's channels lie.

    ``index`` [T, n] counts through the elements of all nodes, one node after the other. ``copies``:
    of how many rows, all of one token, the tensor holds the one that is shown.
    """

    nodes: Lanes
    index: tuple[Array, ...]
    copies: int = 1

    @property
    def channels(self) -> int:
        return int(self.index[0].shape[1])

    def write(self, number: int, view: View, rows: Array | None) -> dict[Node, Array]:
        """The nodes' values in view ``number`` where the rows are ``rows`` [T, n], or as learnt."""
        flat = np.concatenate([view.base[node].reshape(-1) for node in self.nodes])
        if rows is not None:
            flat[self.index[number]] = rows
        parts = np.split(flat, np.cumsum([node.type.size for node in self.nodes])[:-1])
        return {
            node: part.reshape(node.type.shape)
            for node, part in zip(self.nodes, parts, strict=True)
        }

    def read(self, number: int, values: Sequence[Array]) -> Array:
        """The rows [T, n] that the nodes' values hold in view ``number``."""
        flat = np.concatenate([value.reshape(-1) for value in values])
        return np.asarray(flat[self.index[number]])


@dataclass(frozen=True)
class Chain:
    """The views of one region, and the result in which they end."""

    region: Region
    views: tuple[View, ...]
    end: Cut

    def cuts(self, behind: Sequence[Lanes], target: Cut) -> list[Cut]:
        """Those places, given from ``target`` backwards, that hold rows."""
        found = []
        for lanes in behind:
            cut = self.cut_at(lanes, target)
            if cut is not None:
                target = cut
                found.append(cut)
        return found

    def cut_at(self, lanes: Lanes, target: Cut) -> Cut | None:
        """The rows that ``lanes`` hold: those that the rows of the later cut ``target`` follow."""
        nodes = tuple(dict.fromkeys(lanes))
        if not all(node.type.is_float for node in nodes):
            return None
        whole = [self._places(lanes, nodes, view) for view in self.views]
        if any(index is None or index.shape[1] != _width(whole) for index in whole):
            return None
        cut = Cut(nodes, tuple(index for index in whole if index is not None))
        for copies in self._copies(cut):
            chosen = self._shown(cut, target, copies)
            if chosen is not None:
                return chosen
        return cut

    def _places(self, lanes: Lanes, nodes: Lanes, view: View) -> Array | None:
        """Where all elements lie that follow each token, in the node of the token's lane."""
        index: Array | None = None
        starts = dict(zip(nodes, np.cumsum([0, *(n.type.size for n in nodes)]), strict=False))
        for node in nodes:
            owned = [lane for lane, other in enumerate(lanes) if other is node]
            tokens = np.flatnonzero(np.isin(view.lane, owned))
            if not len(tokens):
                continue
            found = places(tokens.tolist(), view.owners[node])
            if found is None:
                return None
            if index is None:
                index = np.zeros((len(view.lane), found.shape[1]), np.int64)
            if found.shape[1] != index.shape[1]:
                return None
            index[tokens] = found + starts[node]
        return index

    def _copies(self, cut: Cut) -> list[int]:
        """How many rows a token may have in ``cut``, most first: of six, three are idle too."""
        k, count = self.region.k, self.region.count
        return [n for n in sorted({k, count, k * count})[::-1] if n > 1 and cut.channels % n == 0]

    def _shown(self, cut: Cut, target: Cut, copies: int) -> Cut | None:
        """``cut`` with just one of so many rows of each token: the one that ``target`` follows."""
        t, width = cut.index[0].shape
        rest = width // copies
        for inner in self._inner((cut.nodes[0], target.nodes[0]), rest):
            chosen = []
            for number, view in enumerate(self.views):
                apart = cut.index[number].reshape(t, rest // inner, copies, inner)
                index = apart.swapaxes(1, 2).reshape(t, copies, rest)  # [T, copies, n]
                copy = self._followed(number, view, Cut(cut.nodes, cut.index), index, target)
                if copy is None:
                    break
                chosen.append(index[np.arange(t), copy])
            else:
                return Cut(cut.nodes, tuple(chosen), copies)
        return None

    def _inner(self, nodes: Lanes, channels: int) -> list[int]:
        """How many of its ``channels`` a row may have behind the axis along which it is copied."""
        tails = [n for node in nodes for n in np.cumprod(node.type.shape[::-1]).tolist()]
        tails += [tail // self.region.tokens for tail in tails]
        between = {n for n in tails if 1 < n < channels and channels % n == 0}
        return [channels, 1, *sorted(between)]

    def _followed(
        self, number: int, view: View, cut: Cut, index: Array, target: Cut
    ) -> Array | None:
        """Which of its rows ``index`` [T, copies, n] each token's row of ``target`` follows."""
        rng = np.random.default_rng(0)

        def run(rows: Array | None, index: Array) -> Array:
            part = Cut(cut.nodes, (*cut.index[:number], index))
            given = part.write(number, view, rows)
            known = {**view.given, **given}
            return target.read(number, self.region.probe.run(target.nodes, known))

        before = run(None, index[:, 0])
        found = np.full(len(index), NONE)
        for copy in range(index.shape[1]):
            fresh = rng.standard_normal(index[:, copy].shape)
            moved = (run(fresh, index[:, copy]) != before).any(1)
            if (found[moved] != NONE).any():
                return None
            found[moved] = copy
        if (found == NONE).any():
            return None
        # Where all tokens follow the same part, though they show other slots and experts, the other
        # parts are idle channels: those that a rotation of a padded row drops.
        differ = len(set(zip(view.lit.tolist(), view.shown.tolist(), strict=True))) > 1
        return None if differ and (found == found[0]).all() else found

    def row_probe(self, start: Cut, end: Cut) -> RowProbe:
        """The map of rows from ``start`` to ``end``, for rows of any experts."""
        homes: dict[int, list[tuple[int, int]]] = {}
        for number, view in enumerate(self.views):
            for token, expert in enumerate(view.shown):
                homes.setdefault(int(expert), []).append((number, token))

        def run(rows: Array, experts: Array) -> Array:
            out = np.empty((len(rows), end.channels))
            batches: dict[tuple[int, int], list[tuple[int, int]]] = {}
            used = dict.fromkeys(homes, 0)
            for row, expert in enumerate(experts.tolist()):
                again, place = divmod(used[expert], len(homes[expert]))
                used[expert] += 1
                number, token = homes[expert][place]
                batches.setdefault((again, number), []).append((row, token))
            for (_, number), pairs in batches.items():
                here, tokens = np.array(pairs).T
                value = np.zeros((self.region.tokens, start.channels))
                value[tokens] = rows[here]
                out[here] = self.run(number, start, end, value)[tokens]
            return out

        return run

    def run(
        self,
        number: int,
        start: Cut,
        end: Cut,
        rows: Array,
        given: Mapping[Node, Any] | None = None,
    ) -> Array:
        """The rows of ``end`` in view ``number`` where those of ``start`` are ``rows`` [T, n]."""
        view = self.views[number]
        known = {**view.given, **(given or {}), **start.write(number, view, rows)}
        return end.read(number, self.region.probe.run(end.nodes, known))

    def is_before_routing(self, cut: Cut) -> bool:
        """Whether ``cut`` is one node that needs neither gates nor experts."""
        return len(cut.nodes) == 1 and is_before_routing(self.region, cut.nodes[0])


def _width(indices: Sequence[Array | None]) -> int:
    return -1 if indices[0] is None else int(indices[0].shape[1])


def is_before_routing(region: Region, node: Node) -> bool:
    """Whether ``node`` needs the activation h and neither gates nor experts."""
    plan = region.probe.plan((node,), {region.h, *region.forced})
    return not any(operand in region.forced for n in plan for operand in n.operands)


def reads_gates(region: Region, nodes: Sequence[Node], known: Sequence[Node]) -> bool:
    """Whether ``nodes`` need the gates, where the nodes ``known`` are given."""
    plan = region.probe.plan(tuple(nodes), {region.h, *region.forced, *known})
    return any(operand in region.gates.nodes for node in plan for operand in node.operands)


def path(region: Region, start: Node, end: Node, beside: Iterable[Node] = ()) -> Lanes:
    """The nodes through which every path from ``start`` to ``end`` leads, with routing forced.

    Nodes ``beside`` the start are given too: those of the other lanes.
    """
    return separators(region.probe, start, end, {*region.forced, *beside} - {start})


def side_by_side(paths: Sequence[Lanes]) -> list[Lanes]:
    """The places of several chains, one node a lane, as far as the chains run alike.

    At one place no lane's node needs that of another, which would hide what is put there.
    """
    found: list[Lanes] = []
    for nodes in zip(*paths, strict=False):
        if len({node.op for node in nodes}) > 1 or _in_turn(nodes, found[-1] if found else ()):
            break
        found.append(nodes)
    return found


def _in_turn(nodes: Lanes, before: Lanes) -> bool:
    """Whether one of ``nodes`` needs another, past the place ``before``."""
    wanted, seen = set(nodes), set(before)
    left = [operand for node in wanted for operand in node.operands]
    while left:
        node = left.pop()
        if node in wanted:
            return True
        if node not in seen:
            seen.add(node)
            left += node.operands
    return False


@dataclass(frozen=True)
class Root:
    """The activation whose rows are followed: a node in front of the routing, and its layout."""

    node: Node
    rows: Rows


def views(
    region: Region, root: Root, heads: Lanes, end: Lanes, y: Array, rng: np.random.Generator
) -> tuple[View, ...] | None:
    """Routings in which every expert is shown by some token, with nothing learnt but the lanes.

    ``y`` [T, n]: where the rows of the result lie. None where they do not follow the root's rows
    token by token.
    """
    t, k, count = region.tokens, region.k, region.count
    found: list[View] = []
    for first in range(0, count, t):
        shown = (first + np.arange(t)) % count
        lit = (np.arange(t) + rng.integers(k)) % k
        experts = (shown[:, None] + np.arange(k) - lit[:, None]) % count
        gates = np.where(np.arange(k) == lit[:, None], 1.0, 0.0)
        given = region.force(experts, gates)
        view = learnt(region, View(experts, lit, given, np.zeros(t, int), {}, {}), root, end, rng)
        rows = places(range(t), view.owners[end[0]])
        still = (view.owners[end[0]].reshape(-1)[y] == NONE).all(1)
        idle = np.unique(shown[still])
        # Where only some slots follow the root, it is the slots that do nothing.
        by_expert = k == 1 or bool(np.isin(lit[still], lit[~still]).any())
        if by_expert and 0 < len(idle) < len(np.unique(shown)):
            numbers = ", ".join(str(number) for number in idle[:4])
            raise NotRecognised(f"of {count} experts, {len(idle)} do nothing: {numbers}", 4)
        if rows is None or not np.array_equal(np.sort(rows, 1), np.sort(y, 1)):
            return None
        found.append(replace(view, lane=_lane(region, view, heads, end, y, rng)))
    return tuple(found)


def _lane(
    region: Region, view: View, heads: Lanes, end: Lanes, y: Array, rng: np.random.Generator
) -> Array:
    """Which of the nodes ``heads`` each token's result follows, NONE or SEVERAL where not one."""
    if len(heads) == 1:
        return view.lane
    base = {node: rng.standard_normal(node.type.shape) for node in heads}
    before = region.probe.run(end, {**view.given, **base})[0].reshape(-1)[y]
    owners = Owners(words := code_words(len(heads)), (len(y),))
    for bit in range(words.shape[1]):
        fresh = {
            node: rng.standard_normal(node.type.shape)
            for node, word in zip(heads, words, strict=True)
            if word[bit]
        }
        after = region.probe.run(end, {**view.given, **base, **fresh})[0].reshape(-1)[y]
        owners.note(bit, (after != before).any(1))
    return owners.read()


def learnt(
    region: Region, view: View, root: Root, nodes: Sequence[Node], rng: np.random.Generator
) -> View:
    """``view`` with the base value and the owners of ``nodes``."""
    t = region.tokens
    words = code_words(t)
    first, second = rng.standard_normal((2, t, 1, root.rows.channels))

    def run(rows: Array) -> list[Array]:
        return region.probe.run(nodes, {**view.given, root.node: root.rows.write(rows)})

    base = run(first)
    owners = [Owners(words, node.type.shape) for node in nodes]
    for bit in range(words.shape[1]):
        values = run(np.where(words[:, bit, None, None], second, first))
        for owner, value, was in zip(owners, values, base, strict=True):
            owner.note(bit, value != was)
    tokens = {node: filled(owner.read()) for node, owner in zip(nodes, owners, strict=True)}
    known = dict(zip(nodes, base, strict=True))
    return replace(view, base={**view.base, **known}, owners={**view.owners, **tokens})
