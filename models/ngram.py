"""An n-gram model of bytes, with Kneser-Ney smoothing: what a language model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..compiler.errors import BadInput

BYTES = 256
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """The grams of one length: sorted codes, their discounted share, and of each context what is
    left for the level below."""

    grams: Numbers  # [G], a gram's bytes as digits to the base 256, the last one lowest
    shares: Floats  # [G], max(count - discount, 0) / total of the context
    contexts: Numbers  # [C]
    left: Floats  # [C], discount * followers / total

    def find(self, grams: Numbers) -> tuple[Floats, Floats]:
        """For grams [N] the share of each, and the weight of the level below, both [N]."""
        share = _look_up(self.grams, self.shares, grams, 0.0)
        return share, _look_up(self.contexts, self.left, grams // BYTES, 1.0)


class NGram:
    """Byte n-grams, interpolated Kneser-Ney with one discount a level: n1 / (n1 + 2 n2).

    p(c | h) = max(count(h c) - D, 0) / count(h) + D followers(h) / count(h) * p(c | h'), where h'
    lacks the oldest byte of h, below the top level the count of a gram is the number of different
    bytes before it, and below all levels stands 1/256. D is one half where no
    count is one. Kneser and Ney 1995; Chen and Goodman 1999,
    section 3. ``order``: how many bytes are looked back upon.
    """

    def __init__(self, text: Bytes, order: int = 3) -> None:
        if len(text) <= order or not 0 <= order <= 6:
            raise BadInput(
                f"{len(text)} bytes of text for an n-gram model of order {order}",
                help="give a longer text, and an order from 0 to 6",
            )
        self.order = order
        self.levels: list[_Level] = []  # from the longest grams down
        grams, counts = np.unique(_grams(text, order + 1), return_counts=True)
        for length in range(order + 1, 0, -1):
            self.levels.append(_level(grams, counts))
            # Without their first byte: each different gram is one byte before the shorter one.
            grams, counts = np.unique(grams % BYTES ** (length - 1), return_counts=True)

    def probabilities(self, text: Bytes) -> Floats:
        """Of each byte after the first ``order`` ones, given those before it: [N - order]."""
        longest = _grams(text, self.order + 1)
        p = np.full(len(longest), 1.0 / BYTES)
        for length, level in enumerate(reversed(self.levels), start=1):
            share, left = level.find(longest % BYTES**length)
            p = share + left * p
        return p

    def bits_per_byte(self, text: Bytes) -> float:
        """Mean -log2 p of the bytes of ``text`` after its first ``order`` ones."""
        return float(-np.log2(self.probabilities(text)).mean())


def _grams(text: Bytes, length: int) -> Numbers:
    """Every run of ``length`` bytes as one number: [N - length + 1]."""
    count = len(text) - length + 1
    grams = np.zeros(count, np.int64)
    for place in range(length):
        grams = grams * BYTES + text[place : place + count]
    return grams


def _level(grams: Numbers, counts: Numbers) -> _Level:
    contexts, first = np.unique(grams // BYTES, return_index=True)
    totals, followers = np.add.reduceat(counts, first), np.diff(first, append=len(grams))
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once else 0.5  # at 0 nothing would be left for others
    shares = np.maximum(counts - discount, 0.0) / np.repeat(totals, followers)
    # What was cut from each gram goes below; a count is at least 1, so nothing is cut twice.
    return _Level(grams, shares, contexts, discount * followers / totals)


def _look_up(keys: Numbers, values: Floats, wanted: Numbers, missing: float) -> Floats:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)
