"""What is said about a recognised layer: evidence for each part, and where it leaves the papers."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node
from .recognise_layer import Layer
from .recognise_probe import Probe, ancestors
from .recognise_rotation import Activation, Blocks, Shuffle, Step
from .recognise_ternary import as_ternary

Array = np.ndarray
# Cosine and sine are rounded to float32, so c * c + s * s is 1 to a few of its units.
ORTHOGONAL = 1e-6
GIVENS = "Givens rotations"


def describe(layer: Layer) -> dict[str, str]:
    """One line of evidence for each part of the layer."""
    region = layer.region
    activation = [step.name for step in layer.middle if isinstance(step, Activation)]
    after = bool(activation) and isinstance(layer.middle[-1], Activation)
    substrate = str(layer.substrate) + ("" if layer.bias is None else ", bias")
    if activation:
        substrate += f", then {activation[0]}" if not after else ""
    gates = ", ".join(f"%{node.name}" for node in region.gates.heads)
    routing = f"top {region.k} of {region.count} by %{region.top_k.name}, gates {gates}"
    if region.by_value:
        routing += f" that reach score number {region.k}; of equal ones the first are taken"
    return {
        "rotation_in": rotation(layer.rotation_in),
        "substrate": substrate,
        "rotation_out": rotation(layer.middle) + (f", then {activation[0]}" if after else ""),
        "routing": routing,
        "down": _down(layer),
    }


def _down(layer: Layer) -> str:
    down = layer.down
    words = "absent"
    if down.w is not None:
        ternary = as_ternary(down.w)
        words = f"dense {list(down.w.shape)}" if ternary is None else str(ternary)
    if down.weighted is not None:
        words += ", bias weighted by the gates"
    return words + (", bias added once" if down.once is not None else "")


def rotation(steps: list[Step]) -> str:
    """The rotation in words: its layers, the kind of its blocks, the orders of its channels."""
    blocks = [step.blocks for step in steps if isinstance(step, Blocks)]
    if not blocks:
        return "none"
    sizes = "/".join(str(size) for size in dict.fromkeys(b.shape[2] for b in blocks))
    kind = "; ".join(dict.fromkeys(_kind(b) for b in blocks))
    width = blocks[0].shape[1] * blocks[0].shape[2]
    words = f"{len(blocks)} layers of {sizes}x{sizes} blocks on {width} channels, {kind}"
    orders = [_order(step.order) for step in steps if isinstance(step, Shuffle)]
    return words + (f"; {', '.join(dict.fromkeys(orders))}" if orders else "")


def flaws(layer: Layer) -> list[str]:
    """In what the layer, rebuilt exactly, is not the papers' layer."""
    found = []
    if _has_constant_channels(layer.region.probe, layer.x):
        found.append("the input is padded with numbers that are not zero, an offset each")
    for side, steps in (("input", layer.rotation_in), ("output", layer.middle)):
        if not any(isinstance(step, Blocks) for step in steps):
            found.append(f"the experts do not rotate their {side}")
        for step, live in zip(steps, _live_groups(steps), strict=True):
            if isinstance(step, Blocks) and _kind(step.blocks) != GIVENS:
                found.append(f"the {side} blocks are {_kind(step.blocks)}")
            elif isinstance(step, Blocks) and (idle := _idle(step.blocks[:, live])):
                count = step.blocks.shape[1]
                found.append(f"{idle} of {count} pairs of an {side} layer are never rotated")
    return list(dict.fromkeys(found))


def _has_constant_channels(probe: Probe, x: Node) -> bool:
    """Whether rows are joined with constants other than zeros: each expert turns these its way."""
    while x.op in ("reshape", "broadcast") and x.operands[0].type.shape[-1] == x.type.shape[-1]:
        x = x.operands[0]
    if x.op != "concat" or x["axis"] % x.type.rank != x.type.rank - 1:
        return False
    parts = [part for part in x.operands if all(n.op != "input" for n in ancestors(part))]
    return any(np.any(probe.run([part], {})[0]) for part in parts)


def _live_groups(steps: list[Step]) -> list[Array]:
    """Of each step that is blocks, the groups whose result is not dropped; nothing of the others.

    A part of a padded rotation has some more, which turn nothing that anybody reads.
    """
    found: list[Array] = []
    live: set[int] | None = None  # the channels that are read behind a step; None for all
    for step in reversed(steps):
        groups = np.zeros(0, np.int64)
        if isinstance(step, Blocks):
            count, size = step.blocks.shape[1:3]
            groups = np.unique(
                [c // size for c in range(count * size) if live is None or c in live]
            )
            live = {size * int(group) + channel for group in groups for channel in range(size)}
        elif isinstance(step, Shuffle):
            live = {int(c) for place, c in enumerate(step.order) if live is None or place in live}
        found.append(groups)
    return found[::-1]


def _kind(blocks: Array) -> str:
    """What blocks [E, groups, b, b] are: the most that is true of all of them."""
    size = blocks.shape[2]
    gram = np.swapaxes(blocks, -1, -2) @ blocks
    if np.abs(gram - np.eye(size)).max() > ORTHOGONAL:
        return "no rotations (not orthogonal)"
    determinant = np.linalg.det(blocks)
    if (determinant < 0).any():
        return "no rotations (determinant -1)"
    return GIVENS if size == 2 else f"orthogonal {size}x{size}, not rotations of pairs"


def _idle(blocks: Array) -> int:
    """How many groups no expert turns, where some are turned."""
    idle = (blocks == np.eye(blocks.shape[2])).all((0, 2, 3))
    return int(idle.sum())


def _order(order: Array) -> str:
    """The name of an order of channels."""
    n = len(order)
    if (order < 0).any():
        kept = int((order >= 0).sum())
        return f"zero-padded from {kept} to {n}"
    if len(set(order.tolist())) < n or order.max(initial=0) >= n:
        return f"{n} channels kept"
    if n % 2 == 0:
        halves = np.arange(n).reshape(2, -1).T.reshape(-1)
        if np.array_equal(order, halves):
            return "interleave"
        if np.array_equal(order, np.argsort(halves)):
            return "deinterleave"
    return "another order" if (order != np.arange(n)).any() else "identity"
