"""Experts chosen by a mask of their scores, written as a top_k whose numbers make the mask.

scores >= max(scores)  ->  numbers of top_k(scores) {k = 1} == 0 .. E - 1

A mask is known by what it does: of any scores it holds for the k largest of each row, or for all
but them. Where scores are equal the two differ: the numbers are those of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.build import make, result
from ..ir.graph import Graph, Node, constant, rebuild
from .recognise_probe import OutOfReach, Probe, ancestors
from .recognise_rotation import close
from .recognise_routers import extreme, scores_of, with_axis_back, with_last
from .recognise_signs import is_never_negative

Array = np.ndarray
BY_MASK = "by_mask"  # the note of a top_k that stands for a mask: its `Choice.router`
COMPARISONS = frozenset(
    {"equal", "greater", "greater_equal", "less", "less_equal", "not_equal"}
)  # fmt: skip
NEAREST = 40  # nodes in front of a mask among which its scores are looked for
MOST_EXPERTS = 4096
MOST_SCORES = 6
SIZES = (1, 1, 1, 30, 30, 0.05)
TRIALS = 30
ROWS = 64  # random rows on which a mask must hold for the same places, at least
MOST_ROUNDS = 100


@dataclass(frozen=True)
class Choice:
    """A mask that holds for the k largest scores, or for all others where it is ``inverted``.

    It tells of all experts, or of the one ``expert`` alone. ``axis`` of the scores is that of the
    experts. ``least``: for the k smallest scores.
    """

    mask: Node
    scores: Node
    axis: int
    k: int
    inverted: bool
    expert: int | None
    least: bool = False

    @property
    def router(self) -> str:
        """What the choices of one routing op have in common."""
        return _router_name(self.k, self.scores, self.axis, self.least)

    @property
    def experts(self) -> int:
        """Among how many the mask chooses."""
        return self.scores.type.shape[self.axis]

    def mirrored(self) -> Choice:
        """The same mask by the scores that the other one leaves out."""
        k = self.experts - self.k
        return replace(self, k=k, inverted=not self.inverted, least=not self.least)


def _router_name(k: int, scores: Node, axis: int, least: bool = False) -> str:
    return f"{k} {'least' if least else 'largest'} of {scores.name} along {axis}"


def choices_by_mask(graph: Graph) -> tuple[Choice, ...]:
    """The masks that choose experts by nothing but their scores."""
    probe = Probe(dict(graph.constants))
    found = []
    for node in graph.nodes:
        scores = _scores_before(node) if node.op in COMPARISONS else []
        choices = (_choice(probe, node, each) for each in scores)
        found += [choice for choice in choices if choice is not None][:1]
    return tuple(found)


def routers_within(choice: Choice) -> list[str]:
    """What the routing ops that make the mask are called, and the mask itself."""
    made = ancestors(choice.mask) - ancestors(choice.scores)
    return [node.name for node in made if node.op == "top_k"] + [choice.mask.name]


def without(choices: Sequence[Choice], routers: Container[str]) -> tuple[Choice, ...]:
    """``choices`` without those of ``routers``: what they leave out may be what is chosen."""
    kept = [choice for choice in choices if choice.router not in routers]
    false = [choice for choice in choices if choice.router in routers]
    return (*kept, *(choice.mirrored() for choice in false if choice.inverted))


def _scores_before(mask: Node) -> list[Node]:
    """The values that may be the scores, nearest first; none where numbers of experts are read.

    Numbers that are sorted again are ranks.
    """
    found = []
    by_rank = False
    for node in _in_front(mask):
        is_number = node.op == "result" and node["index"] == 1
        by_rank |= is_number and not node.operands[0].operands[0].type.is_float
        if node.op == "argmax" or (is_number and (not by_rank or _is_cut(node))):
            return []
        sizes = node.type.shape if len(node.types) == 1 and node.type.is_float else ()
        if any(1 < size <= MOST_EXPERTS for size in sizes) and node.op != "constant":
            found.append(node)
    return found[:MOST_SCORES]


def _in_front(mask: Node) -> Iterator[Node]:
    """The nodes that ``mask`` needs, those first that are fewest steps away."""
    seen = {mask}
    left = [mask]
    while left and len(seen) < NEAREST:
        operands = dict.fromkeys(operand for node in left for operand in node.operands)
        left = [operand for operand in operands if operand not in seen]
        seen.update(left)
        yield from left


def _is_cut(numbers: Node) -> bool:
    """Whether numbers are those of some of many."""
    top_k = numbers.operands[0]
    return bool(top_k["k"] < top_k.operands[0].type.shape[-1])


def _choice(probe: Probe, mask: Node, scores: Node) -> Choice | None:
    """What ``mask`` says of the largest of ``scores``, tried on many random ones."""
    left = _guesses(mask, scores)
    rng = np.random.default_rng(0)
    positive = is_never_negative(probe, scores)
    sizes = itertools.cycle(SIZES)
    tried = 0
    while left and tried < max(guess.rounds for guess in left):
        value = rng.uniform(0, 1, scores.type.shape)
        size = next(sizes)
        if not positive:
            value = size * rng.standard_normal(scores.type.shape)
        try:
            holds = probe.run([mask], {scores: value})[0]
        except OutOfReach:
            return None
        left = [guess for guess in left if guess.fits(value, holds)]
        tried += 1
    found = [choice for guess in left if (choice := guess.choice()) is not None]
    return found[0] if len(left) == 1 and found else None


def _guesses(mask: Node, scores: Node) -> list[_Guess]:
    """Each axis whose experts a mask of that size can tell of, the last one first."""
    found = []
    for axis, count in reversed(list(enumerate(scores.type.shape))):
        of_all = mask.type.size == scores.type.size
        if 1 < count <= MOST_EXPERTS and (of_all or mask.type.size * count == scores.type.size):
            least = np.ones((2, 1 if of_all else count), np.int64)
            found.append(_Guess(mask, scores, axis, least, np.full_like(least, count - 1)))
    return found


@dataclass
class _Guess:
    """Experts along an axis, and what k may be: [as it is or inverted, of which expert]."""

    mask: Node
    scores: Node
    axis: int
    least: Array
    most: Array

    @property
    def count(self) -> int:
        return self.scores.type.shape[self.axis]

    @property
    def of_all(self) -> bool:
        return self.mask.type.size == self.scores.type.size

    @property
    def rounds(self) -> int:
        """How many trials it takes.

        Of one expert alone, it takes many rows until it stands just inside of k and just outside.
        """
        rows = ROWS if self.of_all else max(ROWS, 16 * self.count)
        tokens = self.scores.type.size // self.count
        return len(SIZES) * min(MOST_ROUNDS, max(1, rows // (len(SIZES) * tokens)))

    def fits(self, scores: Array, holds: Array) -> bool:
        """Narrows k by scores and where the mask holds; whether any k is left."""
        rows = self._rows(scores)
        rank = np.argsort(np.argsort(-rows, -1), -1)
        holds = self._rows(holds.reshape(scores.shape)) if self.of_all else holds.reshape(-1, 1)
        for inverted, chosen in enumerate((holds, ~holds)):
            inside, outside = np.where(chosen, rank, -1), np.where(chosen, self.count, rank)
            axis = None if self.of_all else 0
            self.least[inverted] = np.maximum(self.least[inverted], inside.max(axis) + 1)
            self.most[inverted] = np.minimum(self.most[inverted], outside.min(axis))
        return bool((self.least <= self.most).any())

    def _rows(self, x: Array) -> Array:
        return np.moveaxis(x, self.axis, -1).reshape(-1, self.count)

    def choice(self) -> Choice | None:
        """What the mask says, if one k of one expert, or of all, is left."""
        exact = np.argwhere(self.least == self.most)
        if len(exact) != 1 or (self.least < self.most).any():
            return None
        inverted, expert = exact[0].tolist()
        k = int(self.least[inverted, expert])
        which = None if self.of_all else expert
        return Choice(self.mask, self.scores, self.axis, k, bool(inverted), which)


def with_masks(graph: Graph, choices: Sequence[Choice]) -> Graph:
    """The graph in which the masks of ``choices`` are made by the numbers that a top_k chooses."""
    if not choices:
        return graph
    by_name = {choice.mask.name: choice for choice in choices}
    known = {choice.router: choice for choice in choices}
    original = {node.name: node for node in graph.nodes}
    store = dict(graph.constants)
    routers: dict[str, Node] = {}
    masks: dict[str, Node] = {}
    new: dict[str, Node] = {}

    def router(choice: Choice) -> Node:
        if choice.router not in routers:
            scores = with_last(new[choice.scores.name], choice.axis)
            scores = make("neg", scores, name=f"{scores.name}.neg") if choice.least else scores
            name, notes = f"{scores.name}.top", {BY_MASK: choice.router}
            top_k = make("top_k", scores, name=name, source=scores.source, notes=notes, k=choice.k)
            routers[choice.router] = top_k
        return routers[choice.router]

    def whole(choice: Choice) -> Node:
        if choice.router not in masks:
            name = f"{choice.scores.name}.numbers"
            every = constant(store, np.arange(choice.experts), name)
            masks[choice.router] = _hot(result(router(choice), 1), every)
        return masks[choice.router]

    def change(node: Node) -> Node:
        new[node.name] = node
        if node.name in by_name:
            choice = by_name[node.name]
            return _mask(node, choice, whole(choice))
        same = known.get(_same_choice(original[node.name]))
        if same is None:
            return node
        if node.op == "top_k":
            return router(same)
        value = result(router(same), 0)
        return make("reshape", value, name=node.name, source=node.source, shape=node.type.shape)

    return rebuild(graph, change, store)


def _same_choice(node: Node) -> str:
    """The name of the choice that a top_k makes, or a max; none of others."""
    if node.op == "top_k":
        scores = scores_of(node)
        return _router_name(node["k"], scores.node, scores.order[-1])
    axis = extreme(node) if node.op == "max" else None
    return "" if axis is None else _router_name(1, node.operands[0], axis)


def _hot(numbers: Node, every: Node) -> Node:
    """Which of ``every`` [E] are among ``numbers`` [..., k]: [..., E]."""
    found: Node | None = None
    last = numbers.type.rank - 1
    for slot in range(numbers.type.shape[-1]):
        name = f"{every.name}.{slot}"
        one = make("slice", numbers, name=name, axis=last, start=slot, stop=slot + 1)
        here = make("equal", one, every, name=name)
        found = here if found is None else make("logical_or", found, here, name=name)
    assert found is not None, "a routing op chooses at least one expert"
    return found


def _mask(node: Node, choice: Choice, whole: Node) -> Node:
    """The mask that ``node`` is, of the mask [..., E] of the experts that are chosen."""
    e, last = choice.expert, whole.type.rank - 1
    name = f"{node.name}.part"
    if e is None:
        part = with_axis_back(whole, choice.axis)
    else:
        part = make("slice", whole, name=name, axis=last, start=e, stop=e + 1)
    part = make("logical_not", part, name=name) if choice.inverted else part
    return make("reshape", part, name=node.name, source=node.source, shape=node.type.shape)


def agree(graph: Graph, masked: Graph, choices: Sequence[Choice], h: str, y: str) -> bool:
    """Whether masks hold for as many experts as their numbers tell, where tokens are random.

    Scores that often tie, such as rounded ones, are no choice of k. It does not matter where the
    result ``y`` is the same. Tried from the activation ``h`` on or, where the router reads more
    than that, from inputs of floats; False where it cannot be tried.
    """
    ends = [choice.mask.name for choice in choices]
    for starts in ([h], [node.name for node in graph.inputs]):
        if all(graph.find(name).type.is_float for name in starts):
            try:
                return _agree_from(starts, [graph, masked], ends, y)
            except OutOfReach:
                continue
    return False


def _agree_from(starts: list[str], graphs: list[Graph], masks: list[str], y: str) -> bool:
    """Whether two graphs give the same masks, or at least the same result, from random values."""
    rng = np.random.default_rng(0)
    probes = [Probe(dict(graph.constants)) for graph in graphs]

    def of_both(given: Mapping[str, Array], wanted: list[str]) -> list[list[Array]]:
        return [
            probe.run(
                [graph.find(name) for name in wanted],
                {graph.find(name): value for name, value in given.items()},
            )
            for graph, probe in zip(graphs, probes, strict=True)
        ]

    for trial in range(TRIALS):
        size = (1.0, 5.0, 0.05)[trial % 3]
        shapes = {name: graphs[0].find(name).type.shape for name in starts}
        given = {name: size * rng.standard_normal(shape) for name, shape in shapes.items()}
        was, now = of_both(given, masks)
        if not all(np.array_equal(a, b) for a, b in zip(was, now, strict=True)):
            (before,), (after,) = of_both(given, [y])
            if not close(after, before, 1e-9):
                return False
    return True
