"""Which way to try next: all of a small space, the likely ones of a large one.

A local search with a population: the best ways found so far are changed by one step in one
parameter, or two of them are crossed, and now and then any way is tried. A model of costs, where
there is one, says where to begin and which of several steps to take first; what was measured always
counts for more.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import attrs

# Of the first trials so many are the model's best, and so many random.
LIKELY, ANY = 4, 16
# How many of the best are parents, and how often something else is tried.
PARENTS = 8
CROSSED, RANDOM = 0.3, 0.1
# How much less often the next best is taken for a parent.
FADING = 0.8


@attrs.frozen
class Way:
    """A kernel with parameters; ``predicted`` is what a model says that it takes, if one does.

    ``place`` are all parameters, by which neighbours are told, of a way that names only some.
    """

    kernel: str
    parameters: Mapping[str, int]
    predicted: float | None = None
    place: Mapping[str, int] | None = None

    @property
    def everywhere(self) -> Mapping[str, int]:
        """Its place, or its parameters."""
        return self.parameters if self.place is None else self.place


class Search:
    """Trials of ``ways``, of which the first is the default, in an order that ``seed`` decides.

    ``hints`` come next: ways that were good elsewhere. Call ``next`` for a way and ``tell`` for
    what it took, in turns. Raises ValueError for no ways.
    """

    def __init__(self, ways: Sequence[Way], seed: int = 0, hints: Sequence[Way] = ()) -> None:
        if not ways:
            raise ValueError("there is nothing to search")
        self._ways, self._random = ways, random.Random(seed)
        self._untried = dict.fromkeys(range(len(ways)))
        self._values: dict[int, float] = {}
        self._places = {_place(w.kernel, w.parameters): i for i, w in enumerate(ways)}
        self._children = {_place(w.kernel, w.everywhere): i for i, w in enumerate(ways)}
        self._steps = _steps(ways)
        self._first = self._beginning(hints)

    def next(self) -> Way | None:
        """A way that was not tried yet; None once all were."""
        if not self._untried:
            return None
        chosen = next((i for i in self._first if i in self._untried), None)
        chosen = self._changed() if chosen is None else chosen
        del self._untried[chosen]
        return self._ways[chosen]

    def tell(self, way: Way, value: float | None) -> None:
        """What ``way`` took; None where it failed. Also for ways that were tried before."""
        place = self._places[_place(way.kernel, way.parameters)]
        self._untried.pop(place, None)
        if value is not None:
            self._values[place] = value

    def _beginning(self, hints: Sequence[Way]) -> list[int]:
        """The default, hints, what the model thinks best, and some of all."""
        hinted = [self._places[_place(w.kernel, w.parameters)] for w in hints]
        likely = sorted(self._untried, key=lambda i: (self._predicted(i), i))[:LIKELY]
        some = self._random.sample(range(len(self._ways)), min(ANY, len(self._ways)))
        return [0, *hinted, *likely, *some]

    def _predicted(self, i: int) -> float:
        predicted = self._ways[i].predicted
        return 0.0 if predicted is None else predicted

    def _changed(self) -> int:
        """A change of something good, or anything."""
        parents = sorted(self._values, key=lambda i: (self._values[i], i))[:PARENTS]
        draw = self._random.random()
        if len(parents) > 1 and draw < CROSSED:
            child = self._crossed(parents)
            if child in self._untried:
                return child
        if draw < 1 - RANDOM:
            near = {p: [i for i in self._steps[p] if i in self._untried] for p in parents}
            open_ = [p for p in parents if near[p]]
            if open_:
                # Better ones come first, but a lesser one may have the better neighbours.
                weights = [FADING**rank for rank in range(len(open_))]
                steps = near[self._random.choices(open_, weights)[0]]
                least = min(map(self._predicted, steps))
                return self._random.choice([i for i in steps if self._predicted(i) == least])
        return self._random.choice(list(self._untried))

    def _crossed(self, parents: Sequence[int]) -> int:
        """Parameters of two ways of one kernel, each from either; -1 if that is no way."""
        one, other = (self._ways[i] for i in self._random.sample(parents, 2))
        if one.kernel != other.kernel:
            return -1
        mixed = {
            name: self._random.choice((value, other.everywhere.get(name, value)))
            for name, value in one.everywhere.items()
        }
        return self._children.get(_place(one.kernel, mixed), -1)


def _place(kernel: str, parameters: Mapping[str, int]) -> tuple[object, ...]:
    return kernel, *sorted(parameters.items())


def _steps(ways: Sequence[Way]) -> list[list[int]]:
    """Of each way those that differ in one parameter, whose value is the next that there is."""
    lines: dict[object, list[tuple[int, int]]] = defaultdict(list)
    for i, way in enumerate(ways):
        for name, value in way.everywhere.items():
            others = sorted((n, v) for n, v in way.everywhere.items() if n != name)
            lines[way.kernel, name, *others].append((value, i))
    found: list[list[int]] = [[] for _ in ways]
    for line in lines.values():
        line.sort()
        for (_, one), (_, other) in pairwise(line):
            found[one].append(other)
            found[other].append(one)
    return found
