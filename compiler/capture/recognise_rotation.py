"""What a map of rows is: an order of channels, blocks on groups of channels, a bias, an activation.

The map is known only by what it makes of rows that we choose: ``probe(rows [R, n], experts [R])``.
Every answer is checked on random rows of every expert before it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..ir.ops.elementwise import ACTIVATIONS

Array = np.ndarray
RowProbe = Callable[[Array, Array], Array]

LARGEST_BLOCK = 16
SMALLEST_PART = 4  # a block is at most this part of the channels, or it is a dense map
TOLERANCE = 1e-12
ROUNDED = 1e-6
# Beside 1: a clamp, or a threshold, does nothing to the values between.
MAGNITUDES = 10.0 ** np.arange(-9, 10)


@dataclass(frozen=True)
class Shuffle:
    """Channel i of the result is channel order[i], or 0 where order[i] is -1."""

    order: Array
    source: str = ""


@dataclass(frozen=True)
class Blocks:
    """Each group of channels times one block, for each expert: blocks [E, groups, b, b].

    ``rounded``: a layer of a matrix that float32 rounds.
    """

    blocks: Array
    rounded: bool = False
    source: str = ""


@dataclass(frozen=True)
class Bias:
    """The same vector is added for every expert."""

    values: Array
    source: str = ""


@dataclass(frozen=True)
class Scale:
    """Each channel times a factor, the same for every expert: values [n]."""

    values: Array
    source: str = ""

    def as_blocks(self, experts: int) -> Blocks:
        """The same as blocks of two channels for each expert; for an even number of channels."""
        pairs = np.eye(2) * self.values.reshape(-1, 2)[:, :, None]
        blocks = np.broadcast_to(pairs, (experts, *pairs.shape))
        return Blocks(blocks, source=self.source)


@dataclass(frozen=True)
class Activation:
    """A function of each channel, by its name among the ops.

    ``rounded``: written out by parts, with constants that float32 rounds.
    """

    name: str
    rounded: bool = False
    source: str = ""


Step = Shuffle | Blocks | Scale | Bias | Activation


@dataclass(frozen=True)
class Unknown:
    """None of these; ``reason`` ends the sentence "the map ...". It may be ``linear``.

    ``part``: some rotation, of which not enough is left to tell it.
    """

    reason: str
    linear: bool = False
    part: bool = False


def classify(
    probe: RowProbe, channels: int, experts: int, rng: np.random.Generator
) -> list[Step] | Unknown:
    """The steps whose composition is the map, or why there are none."""
    # Every expert, and in every channel both signs, which tells a ReLU from nothing at all.
    every = np.tile(np.arange(max(experts, 4)) % experts, 2)
    x = 2 * rng.standard_normal((len(every) // 2, channels))
    x = np.concatenate([x, -x])
    y = probe(x, every)
    offset = probe(np.zeros_like(x), every)
    if not np.isfinite(y).all():
        return Unknown("does not give finite values")
    if not np.isfinite(offset).all():
        return Unknown("is not linear: of zero it makes no finite value")
    if not np.all(offset == offset[0]):
        return Unknown("adds something else for each expert, or at each place")
    bias = offset[0]
    wide = MAGNITUDES[:, None] * rng.standard_normal((len(MAGNITUDES), channels))
    owners = np.arange(len(wide)) % experts
    at_wide = probe(wide, owners)
    if x.shape == y.shape:
        for name, function in ACTIVATIONS.items():
            if name != "none" and close(y, function(x), ROUNDED):
                if not close_by_row(at_wide, function(wide), ROUNDED):
                    return Unknown(f"is {name} for values near 1 only")
                return [Activation(name, not close(y, function(x)))]
    other = rng.standard_normal(x.shape)
    if not close(probe(x + other, every) - y, probe(other, every) - bias):
        return Unknown("is not linear")
    at_one = probe(wide / MAGNITUDES[:, None], owners) - bias
    if not close_by_row(at_wide, at_one * MAGNITUDES[:, None] + bias, floor=bias):
        return Unknown("is linear for values near 1 only")
    steps = _as_shuffle(probe, channels, x, y, bias) or _as_scale(x, y - bias)
    if steps is None:
        found = _as_blocks(probe, every, x, y, bias, rng)
        if isinstance(found, Unknown):
            return found
        steps = found
    return [*steps, Bias(bias)] if bias.any() else steps


def close(a: Array, b: Array, tolerance: float = TOLERANCE) -> bool:
    """Whether two arrays differ by no more than ``tolerance`` of the largest element."""
    return bool(np.abs(a - b).max(initial=0) <= tolerance * max(1e-300, np.abs(b).max(initial=0)))


def close_by_row(
    a: Array, b: Array, tolerance: float = TOLERANCE, floor: Array | float = 0.0
) -> bool:
    """Whether each row of ``a`` differs from that of ``b`` by a small part of its largest element.

    Of a part of ``floor``, where that is larger.
    """
    largest = np.maximum(np.abs(b).max(1, initial=1e-300), np.abs(floor).max(initial=0))
    return bool((np.abs(a - b).max(1, initial=0) <= tolerance * largest).all())


def _as_shuffle(
    probe: RowProbe, channels: int, x: Array, y: Array, bias: Array
) -> list[Step] | None:
    """The map as an order of channels, read off distinct values; ``x`` must then move to ``y``."""
    ramp = np.arange(1.0, channels + 1)
    moved = probe(ramp[None], np.zeros(1, np.int64))[0] - bias
    if not np.isfinite(moved).all():
        return None
    order = np.rint(moved).astype(np.int64) - 1
    if order.min(initial=0) < -1 or order.max(initial=0) >= channels:
        return None
    step = Shuffle(order)
    return [step] if close(run_step(step, x, None), y - bias) else None


def _as_scale(x: Array, y: Array) -> list[Step] | None:
    """The map of rows ``x`` to ``y`` as a factor for each channel."""
    if x.shape != y.shape:
        return None
    largest = np.abs(x).argmax(0)[None]
    values = (np.take_along_axis(y, largest, 0) / np.take_along_axis(x, largest, 0))[0]
    # y / x is off by round-off, in which the channels differ even where one number scales all.
    found, counts = np.unique(values, return_counts=True)
    one = np.full_like(values, found[counts.argmax()])
    values = one if close(values, one, 4 * np.finfo(np.float64).eps) else values
    return [Scale(values)] if close(x * values, y) else None


def run_step(step: Step, x: Array, experts: Array | None) -> Array:
    """What ``step`` makes of rows x [R, n] of the given experts."""
    if isinstance(step, Shuffle):
        return np.where(step.order >= 0, x[:, np.maximum(step.order, 0)], 0.0)
    if isinstance(step, Bias):
        return np.asarray(x + step.values)
    if isinstance(step, Scale):
        return np.asarray(x * step.values)
    if isinstance(step, Activation):
        return ACTIVATIONS[step.name](x)
    assert experts is not None, "blocks belong to experts"
    groups, b = step.blocks.shape[1:3]
    return (step.blocks[experts] @ x.reshape(-1, groups, b, 1)).reshape(x.shape)


def _as_blocks(
    probe: RowProbe, every: Array, x: Array, y: Array, bias: Array, rng: np.random.Generator
) -> list[Step] | Unknown:
    """The map as order, blocks, order. Its support comes from a basis, spread over the experts.

    An angle may be zero for one expert and not for the next, so the basis is repeated with other
    experts where the rows ``x`` of the experts ``every`` do not come out as ``y``.
    """
    experts, channels, outputs = int(every.max()) + 1, x.shape[1], y.shape[1]
    most = min(LARGEST_BLOCK, max(2, channels // SMALLEST_PART))
    support = np.zeros((outputs, channels), bool)
    for attempt in range(3):
        owners = rng.integers(experts, size=1 if attempt == 2 else channels)
        owners = np.broadcast_to(owners, channels)
        seen = _support(probe, channels, outputs, owners, bias)
        support |= True if seen is None else seen
        groups = _components(support, most)
        if groups is None:
            return Unknown(f"mixes more than {most} channels", linear=True)
        if not groups:
            return Unknown("depends on no channel", linear=True)
        steps = _read_blocks(probe, channels, outputs, experts, groups, bias)
        value = x
        for step in steps:
            value = run_step(step, value, every)
        if close(value, y - bias):
            return steps
    return Unknown("does not mix the same channels for every expert", linear=True)


def _support(
    probe: RowProbe, channels: int, outputs: int, owners: Array, bias: Array
) -> Array | None:
    """Which output depends on which channel, or None as soon as one channel reaches too many."""
    support = np.zeros((outputs, channels), bool)
    block = max(2, (1 << 20) // max(channels, outputs))
    # The first channel goes alone: it ends most searches in dense maps.
    edges = [0, 1, *range(block, channels, block), channels]
    for low, high in pairwise(edges):
        basis = np.zeros((high - low, channels))
        basis[np.arange(high - low), np.arange(low, high)] = 1
        response = np.abs(probe(basis, owners[low:high]) - bias)
        hit = response > TOLERANCE * response.max(initial=0)
        if hit.sum(1).max(initial=0) > LARGEST_BLOCK:
            return None
        support[:, low:high] = hit.T
    return support


def _components(support: Array, most: int) -> list[tuple[Array, Array]] | None:
    """(outputs, channels) of each connected part, by first channel; None if one is too large."""
    channels = support.shape[1]
    label = np.arange(channels)
    rows = [np.flatnonzero(row) for row in support]
    changed = True
    while changed:
        changed = False
        for members in rows:
            if len(members) > 1:
                low = label[members].min()
                if (label[members] != low).any():
                    label[members] = low
                    changed = True
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for channel in np.flatnonzero(support.any(0)):
        groups.setdefault(int(label[channel]), ([], []))[1].append(int(channel))
    for output, members in enumerate(rows):
        if len(members):
            groups[int(label[members[0]])][0].append(output)
    if any(max(len(a), len(b)) > most for a, b in groups.values()):
        return None
    return [(np.array(a), np.array(b)) for _, (a, b) in sorted(groups.items())]


def _read_blocks(
    probe: RowProbe,
    channels: int,
    outputs: int,
    experts: int,
    groups: list[tuple[Array, Array]],
    bias: Array,
) -> list[Step]:
    """Order, blocks, order of known groups: channel i of all groups is read by one probe an expert.

    Blocks are square with a power of two as their size; single channels are put in pairs.
    """
    widest = max(max(len(a), len(b)) for a, b in groups)
    size = max(2, 1 << (widest - 1).bit_length())
    slots = _packed(groups, size)
    order_in = np.full(len(slots) * size, -1, np.int64)
    order_out = np.full(outputs, -1, np.int64)
    blocks = np.zeros((experts, len(slots), size, size))
    for g, members in enumerate(slots):
        inputs = np.concatenate([groups[m][1] for m in members])
        results = np.concatenate([groups[m][0] for m in members])
        order_in[g * size : g * size + len(inputs)] = inputs
        order_out[results] = g * size + np.arange(len(results))
    place = np.flatnonzero(order_out >= 0)
    for i in range(size):
        chosen = order_in[i::size]
        row = np.zeros(channels)
        row[chosen[chosen >= 0]] = 1
        response = probe(np.tile(row, (experts, 1)), np.arange(experts)) - bias
        column = np.zeros((experts, len(slots) * size))
        column[:, order_out[place]] = response[:, place]
        blocks[:, :, :, i] += column.reshape(experts, len(slots), size)
    return [Shuffle(order_in), Blocks(_with_dead(blocks)), Shuffle(order_out)]


def _with_dead(blocks: Array) -> Array:
    """Blocks [E, groups, b, b] in which a channel on neither side is passed on to itself.

    That leaves an orthogonal block orthogonal. One that is not stays cut off.
    """
    used = (blocks != 0).any(0)
    dead = ~(used.any(1) | used.any(2))  # [groups, b]
    whole = blocks + np.eye(blocks.shape[2]) * dead[:, None]
    gram = np.swapaxes(whole, 2, 3) @ whole
    is_orthogonal = np.abs(gram - np.eye(blocks.shape[2])).max((0, 2, 3)) <= ROUNDED
    return np.where(is_orthogonal[:, None, None], whole, blocks)


def _packed(groups: list[tuple[Array, Array]], size: int) -> list[list[int]]:
    """Groups put together into blocks of ``size``, so that small ones leave no dead channels."""
    blocks: list[list[int]] = []
    room: tuple[int, int] = 0, 0
    for number, (results, inputs) in enumerate(groups):
        if len(results) <= room[0] and len(inputs) <= room[1]:
            blocks[-1].append(number)
            room = room[0] - len(results), room[1] - len(inputs)
        else:
            blocks.append([number])
            room = size - len(results), size - len(inputs)
    return blocks


def simplified(steps: list[Step], channels: int) -> list[Step]:
    """The same steps from ``channels`` on, with neighbouring orders composed, idle ones dropped.

    Two reflections of the same groups, one after the other, are one rotation.
    """
    short: list[Step] = []
    for step in steps:
        last = short[-1] if short else None
        if isinstance(step, Shuffle) and isinstance(last, Shuffle):
            moved = last.order[np.maximum(step.order, 0)]
            short[-1] = Shuffle(np.where(step.order >= 0, moved, -1), step.source)
        else:
            short.append(step)
    kept: list[Step] = []
    for step in short:
        if isinstance(step, Shuffle):
            idle = np.array_equal(step.order, np.arange(channels))
            channels = len(step.order)
            if idle:
                continue
        elif isinstance(step, Blocks):
            channels = step.blocks.shape[1] * step.blocks.shape[2]
            last = kept[-1] if kept else None
            if isinstance(last, Blocks) and _reflect(last.blocks, step.blocks):
                rounded = last.rounded or step.rounded
                kept[-1] = Blocks(step.blocks @ last.blocks, rounded, step.source)
                continue
        kept.append(step)
    return kept


def _reflect(first: Array, second: Array) -> bool:
    """Whether both are blocks of the same channels, with determinants below zero."""
    same = first.shape == second.shape
    return same and bool((np.linalg.det(np.stack([first, second])) < 0).all())
