"""Slices of rows between places that only data tells: the rows are chosen by a mask.

`x[start:stop]` holds the rows whose place is neither below `start` nor from `stop` on. If these
are the places between which sorted numbers are all the same, the mask is `sorted == number`.
Pieces that follow each other from the first row to the last are all rows once they are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import SymInt, Tensor

from .known import Facts, Origin, Sums
from .number import Number, NumberUsed

_ADVICE = "count with torch.bincount(index, minlength=...), and slice between sums of the counts"


@dataclass(frozen=True)
class Place:
    """Where a slice starts or stops: a number, and what is known of it."""

    value: Tensor | int
    sums: Sums


@dataclass(frozen=True)
class Piece:
    """The rows from ``start`` to ``stop`` of ``size``."""

    start: Place
    stop: Place
    size: int
    rows: Tensor


class Pieces:
    """All pieces of a trace; equal ones have the same rows."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._found: list[Piece] = []
        self._by_size: dict[str, Piece] = {}

    def place(self, value: Any) -> Place:
        """A Python number, or one that data tells. Refused if it may be negative."""
        x = value.tensor if isinstance(value, Number) else value
        sums = self._facts.sums(x)
        if sums is None or not sums.is_natural():
            raise NumberUsed("a place between rows, and may be any number", _ADVICE)
        return Place(x, sums)

    def rows(self, start: Any, stop: Any, size: Any) -> Tensor:
        """Which rows of ``size`` lie between two places."""
        if not isinstance(size, int):
            raise NumberUsed("a place between rows that data chose", _ADVICE)
        first = self.place(0 if start is None else start)
        last = self.place(size if stop is None else stop)
        for piece in self._found:
            if piece.size == size and _same(piece.start, first) and _same(piece.stop, last):
                return piece.rows
        rows = self._mask(first, last, size).nonzero()[:, 0]
        piece = Piece(first, last, size, rows)
        self._found.append(piece)
        self._by_size[str(rows.shape[0])] = piece
        return rows

    def _mask(self, start: Place, stop: Place, size: int) -> Tensor:
        origin = stop.sums.origin
        if origin is not None and origin.order is not None and origin.total == size:
            number = _sorted_number(start.sums, stop.sums)
            if number is not None:
                return origin.flat[origin.order] == number
        places = torch.arange(size)
        return (places >= start.value) & (places < stop.value)

    def starts(self, counts: Sequence[Any]) -> list[Any]:
        """Where pieces of ``counts`` rows start, and where the last one stops."""
        places: list[Any] = [0]
        for count in counts:
            self.place(count)
            before = places[-1]
            places.append(count if isinstance(before, int) and before == 0 else before + count)
        return places

    def joined(self, parts: Sequence[Any]) -> Tensor | None:
        """The rows of pieces that follow each other from the first row to the last."""
        if not all(isinstance(x, Tensor) and x.dim() and _is_open(x.shape[0]) for x in parts):
            return None
        pieces = [self._by_size.get(str(x.shape[0])) for x in parts]
        first, last = pieces[0], pieces[-1]
        if first is None or last is None or None in pieces:
            return None
        follow = all(
            _same(a.stop, b.start) and a.size == b.size  # type: ignore[union-attr]
            for a, b in pairwise(pieces)
        )
        zero, all_rows = self.place(0), self.place(first.size)
        if not follow or not _same(first.start, zero) or not _is_end(last.stop, all_rows):
            return None
        shape = parts[0].shape[1:]
        dtype = parts[0].dtype
        if any(x.shape[1:] != shape or x.dtype != dtype for x in parts):
            return None
        whole = torch.zeros((first.size, *shape), dtype=dtype)
        for x, piece in zip(parts, pieces, strict=True):
            assert piece is not None, "looked at above"
            whole = whole.index_put((piece.rows,), x)
        return whole


def _is_open(size: Any) -> bool:
    return isinstance(size, SymInt)


def _same(a: Place, b: Place) -> bool:
    """Whether two places are one, whatever the data."""
    x, y = a.sums.parts, b.sums.parts
    width = max(len(x), len(y))
    if len(x) > 1 and len(y) > 1 and a.sums.origin is not b.sums.origin:
        return False
    return np.array_equal(_padded(x, width), _padded(y, width))


def _padded(parts: np.ndarray, width: int) -> np.ndarray:
    whole = np.zeros(width)
    whole[: len(parts)] = parts.reshape(-1)
    return whole


def _is_end(place: Place, size: Place) -> bool:
    """Whether a place is behind the last row: the size itself, or the sum of all counts."""
    origin: Origin | None = place.sums.origin
    if origin is None:
        return _same(place, size)
    return place.sums.is_all() and origin.total == size.value


def _sorted_number(start: Sums, stop: Sums) -> int | None:
    """The number that stands from ``start`` to ``stop`` once all are sorted, if it is one."""
    width = len(stop.parts)
    low, high = _padded(start.parts, width), _padded(stop.parts, width)
    if len(start.parts) > 1 and start.origin is not stop.origin:
        return None
    below = int(high[1:].sum())
    is_run = high[0] == 0 and bool((high[1 : 1 + below] == 1).all())
    wanted = high.copy()
    wanted[below] = 0
    return below - 1 if below and is_run and np.array_equal(low, wanted) else None
