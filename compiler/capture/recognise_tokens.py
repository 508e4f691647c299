"""Which token each element of a tensor belongs to, seen by changing tokens and what moves then.

Nothing is assumed of a tensor's shape: rows may lie in any order, be sorted by expert, stand there
several times or be spread over channels first. An element belongs to a token if it follows that
one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, islice
from math import comb

import numpy as np

Array = np.ndarray
NONE, SEVERAL = -1, -2


def code_words(count: int) -> Array:
    """``count`` different words [count, bits] with equally many bits set.

    Two of them together have more bits set than one, so what follows two tokens is told from what
    follows one.
    """
    bits = next(bits for bits in range(1, count + 2) if comb(bits, (bits + 1) // 2) >= count)
    words = np.zeros((count, bits), bool)
    chosen = combinations(range(bits), (bits + 1) // 2)
    for word, members in zip(words, islice(chosen, count), strict=True):
        word[list(members)] = True
    return words


class Owners:
    """Collects, bit by bit, which of ``count`` things each element of an array follows."""

    def __init__(self, words: Array, shape: tuple[int, ...]) -> None:
        self.words = words
        self.seen = np.zeros(shape, np.uint32)

    def note(self, bit: int, moved: Array) -> None:
        """Elements ``moved`` when the things whose word has ``bit`` were changed."""
        self.seen |= moved.astype(np.uint32) << np.uint32(bit)

    def read(self) -> Array:
        """The number of the one thing that each element follows, NONE or SEVERAL."""
        bits = self.words.shape[1]
        table = np.full(1 << bits, SEVERAL, np.int32)
        table[0] = NONE
        table[self.words @ (1 << np.arange(bits))] = np.arange(len(self.words))
        return table[self.seen]


def filled(tokens: Array) -> Array:
    """The same with elements that follow no token given to the token whose row they lie in.

    Such are zeros beside a padded row. Rows lie along the axes on which the token never changes.
    """
    if not (tokens == NONE).any() or (tokens == SEVERAL).any() or (tokens == NONE).all():
        return tokens
    high = np.where(tokens == NONE, np.iinfo(np.int32).max, tokens)
    along = tuple(
        axis
        for axis in range(tokens.ndim)
        if (np.maximum.reduce(tokens, axis=axis) <= np.minimum.reduce(high, axis=axis)).all()
    )
    if not along:
        return tokens
    row = tokens.max(axis=along, keepdims=True)
    if (row > high.min(axis=along, keepdims=True)).any():
        return tokens
    return np.where(tokens == NONE, row, tokens)


def places(tokens: Sequence[int], owners: Array) -> Array | None:
    """Where, in the flattened array, the elements of each of ``tokens`` lie: [len(tokens), n].

    None where an element follows several tokens, or where tokens have different numbers of them.
    """
    flat = owners.reshape(-1)
    if (flat == SEVERAL).any():
        return None
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.searchsorted(ordered, tokens)
    sizes = np.searchsorted(ordered, tokens, side="right") - starts
    if not len(sizes) or sizes.min() != sizes.max() or not sizes[0]:
        return None
    found: Array = order[starts[:, None] + np.arange(sizes[0])]
    return found
