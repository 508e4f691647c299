"""Layers of pairs of channels as one network, and what may be moved about in it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .recognise_rotation import Array, Blocks, Shuffle, simplified

Layer = tuple[Array, Array]


@dataclass(frozen=True)
class Network:
    """Layers of pairs of channels, each (pairs [n/2, 2], blocks [E, n/2, 2, 2]), then an order."""

    layers: list[Layer]
    order: Array


def idle(experts: int, pairs: int) -> Array:
    """Blocks [E, pairs, 2, 2] that do nothing."""
    return np.broadcast_to(np.eye(2), (experts, pairs, 2, 2))


def transposed(network: Network) -> Network:
    """The network of the transposed matrices."""
    # Channel order[i] is called i here, so that the transposed order comes first, unsaid.
    back = np.argsort(network.order)
    layers = [(back[pairs], turns.swapaxes(2, 3)) for pairs, turns in network.layers[::-1]]
    return Network(layers, back)


def absorbed(layers: list[Layer], order: Array, values: Array, noise: float) -> Network | None:
    """The network with a factor of each channel, values [E, n], near 1 or -1, in its last layer.

    Signs move through the wires between blocks, two at a time, so that every block stays a
    rotation: from the far ends of a tree of blocks to its root, which then has none left.
    """
    if not layers:
        return Network([], order) if np.abs(values - 1).max() <= 4 * noise else None
    n, depth = values.shape[1], len(layers)
    node = np.zeros((depth, n), np.int64)  # the block of each channel in each layer
    for level, (pairs, _) in enumerate(layers):
        node[level, pairs] = level * (n // 2) + np.arange(n // 2)[:, None]
    wires: list[list[tuple[int, int, int]]] = [[] for _ in range(depth * n // 2)]
    for level, (below, above) in enumerate(pairwise(node.tolist())):
        for channel, (a, b) in enumerate(zip(below, above, strict=True)):
            wires[a].append((b, level, channel))
            wires[b].append((a, level, channel))
    flip = np.zeros((depth, n, len(values)), bool)  # behind each layer
    flip[-1] = values.T < 0
    odd = np.zeros((len(wires), len(values)), bool)
    odd[(depth - 1) * (n // 2) :] = flip[-1][layers[-1][0]].sum(1) % 2 == 1
    order, exchanged = order.copy(), []
    seen = np.zeros(len(wires), bool)
    for root in range(len(wires) - n // 2, len(wires)):
        if seen[root]:
            continue
        seen[root] = True
        tree = [(root, root, 0, 0)]
        for block, _, _, _ in tree:
            for other, level, channel in wires[block]:
                if not seen[other]:
                    seen[other] = True
                    tree.append((other, block, level, channel))
        for block, parent, level, channel in tree[:0:-1]:
            flip[level, channel] ^= odd[block]
            odd[parent] ^= odd[block]
        if odd[root].all():  # an exchange of two channels, the same for every expert
            exchanged.append(root - (len(wires) - n // 2))
        elif odd[root].any():
            return None
    signs = np.where(flip, -1.0, 1.0).transpose(0, 2, 1)  # [layers, E, n]
    signed = []
    for level, (pairs, turns) in enumerate(layers):
        before = signs[level - 1][:, pairs] if level else np.ones((len(values), n // 2, 2))
        after = signs[level][:, pairs]
        signed.append((pairs, after[..., None] * turns * before[..., None, :]))
    pairs, turns = signed[-1]
    turns = turns * np.abs(values)[:, pairs][..., None]
    turns[:, exchanged] = turns[:, exchanged][:, :, ::-1]
    label = np.arange(n)
    label[pairs[exchanged]] = pairs[exchanged][:, ::-1]
    return Network([*signed[:-1], (pairs, turns)], label[order])


def with_free_signs(values: Array, layers: list[Layer], free: Array) -> Array:
    """``values`` [E, n] with a sign for each ``free`` channel, by which all signs can be absorbed.

    That is so where an even number of them is negative among the channels that blocks connect.
    """
    values = np.where(free, 1.0, values)
    label, before = np.arange(len(free)), None
    while before is None or (label != before).any():
        before = label.copy()
        for pairs, _ in layers:
            label[pairs] = label[pairs].min(1, keepdims=True)
    for part in np.unique(label):
        channels = np.flatnonzero(label == part)
        spare = channels[free[channels]]
        if len(spare):
            values[:, spare[0]] = np.where((values[:, channels] < 0).sum(1) % 2, -1.0, 1.0)
    return values


def side_by_side(networks: list[Network], experts: int, b: int) -> Network:
    """Networks of b channels each as one; shallow ones end in idle layers."""
    rest = np.arange(b).reshape(-1, 2), idle(experts, b // 2)
    layers = []
    for level in range(max(len(network.layers) for network in networks)):
        parts = [n.layers[level] if level < len(n.layers) else rest for n in networks]
        pairs = np.concatenate([part[0] + b * group for group, part in enumerate(parts)])
        layers.append((pairs, np.concatenate([part[1] for part in parts], 1)))
    orders = [network.order + b * group for group, network in enumerate(networks)]
    return Network(layers, np.concatenate(orders))


def as_steps(network: Network, channels: int) -> list[Shuffle | Blocks]:
    """The network as orders and blocks of neighbours."""
    steps: list[Shuffle | Blocks] = []
    slot = np.arange(channels)
    for pairs, turns in network.layers:
        steps += [Shuffle(slot[pairs.ravel()]), Blocks(turns)]
        slot[pairs.ravel()] = np.arange(channels)
    steps.append(Shuffle(slot[network.order]))
    return [s for s in simplified([*steps], channels) if isinstance(s, Shuffle | Blocks)]
