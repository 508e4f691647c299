"""Angles of rotations rounded to so many bits.

    %y = rotate(%x, %theta, %experts)    blocks f64[E, 16, 4, 4]
    ->
    %y = rotate(%x, %theta, %experts)    blocks of angles that are multiples of 2 pi / 256

Lossy, and no less orthogonal: a turn by another angle is still a turn. With steps of 2 pi / 2**n an
angle is off by pi / 2**n at most; what L layers of turns make of a row is then off by
2 * L * sin(pi / 2**(n + 1)) of its length at most, 2.5 % for two layers of 8 bits, 0.01 % of 16.
Rotations that are no Givens rotations stay as they are.

``i8`` and ``i16`` are parts of a turn, 256 or 65536 of them (an i16 is half a turn in Q15); mode
int8 keeps them as they are (`integer_turn`). ``f16`` are radians as half-precision floats, off by
2**-11 of each at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.errors import unknown_name
from ..compiler.ir import Graph, Node, remake
from ..kernels.integer_numbers import TURN_BITS
from .base import Walk, walk_once
from .givens import Pairs, blocks_of, turns_of
from .merge_rotations import is_rotation

STORED = tuple(TURN_BITS)
KINDS = ("f16", *STORED)

Array = np.ndarray


def angles_of(pairs: Array) -> Array:
    """The angles of (cos, sin) [..., 2], in radians from -pi to pi."""
    return np.arctan2(pairs[..., 1], pairs[..., 0])


def parts_of_a_turn(angles: Array, dtype: str) -> Array:
    """Angles in radians as codes of ``dtype``: the nearest of the 2**8 or 2**16 parts of a turn."""
    count = 1 << TURN_BITS[dtype]
    codes = np.rint(angles * (count / (2 * np.pi))).astype(np.int64)
    return (codes + count // 2) % count - count // 2


def rounded(angles: Array, kind: str) -> Array:
    """Angles in radians as ``kind`` has them."""
    if kind == "f16":
        return angles.astype(np.float16).astype(np.float64)
    return parts_of_a_turn(angles, kind) * (2 * np.pi / (1 << TURN_BITS[kind]))


@dataclass(frozen=True)
class QuantizeAngles:
    """Every rotation that Givens rotations make, by angles as ``kind`` has them."""

    kind: str

    name = "quantize_angles"
    exact = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of angles", self.kind, KINDS)

    def __call__(self, graph: Graph) -> Graph:
        def round_angles(node: Node, walk: Walk) -> Node | None:
            return _rounded(node, walk, self.kind)

        return walk_once(graph, round_angles) or graph


def _rounded(node: Node, walk: Walk, kind: str) -> Node | None:
    if not is_rotation(node):
        return None
    x, blocks, experts = node.operands
    value = walk.value(blocks).astype(np.float64)
    found = turns_of(value)
    if found is None:
        return None
    near = _blocks(found, kind, value.shape[-1])
    return remake(node, x, walk.constant(near.reshape(value.shape), blocks.name), experts)


def _blocks(found: Pairs, kind: str, size: int) -> Array:
    """The blocks of pairs whose angles are rounded, of the size that they had."""
    pairs, order = found
    angles = rounded(angles_of(pairs), kind)
    fours = blocks_of(np.stack([np.cos(angles), np.sin(angles)], -1), order)
    if size == 4:
        return fours
    return np.stack([fours[:, :, :2, :2], fours[:, :, 2:, 2:]], 2)
