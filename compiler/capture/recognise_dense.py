"""Rotations that a model holds as matrices: read whole, and written as layers of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .recognise_factor import givens_layers
from .recognise_rotation import Blocks, RowProbe, Step, close

Array = np.ndarray
ROUNDED = 3e-7  # a product of matrices in float32 has elements of at most 1, each off by so much


def in_pairs(steps: Sequence[Step]) -> list[Step]:
    """The same with each layer of larger blocks as layers of pairs, where it has that form."""
    found: list[Step] = []
    for step in steps:
        layers = _layers(step.blocks) if isinstance(step, Blocks) and _is_large(step) else None
        found += [step] if layers is None else layers
    return found


def _is_large(step: Blocks) -> bool:
    return step.blocks.shape[2] > 2


def _layers(blocks: Array) -> list[Step] | None:
    """The blocks as layers of pairs, exactly or as near as float32 comes; else None."""
    exact = givens_layers(blocks)
    if exact is not None:
        return list(exact)
    near = givens_layers(blocks, ROUNDED)
    if near is None:
        return None
    return [replace(step, rounded=True) if isinstance(step, Blocks) else step for step in near]


def as_dense(probe: RowProbe, channels: int, experts: int) -> list[Step] | None:
    """The map of rows of so many channels as layers of pairs, if it is a rotation made of them."""
    if channels & (channels - 1) or channels < 2:
        return None
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, channels))
    y = probe(x, np.zeros(2, np.int64))
    # Almost every other map changes lengths, so that it need not be read.
    if not np.isfinite(y).all() or not close((y * y).sum(1), (x * x).sum(1), 1e-4):
        return None
    every = np.arange(experts)
    columns = [
        probe(np.tile(unit, (experts, 1)), every) for unit in np.eye(channels)
    ]  # each [E, n]
    return _layers(np.stack(columns, axis=-1)[:, None])
