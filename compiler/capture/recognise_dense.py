"""Rotations that a model holds as matrices: read whole, and written as layers of pairs.

A matrix of n channels, where n is no power of two, may be what is left of a padded rotation once
its last rows and columns are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .recognise_factor import givens_layers, is_cut
from .recognise_rotation import Blocks, RowProbe, Shuffle, Step, Unknown

Array = np.ndarray
ROUNDED = 3e-7  # a product of matrices in float32 has elements of at most 1, each off by so much
NEAR = 1e-4


def in_pairs(steps: Sequence[Step]) -> list[Step]:
    """The same with each layer of larger blocks as layers of pairs, where it has that form.

    So with a layer of pairs of which some have lost a channel.
    """
    found: list[Step] = []
    for step in steps:
        layers = _layers(step.blocks) if isinstance(step, Blocks) and _is_odd(step) else None
        found += [step] if layers is None else layers
    return found


def _is_odd(step: Blocks) -> bool:
    return step.blocks.shape[2] > 2 or bool(is_cut(step.blocks).any())


def _layers(blocks: Array) -> list[Step] | None:
    """The blocks as layers of pairs, exactly or as near as float32 comes; else None."""
    exact = givens_layers(blocks)
    if exact is not None:
        return list(exact)
    near = givens_layers(blocks, ROUNDED)
    if near is None:
        return None
    return [replace(step, rounded=True) if isinstance(step, Blocks) else step for step in near]


def as_dense(probe: RowProbe, channels: int, experts: int) -> list[Step] | Unknown | None:
    """The map of rows of so many channels as layers of pairs, if it is a rotation made of them.

    Unknown where it is a part of some rotation, and not known of which.
    """
    if channels < 2:
        return None
    wide = 1 << (channels - 1).bit_length()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, channels))
    y = probe(x, np.zeros(2, np.int64))
    # Almost every other map changes lengths, so that it need not be read.
    share = (y * y).sum(1) / (x * x).sum(1)
    least = 1.0 if channels == wide else _kept(channels, wide) / (2 * channels)
    if not ((share >= least - NEAR) & (share <= 1 + NEAR)).all():
        return None
    every = np.arange(experts)
    columns = [
        probe(np.tile(unit, (experts, 1)), every) for unit in np.eye(channels)
    ]  # each [E, n]
    blocks = np.zeros((experts, 1, wide, wide))
    blocks[:, 0, :channels, :channels] = np.stack(columns, axis=-1)
    layers = _layers(blocks)
    if channels == wide or layers is not None:
        # What is zero is of no account to the layers, so they are neither given nor asked for it.
        order = np.arange(wide)
        given = Shuffle(np.where((blocks != 0).any((0, 1, 2)), order, -1))
        kept = Shuffle(np.where((blocks != 0).any((0, 1, 3)), order, -1)[:channels])
        return None if layers is None else [given, *layers, kept]
    if not _is_part(blocks[:, 0, :channels, :channels], wide):
        return None
    return Unknown(
        f"may be {channels} channels of a padded rotation of {wide}, which they do not determine: "
        "keep the whole matrix in the model, and cut it there",
        part=True,
    )


def _kept(channels: int, wide: int) -> int:
    """How many directions of so many channels a rotation of ``wide`` keeps among them, at least."""
    return 2 * channels - wide


def _is_part(matrices: Array, wide: int) -> bool:
    """Whether matrices [E, n, n] are parts of orthogonal ones of ``wide`` channels."""
    channels = matrices.shape[1]
    lengths = np.linalg.svd(matrices, compute_uv=False)  # [E, n], largest first
    whole = lengths[:, : _kept(channels, wide)]
    fits = (np.abs(whole - 1) <= NEAR).all() and (lengths <= 1 + NEAR).all()
    return bool(fits and (lengths < 1 - NEAR).any())
