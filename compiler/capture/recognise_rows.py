"""Rows: where in a tensor the channels of one token, or of one (token, slot) pair, lie.

A slot is a place among the k experts that a token is given, or one of all the experts. Nothing is
assumed of a tensor but its shape: `layouts` lists how it could hold rows, and a probe decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

    def with_channels(self, shape: tuple[int, ...]) -> Rows | None:
        """The layout of a tensor that differs only in its last axis, if that holds all channels."""
        same_lead = shape[:-1] == self.shape[:-1]
        last = len(self.view) - 1
        if not same_lead or self.order[-1] != last or self.view[last] != self.channels:
            return None
        return Rows(
            shape, (*self.view[:-1], shape[-1]), self.order, self.tokens, self.slots, shape[-1]
        )


def layouts(shape: tuple[int, ...], tokens: int, slots: int) -> Iterator[Rows]:
    """Every way in which a tensor of ``shape`` could hold rows in so many slots, plain first.

    Tokens are a run of axes, the slot is one more, or one axis holds both.
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
    """Each run of axes that holds ``tokens`` elements and neither starts nor ends in size 1."""
    if tokens == 1:
        yield ()
    for start in range(len(view)):
        size = 1
        for stop in range(start, len(view)):
            size *= view[stop]
            if size == tokens and tokens > 1 and view[start] > 1 and view[stop] > 1:
                yield tuple(range(start, stop + 1))
