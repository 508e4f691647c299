"""What is known of whole numbers that only data tells: which may occur, and what they add up to.

A count is known as a sum of *parts*: how often each expert's number occurs in one tensor. Sums and
differences of counts are known as such, too, so that where one expert's rows end and the next
one's start is known to be one place, whatever the data.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_MOST_ELEMENTS = 4096  # of a tensor whose sums are followed


@dataclass(eq=False)
class Origin:
    """One tensor of experts' numbers, in row-major order, and below what they all are.

    ``total`` is what the counts of all numbers add up to, if that is known.
    """

    flat: Tensor
    bound: int
    total: int | None
    order: Tensor | None = None  # places that sort the numbers, once the model has computed them


@dataclass(frozen=True)
class Numbers:
    """A tensor of numbers from 0 to below ``bound``; with an ``origin`` if it holds all of that."""

    bound: int
    origin: Origin | None = None
    distinct: int | None = None  # an axis along which no number occurs twice
    is_moved: bool = False  # whether it holds the numbers of the origin in another order
    is_sorted: bool = False  # whether that is from the lowest number to the highest
    sorts: Origin | None = None  # the origin that is sorted by taking it at these places


@dataclass(frozen=True)
class Hits:
    """Zeros and ones: summed over all but one axis, how often each number occurs."""

    origin: Origin
    classes: int
    axis: int


@dataclass(frozen=True)
class Occurs:
    """A vector that is not zero for each of ``classes`` numbers that occurs somewhere."""

    classes: int


@dataclass(frozen=True)
class Places:
    """Which of ``classes`` numbers occur, in order: as many as only data tells."""

    classes: int


@dataclass(frozen=True)
class Equal:
    """Where one number stands in the origin."""

    origin: Origin
    number: int


@dataclass(frozen=True)
class Sums:
    """Constants plus multiples of counts: ``parts`` [1 + counts, ...], the constants first.

    Without an origin it is a constant, and ``parts`` holds nothing else.
    """

    origin: Origin | None
    parts: np.ndarray

    @property
    def is_one(self) -> bool:
        """Whether it is of one number."""
        return self.parts.size == len(self.parts)

    def range(self) -> tuple[float, float]:
        """The least and the largest value of one number, if every count is at least 1."""
        first, *rest = self.parts.reshape(-1).tolist()
        least = largest = float(first)
        for times in rest:
            least += times if times > 0 else times * float("inf") if times < 0 else 0
            largest += times if times < 0 else times * float("inf") if times > 0 else 0
        return least, largest

    def is_natural(self) -> bool:
        """Whether no counts make it negative."""
        return bool((self.parts >= 0).all())

    def is_all(self) -> bool:
        """Whether it is the sum of all counts."""
        return float(self.parts[0]) == 0 and bool((self.parts[1:] == 1).all())

    def is_count_each(self) -> bool:
        """Whether it is a vector of numbers, each zero only where all its counts are."""
        nothing, counts = self.parts[0], self.parts[1:]
        return self.parts.ndim == 2 and not nothing.any() and bool((counts >= 0).all())

    @property
    def value(self) -> np.ndarray | None:
        """The constant, if it is one."""
        return np.asarray(self.parts[0]) if self.origin is None else None


Fact = Numbers | Hits | Equal | Sums | Occurs | Places
_ANY_COUNT = np.array([0, 1])


def some_count(mask: Tensor) -> Sums:
    """How many elements of a mask hold: one count of its own."""
    return Sums(Origin(mask, 1, None), _ANY_COUNT)


def counts(origin: Origin, classes: int) -> Sums:
    """How often each number below ``classes`` occurs: the bound's share of them may."""
    parts = np.zeros((1 + origin.bound, classes), np.int64)
    for number in range(min(origin.bound, classes)):
        parts[1 + number, number] = 1
    return Sums(origin, parts)


@dataclass
class Facts:
    """What is known of each tensor, for as long as nothing writes to its memory."""

    _of: dict[int, tuple[Tensor, Fact]] = field(default_factory=dict)
    _in_memory: dict[int, set[int]] = field(default_factory=dict)

    def __getitem__(self, x: Any) -> Fact | None:
        # The tensor that is kept keeps its number alive.
        return self._of[id(x)][1] if id(x) in self._of else None

    def __setitem__(self, x: Tensor, fact: Fact) -> None:
        self._of[id(x)] = x, fact
        self._in_memory.setdefault(memory_of(x), set()).add(id(x))

    def forget(self, x: Tensor) -> None:
        """Nothing is known any more of what lies in the memory of ``x``."""
        for key in self._in_memory.pop(memory_of(x), set()):
            self._of.pop(key, None)

    def sums(self, x: Any) -> Sums | None:
        """``x`` as sums of counts; a Python number is a constant."""
        if isinstance(x, int | float) and not isinstance(x, bool):
            return Sums(None, np.array([x]))
        fact = self[x]
        return fact if isinstance(fact, Sums) else None


def memory_of(x: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(x.untyped_storage()._cdata)


def apply(function: Any, args: Any, kwargs: Any, facts: Facts) -> Sums | None:
    """The result of a function that is affine in its tensors, as sums of counts.

    It is computed for each count alone: what it is for none, and what one of each adds.
    """
    found: list[Sums] = []
    known = True

    def note(x: Any) -> None:
        nonlocal known
        if isinstance(x, Tensor):
            fact = facts[x]
            known = known and isinstance(fact, Sums)
            found.extend([fact] if isinstance(fact, Sums) else [])

    each((args, kwargs), note)
    origins = {fact.origin for fact in found} - {None}
    if not known or not found or len(origins) > 1:
        return None
    origin = next(iter(origins), None)
    number = 1 + (0 if origin is None else max(len(f.parts) - 1 for f in found))

    def at(place: int) -> Tensor:
        def one(x: Any) -> Any:
            fact = facts[x] if isinstance(x, Tensor) else None
            if not isinstance(fact, Sums):
                return x
            adds = fact.parts[place] if 0 < place < len(fact.parts) else 0
            return torch.tensor(fact.parts[0] + adds)

        given, named = changed((args, kwargs), one)
        result = function(*given, **named)
        return result if isinstance(result, Tensor) else torch.tensor(result)

    with _disable_current_modes(), torch._C.DisableTorchFunction():
        base = at(0)
        if base.numel() > _MOST_ELEMENTS:
            return None
        rest = [at(place) - base for place in range(1, number)]
        return Sums(origin, torch.stack([base, *rest]).numpy())


def constant(function: Any, args: Any, kwargs: Any) -> Sums | None:
    """The result of a call that takes plain numbers only."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return Sums(None, function(*args, **kwargs).unsqueeze(0).numpy())


def each(value: Any, see: Any) -> None:
    """Calls ``see`` for all that stands in tuples, lists, dictionaries and slices."""
    changed(value, see)


def changed(value: Any, change: Any) -> Any:
    """``value`` with what stands in its tuples, lists, dictionaries and slices changed."""
    if isinstance(value, tuple | list):
        parts = [changed(part, change) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, dict):
        return {key: changed(part, change) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(changed(part, change) for part in (value.start, value.stop, value.step)))
    return change(value)


def difference(a: Sums, b: Sums) -> tuple[float, float]:
    """The least and the largest value of ``a - b``, if every count is at least 1."""
    if a.origin is not None and b.origin is not None and a.origin is not b.origin:
        return float("-inf"), float("inf")
    parts = np.zeros(max(len(a.parts), len(b.parts)))
    parts[: len(a.parts)] += a.parts.reshape(-1)
    parts[: len(b.parts)] -= b.parts.reshape(-1)
    return Sums(a.origin or b.origin, parts).range()


def decided(compare: Callable[[Any, Any], bool], range: tuple[float, float]) -> bool | None:
    """What all numbers of a range are, compared with 0: true, false, or not the same."""
    least, largest = range
    holds = {compare(least, 0), compare(largest, 0)}
    inside = least < 0 < largest or (least == largest == 0)
    if compare in (operator.eq, operator.ne) and inside and least != largest:
        return None
    return holds.pop() if len(holds) == 1 else None
