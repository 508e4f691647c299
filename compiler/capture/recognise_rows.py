"""Rows: where in a tensor the channels of one token, or of one (token, slot) pair, lie.

A slot is a place among the k experts that a token is given, or one of all the experts. Nothing is
assumed of a tensor but its shape: `layouts` lists how it could hold rows, and a probe decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Rows:
    """A tensor of ``shape`` as rows [tokens, slots, channels]: viewed as ``view``, then transposed.

    ``slots`` is 1 where a token has one row.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    order: tuple[int, ...]
    tokens: int
    slots: int
    channels: int

    def read(self, value: Array) -> Array:
        """The rows [tokens, slots, channels] of ``value``."""
        moved = value.reshape(self.view).transpose(self.order)
        return moved.reshape(self.tokens, self.slots, self.channels)

    def write(self, rows: Array) -> Array:
        """The tensor that holds ``rows`` [tokens, slots, channels]."""
        moved = rows.reshape(tuple(self.view[axis] for axis in self.order))
        return moved.transpose(np.argsort(self.order)).reshape(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether the rows lie one after the other, so that a reshape makes the matrix of rows."""
        moving = [axis for axis in self.order if self.view[axis] != 1]
        return moving == sorted(moving)


def plain_rows(shape: tuple[int, int]) -> Rows:
    """The layout of a matrix with one row a token."""
    return Rows(shape, shape, (0, 1), shape[0], 1, shape[1])


def layouts(shape: tuple[int, ...], tokens: int, slots: int) -> Iterator[Rows]:
    """Every way in which a tensor of ``shape`` could hold rows in so many slots, plain first.

    Tokens are some of the axes, in order, the slot is one more, or one axis holds both.
    """
    found: list[Rows] = []
    for view in _views(shape, tokens, slots):
        for run in _runs(view, tokens):
            others = [axis for axis in range(len(view)) if axis not in run]
            choices = [axis for axis in others if view[axis] == slots] if slots > 1 else [-1]
            for slot in choices:
                channels = [axis for axis in others if axis != slot]
                order = (*run, *((slot,) if slots > 1 else ()), *channels)
                width = int(np.prod([view[axis] for axis in channels], dtype=np.int64))
                if width:
                    found.append(Rows(shape, view, order, tokens, slots, width))
    yield from dict.fromkeys(sorted(found, key=lambda rows: not rows.is_plain))


def _views(shape: tuple[int, ...], tokens: int, slots: int) -> Iterator[tuple[int, ...]]:
    """The shape itself, and with one axis split in two, one of them the slots."""
    yield shape
    for axis, size in enumerate(shape):
        if slots > 1 and size > slots and size % slots == 0:
            yield (*shape[:axis], size // slots, slots, *shape[axis + 1 :])
            yield (*shape[:axis], slots, size // slots, *shape[axis + 1 :])


def _runs(view: tuple[int, ...], tokens: int) -> Iterator[tuple[int, ...]]:
    """Each choice of axes, none of size 1, that holds ``tokens`` elements; neighbours first."""
    if tokens == 1:
        yield ()
    wide = [axis for axis, size in enumerate(view) if size > 1]
    chosen = [axes for count in range(1, len(wide) + 1) for axes in combinations(wide, count)]
    fits = [axes for axes in chosen if prod(view[axis] for axis in axes) == tokens > 1]
    yield from sorted(fits, key=lambda axes: axes[-1] - axes[0] >= len(axes))
