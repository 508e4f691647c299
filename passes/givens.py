"""Blocks of rotations as the Givens rotations that they are products of.

A 4 x 4 block is four of them, two layers of two; their order, and which members they turn, are
those of `compiler.ir.ops.layer`. Two 2 x 2 blocks are one such group, whose later turns are none.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ..compiler.ir.ops.layer import IN_ORDER, turn

TOLERANCE = 1e-6
ROUNDING = 1e-13
TINY = 1e-30
# Which channels of a group may be turned with each other first, and which two of them next.
TAKEN = ((0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 3, 2, 1))
Order = tuple[int, ...]
Pairs = tuple[np.ndarray, Order]


def pairs_of(blocks: np.ndarray) -> Pairs | None:
    """Blocks [E, G, b, b] as pairs (cos, sin) [E, groups of 4, 4, 2], and their order."""
    _, groups, size, _ = blocks.shape
    if groups * size % 4:
        return None
    if size == 2:
        return _of_twos(blocks)
    orders = [taken + given for taken in TAKEN for given in permutations(range(4))]
    # Of a sample, since there are many orders. Small angles fit several of them nearly, one best;
    # orders that say the same in other words fit alike, and the first of them is taken.
    sample = blocks[:4, :16]
    errors = {order: _error(sample, _of_fours(sample, order), order) for order in orders}
    least = min(errors.values())
    best = next(order for order, error in errors.items() if error <= least + ROUNDING)
    pairs = _of_fours(blocks, best)
    return (pairs, best) if _error(blocks, pairs, best) <= TOLERANCE else None


def turns_of(blocks: np.ndarray) -> Pairs | None:
    """`pairs_of`, where all of them are of length one: angles say all of them."""
    found = pairs_of(blocks)
    if found is None:
        return None
    lengths = np.hypot(found[0][..., 0], found[0][..., 1])
    return found if np.abs(lengths - 1).max(initial=0) <= TOLERANCE else None


def blocks_of(pairs: np.ndarray, order: Order) -> np.ndarray:
    """The blocks [E, G, 4, 4] of ``pairs`` [E, G, 4, 2] in that order."""
    count, groups = pairs.shape[:2]
    units = np.tile(np.eye(4), (1, groups))  # each member alone, in every group at once
    turned = turn(units[None], pairs[:, None], order)  # [E, member, channels]
    return turned.reshape(count, 4, groups, 4).transpose(0, 2, 3, 1)


def _of_twos(blocks: np.ndarray) -> Pairs | None:
    cosine, sine = blocks[..., 0, 0], blocks[..., 1, 0]
    turns = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    if np.abs(blocks - turns).max(initial=0) > TOLERANCE:
        return None
    first = blocks[..., 0].reshape(len(blocks), -1, 2, 2)  # a column is (cos, sin)
    return np.concatenate([first, np.broadcast_to([1.0, 0.0], first.shape)], 2), IN_ORDER


def _of_fours(blocks: np.ndarray, order: Order) -> np.ndarray:
    """The one candidate in this order.

    With (c, s) the first turns' a, A and the later ones' b, B, the rows 0 and 2 of members are, in
    their first two columns, (b.c, b.s) times (a.c, -a.s), and rows 1 and 3 are (B.c, B.s) times
    (a.s, a.c); in their last two columns rows 0 and 2 are (-b.s, b.c) times (A.c, -A.s).
    """
    blocks = blocks[..., order[4:], :][..., order[:4]]
    left, other, right = blocks[..., ::2, :2], blocks[..., 1::2, :2], blocks[..., ::2, 2:]
    larger = np.argmax(np.abs(left).sum(-1), -1)[..., None, None]
    row = np.take_along_axis(left, larger, -2)[..., 0, :]
    row = row / np.maximum(np.linalg.norm(row, axis=-1, keepdims=True), TINY)
    a = np.stack([row[..., 0], -row[..., 1]], -1)
    b = (left @ row[..., None])[..., 0]
    later = (other @ a[..., ::-1, None])[..., 0]
    turned = np.stack([-b[..., 1], b[..., 0]], -1)
    # Cosines and sines that were rounded are not quite of length one: all of it goes into b and B.
    length = np.maximum((b * b).sum(-1, keepdims=True), TINY)
    column = (turned[..., None, :] @ right)[..., 0, :] / length
    second = np.stack([column[..., 0], -column[..., 1]], -1)
    return np.stack([a, second, b, later], -2) + 0.0  # no zero is negative


def _error(blocks: np.ndarray, pairs: np.ndarray, order: Order) -> float:
    """How far ``pairs`` are from turning as ``blocks`` [E, G, 4, 4] do."""
    return float(np.abs(blocks_of(pairs, order) - blocks).max(initial=0))
