"""Dense rotations as layers of pairs: B = order . layer K ... layer 1, read off the values alone.

Layers are peeled from the columns of B. Where two columns are a pair of the first layer, each row
depends on one of the two turned channels only, so the rows (B[i, left], B[i, right]) lie on two
orthogonal lines, and the same rows on the same line for every expert. The lines are the angle.

Of a padded rotation rows and columns may be cut off, which are zeros here. What is left of a pair's
rows still lies on its lines, and where one of them is empty, it stands across the other.
"""

from __future__ import annotations

import numpy as np

from .recognise_network import (
    Layer,
    Network,
    absorbed,
    as_steps,
    idle,
    side_by_side,
    transposed,
    with_free_signs,
)
from .recognise_rotation import Array, Blocks, Shuffle, run_step

NOISE = 1e-14  # round-off of a product of ten layers is a few 1e-16 of a column of length 1
AGREES = 100  # the layers agree with the blocks within so many times the noise: 1e-12
# Cosines and sines in float32 make [c, -s; s, c] longer or shorter by 6e-8, and ten layers of them
# up to ten times that. A line stays exact; two of them are orthogonal only so far.
SKEW = 1e-6
FLOAT32 = 1e-7  # by about so much a line may be off the one across it
PEAKS = 4  # rows of a column that are looked at first
SAMPLE = 32  # rows that tell which pairs split the rows alike
CODES = 2048  # ways to split the rows that are compared with one another
TRIES = 4  # orders in which pairs are chosen, where zero angles leave a choice
ROUNDS = 64  # disjoint sets of possible pairs that are tried for one layer


def givens_layers(blocks: Array, noise: float = NOISE) -> list[Shuffle | Blocks] | None:
    """Orders and blocks of pairs that make of the channels what blocks [E, groups, b, b] make.

    At most log2 b layers [E, groups b / 2, 2, 2], the same pairs for all experts, every block a
    rotation within 1e-6. The composition is that of the given values, within 100 ``noise``: how far
    each of them may be off; rows and columns of zeros are of no account. Empty for the identity;
    None where there is no such form, or none was found. What turns the orientation for every expert
    is a rotation and an exchange of channels.
    """
    experts, groups, b = blocks.shape[:3]
    if blocks.shape[3] != b or b < 2 or b & (b - 1) or not blocks.size:
        return None
    cut = is_cut(blocks)
    length = np.square(blocks).sum(2)
    off = np.where(cut[:, None], np.maximum(length - 1, 0), np.abs(length - 1))
    if not (off <= 10 * (SKEW + noise)).all():  # ordinary weights end here, and NaN
        return None
    networks = []
    for group in range(groups):
        matrices = np.asarray(blocks[:, group], np.float64)
        if not matrices.any():
            return None
        network = _factor(matrices, noise, bool(cut[group]))
        if network is None:
            return None
        networks.append(network)
    steps = as_steps(side_by_side(networks, experts, b), groups * b)
    return steps if _agree(steps, blocks, noise) else None


def is_cut(blocks: Array) -> Array:
    """Of which groups of blocks [E, groups, b, b] rows or columns are zero: a mask [groups]."""
    used = (blocks != 0).any(0)
    return ~(used.any(1).all(1) & used.any(2).all(1))


def _factor(matrices: Array, noise: float, cut: bool) -> Network | None:
    """The network of matrices [E, n, n], from the columns or, where these are unclear, the rows."""
    for attempt in range(TRIES):
        rng = np.random.default_rng(attempt) if attempt else None
        network = _peel(np.array(matrices.swapaxes(1, 2), order="C"), noise, rng, cut)
        if network is not None:
            return network
        network = _peel(np.array(matrices, order="C"), noise, rng, cut)
        if network is not None:
            break
    if network is None:
        return None
    return transposed(network)


def _peel(
    columns: Array, noise: float, rng: np.random.Generator | None, cut: bool
) -> Network | None:
    """The network of columns [E, n, n] (expert, column, row), which are used up."""
    experts, n = columns.shape[:2]
    depth = n.bit_length() - 1
    layers: list[Layer] = []
    while True:
        mask = np.abs(columns).max(0) > noise
        reach = mask.sum(1)
        if reach.max() > 1 << (depth - len(layers)) or (reach.min() == 0 and not cut):
            return None
        if reach.max() <= 1 and mask.sum(0).max() <= 1:
            break
        pairs, turns = _peel_layer(columns, mask, noise, rng, cut)
        if not len(pairs):
            return None
        rest = np.setdiff1d(np.arange(n), pairs).reshape(-1, 2)
        turns = np.concatenate([turns, idle(experts, len(rest))], 1)
        layers.append((np.concatenate([pairs, rest]), turns))
    place = _places(mask)
    order = np.argsort(place)
    if not np.array_equal(place[order], np.arange(n)):
        return None
    values = columns[:, np.arange(n), place]
    if cut:
        values = with_free_signs(values, layers, free=~mask.any(1))
    for stride in range(depth - len(layers) + 1):
        network = absorbed(layers, order, values, noise)
        if network is not None:
            return network
        low = np.flatnonzero(~np.arange(n) >> stride & 1)
        if stride < depth:  # layers of their own for turns by pi, as the channels have no other
            pairs = np.stack([low, low + (1 << stride)], 1)
            layers = [*layers, (pairs, idle(experts, n // 2))]
    return None


def _places(mask: Array) -> Array:
    """The row of each column: the one where it is not zero, or one that no column has."""
    place = mask.argmax(1)
    empty = ~mask.any(1)
    left = np.setdiff1d(np.arange(len(mask)), place[~empty])
    place[empty] = left[: empty.sum()]
    return place


def _peel_layer(
    columns: Array, mask: Array, noise: float, rng: np.random.Generator | None, cut: bool
) -> tuple[Array, Array]:
    """Pairs [K, 2] of a first layer and their blocks [E, K, 2, 2], taken out of ``columns``."""
    found = [np.zeros((0, 2), np.int64)]
    turns = [np.zeros((len(columns), 0, 2, 2))]
    size = np.abs(columns).max(0)
    peaks = np.argsort(-size, axis=1)[:, :PEAKS]
    own = np.take_along_axis(size, peaks, 1)
    both = [np.minimum(size[:, rows], top) for rows, top in zip(peaks.T, own.T, strict=True)]
    strength = np.max([*both, *(one.T for one in both)], axis=0)
    np.fill_diagonal(strength, 0)
    best = strength.max(1)
    free = np.ones(len(mask), bool)
    # Strong pairs first: by small angles, channels many layers apart look like a pair of idle ones.
    for share in (0.01, 0.0):
        least = np.maximum(noise, share * np.maximum(best[:, None], best))
        possible = np.triu((strength > least) & free[:, None] & free)
        pairs = _screened(columns, np.argwhere(possible), peaks, noise)
        pairs = _ordered(columns, pairs, noise, rng)
        for _ in range(ROUNDS):
            pairs = pairs[free[pairs].all(1)]
            if not len(pairs):
                break
            channel, first = np.unique(pairs, return_index=True)
            earliest = np.zeros(len(mask), np.int64)
            earliest[channel] = first // 2
            chosen = (earliest[pairs] == np.arange(len(pairs))[:, None]).all(1)
            good, blocks = _turn(columns, pairs[chosen], mask, noise, cut)
            found.append(good)
            turns.append(blocks)
            free[good] = False
            pairs = pairs[~chosen]
    return np.concatenate(found), np.concatenate(turns, 1)


def _screened(columns: Array, pairs: Array, peaks: Array, noise: float) -> Array:
    """The pairs whose rows lie on two orthogonal lines as far as the largest rows tell."""
    spread = np.argsort(-np.abs(columns).sum((1, 2)))  # identities tell nothing: they go last
    for width in (2, PEAKS):
        for expert in spread:
            rows = np.concatenate([peaks[pairs[:, 0], :width], peaks[pairs[:, 1], :width]], 1)
            on_line, across = _sides(columns[expert], pairs, rows, noise)
            pairs = pairs[(on_line | across).all(1)]
    return pairs


def _sides(columns: Array, pairs: Array, rows: Array, noise: float) -> tuple[Array, Array]:
    """Which of rows [K, r] of pairs lie on the line of the longest one, and which across it."""
    z = columns[pairs[:, :1], rows] + 1j * columns[pairs[:, 1:], rows]
    length = np.abs(z)
    longest = np.take_along_axis(z, length.argmax(1)[:, None], 1)
    z = z * (longest.conj() / np.maximum(np.abs(longest), 1e-300))
    return np.abs(z.imag) <= 4 * noise, np.abs(z.real) <= 4 * noise + SKEW * length


def _ordered(columns: Array, pairs: Array, noise: float, rng: np.random.Generator | None) -> Array:
    """Pairs that split the rows as most of the others do come first, with those that do it alike.

    Equal and zero angles leave a choice of pairs, and only a layer of one split leaves two halves.
    """
    if len(np.unique(pairs)) == pairs.size:
        return pairs
    n = columns.shape[1]
    some = np.unique(np.linspace(0, n - 1, SAMPLE).astype(np.int64))
    rows = np.broadcast_to(some, (len(pairs), len(some)))
    _, lean = _leaning(columns, pairs, rows)
    side = np.where(np.abs(lean) > noise * noise, np.sign(lean), 0).astype(np.float32)
    known = np.take_along_axis(side, (side != 0).argmax(1)[:, None], 1)
    side *= np.where(known < 0, -1, 1)
    code = side.astype(np.int64) @ np.random.default_rng(0).integers(1 << 40, size=len(some))
    _, first, label, count = np.unique(code, True, True, True)
    score = count.astype(np.float64)
    if len(first) <= CODES:
        side = side[first]
        shared = np.abs(side) @ np.abs(side).T
        alike = np.abs(side @ side.T) == shared
        score = np.where(alike, shared, -shared) @ score
    if rng is not None:
        score += rng.standard_normal(len(score)) * score.std()
    return pairs[np.lexsort((label, -score[label]))]


def _leaning(columns: Array, pairs: Array, rows: Array) -> tuple[Array, Array]:
    """Rows [K, r] of pairs as complex numbers [E, K, r], and to which line each leans [K, r]."""
    z = columns[:, pairs[:, :1], rows] + 1j * columns[:, pairs[:, 1:], rows]
    square = z * z
    # Turned back by a quarter of the phase of the fourth powers, both lines are the axes.
    lean = (square * np.exp(-0.5j * np.angle((square * square).sum(2)))[..., None]).real
    total = lean[0].copy()
    for other in lean[1:]:
        total += np.where((total * other).sum(1) < 0, -1.0, 1.0)[:, None] * other
    return z, total


def _turn(
    columns: Array, pairs: Array, mask: Array, noise: float, cut: bool
) -> tuple[Array, Array]:
    """Those of disjoint pairs that are of a first layer, and their blocks, taken out of columns."""
    left, right = pairs.T
    support = mask[left] | mask[right]
    rows = np.argsort(~support, axis=1, kind="stable")[:, : support.sum(1).max()]
    z, lean = _leaning(columns, pairs, rows)
    square, first = z * z, lean > 0
    one = np.exp(0.5j * np.angle((square * first).sum(2)))  # [E, K]: unit vectors along the lines
    two = np.exp(0.5j * np.angle((square * ~first).sum(2)))
    if cut:
        one, two = _across(
            one, two, (np.abs(square) * first).sum(2), (np.abs(square) * ~first).sum(2), noise
        )
    two = np.where((one.conj() * two).imag < 0, -two, two)
    along = z * np.where(first, one[..., None], two[..., None]).conj()
    energy = (along.real**2 * first).sum(2)
    other_energy = (along.real**2 * ~first).sum(2)
    good = (np.abs(along.imag).max(2) <= 4 * noise).all(0)
    good &= (np.abs((one.conj() * two).real) <= SKEW + noise).all(0)
    energies = np.stack([energy, other_energy])
    off = np.maximum(energies - 1, 0) if cut else np.abs(energies - 1)
    good &= (off <= 10 * (SKEW + noise)).all((0, 1))
    rows, first, along = rows[good], first[good], along.real[:, good]
    columns[:, pairs[good]] = 0
    columns[:, left[good][:, None], rows] = along * first
    columns[:, right[good][:, None], rows] = along * ~first
    lines = np.stack([one, two], 2)[:, good]
    return pairs[good], np.stack([lines.real, lines.imag], 3)


def _across(
    one: Array, two: Array, energy: Array, other: Array, noise: float
) -> tuple[Array, Array]:
    """Both lines, where that of less energy is too short to be seen across the other."""
    short = (4 * noise / FLOAT32) ** 2
    two = np.where((other <= energy) & (other < short), 1j * one, two)
    return np.where((energy < other) & (energy < short), -1j * two, one), two


def _agree(steps: list[Shuffle | Blocks], blocks: Array, noise: float) -> bool:
    """Whether steps are rotations that make of random rows of every expert what the blocks do."""
    experts, groups, b = blocks.shape[:3]
    owners = np.repeat(np.arange(experts), 4)
    x = np.random.default_rng(0).standard_normal((len(owners), groups * b))
    parts = x.reshape(experts, 4, groups, b).swapaxes(1, 2)  # no copy of the blocks for each row
    wanted = (parts @ blocks.swapaxes(2, 3)).swapaxes(1, 2).reshape(x.shape)
    rows = (blocks != 0).any((0, 3)).reshape(-1)
    columns = (blocks != 0).any((0, 2)).reshape(-1)
    x = x * columns
    for step in steps:
        x = run_step(step, x, owners)
        if isinstance(step, Blocks):
            square = step.blocks @ step.blocks.swapaxes(2, 3)
            if np.abs(square - np.eye(2)).max() > SKEW + noise:
                return False
            if np.linalg.det(step.blocks).min() < 0:
                return False
    return bool(np.abs((x - wanted)[:, rows]).max() <= AGREES * noise * np.abs(wanted).max())
