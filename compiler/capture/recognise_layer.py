"""What a Butterfly layer is made of, read off its region part by part.

    y = sum over slots i of gate_i * (W_down . middle . W_hat . rotation_in (x) + bias) + bias

Each part is refused alone, with a reason; nothing is taken over that was not probed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..ir.graph import Node
from .recognise_chain import Cut, cuts, is_before_routing, needs_gates, path, row_probe
from .recognise_probe import OutOfReach, ancestors
from .recognise_rotation import (
    Activation,
    Bias,
    Blocks,
    Step,
    Unknown,
    classify,
    close,
    simplified,
)
from .recognise_routing import NotRecognised, Region, random_gates
from .recognise_rows import Rows
from .recognise_ternary import Product, Ternary, as_ternary, is_selection, levels, product_of

Array = np.ndarray


@dataclass(frozen=True)
class Down:
    """The shared map behind the experts: w [N, F], or None where their rows are the result."""

    w: Array | None
    weighted: Array | None
    once: Array | None


@dataclass(frozen=True)
class Layer:
    """A recognised layer. ``x`` is the cut from which the experts read."""

    region: Region
    y: Node
    y_rows: Rows
    x: Cut
    rotation_in: list[Step]
    product: Product
    substrate: Ternary
    bias: Array | None
    middle: list[Step]
    down: Down


def parse(region: Region, y: Node, y_rows: Rows, rng: np.random.Generator) -> Layer:
    """The parts of the mixture whose result is ``y``. Raises NotRecognised."""
    end = Cut((y,), y_rows)
    products = find_substrate(region, end, rng)
    behind = _places_behind(region, _once(p.node for p in products), end, rng)
    made = behind[0]
    read_rows = made.rows.with_channels(products[0].x.type.shape)
    if read_rows is None:
        raise NotRecognised(f"'{products[0].node.name}' multiplies along another axis")
    read = Cut(_once(p.x for p in products), read_rows)
    substrate = as_ternary(products[0].w)
    assert substrate is not None, "find_substrate gives ternary products only"
    x, rotation_in = _in_front(region, read, rng)
    bias, middle, last = _behind(region, behind, rng)
    bias = _sum(products[0].bias, bias)
    down = _down(region, last, end, rng)
    return Layer(region, y, y_rows, x, rotation_in, products[0], substrate, bias, middle, down)


def _once(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes of a cut: one where all experts share it."""
    each = tuple(nodes)
    return each[:1] if len(set(each)) == 1 else each


def _sum(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a + b


def find_substrate(region: Region, end: Cut, rng: np.random.Generator) -> list[Product]:
    """The ternary product through which all experts pass, or one for each expert in a loop.

    Raises NotRecognised where there is none, or where the experts' matrices differ.
    """
    y = end.nodes[0]
    plan = region.probe.plan((y,), {region.h, *region.forced})
    products = [p for node in plan if (p := product_of(region.probe, node)) is not None]
    if not products:
        raise NotRecognised("no product with a constant matrix between the routing and its result")
    ternary = [p for p in products if as_ternary(p.w) is not None and not is_selection(p.w)]
    if not ternary:
        found = ", ".join(dict.fromkeys(f"'{p.node.name}': {levels(p.w)}" for p in products[:4]))
        raise NotRecognised(f"no matrix of the experts is ternary ({found})")
    common = set(path(region, region.h, y))
    for product in ternary:
        if product.node in common:
            return [product]
    return _looped(region, ternary, end, rng)


def _looped(
    region: Region, ternary: list[Product], end: Cut, rng: np.random.Generator
) -> list[Product]:
    """The substrate product of each expert where a loop gives each its own nodes.

    The owner of a product is the expert whose tokens change with it. Where W_down is ternary too,
    an expert owns several: the first is the substrate.
    """
    owners: list[Product | None] = [None] * region.count
    nodes = {p.node for p in ternary}
    heads = [p for p in ternary if len(nodes & ancestors(p.node)) == 1]
    for product in heads:
        for expert in _owners(region, product.node, [p.node for p in heads], end, rng):
            if owners[expert] is not None:
                raise NotRecognised(f"expert {expert} passes through several ternary products")
            owners[expert] = product
    missing = [str(expert) for expert, product in enumerate(owners) if product is None]
    if missing:
        raise NotRecognised(f"no ternary product found for expert {', '.join(missing)}")
    found = [product for product in owners if product is not None]
    if any(not np.array_equal(p.w, found[0].w) for p in found):
        raise NotRecognised("the experts do not share their ternary matrix")
    if any(not _same(p.bias, found[0].bias) for p in found):
        raise NotRecognised("the experts do not share the bias behind the ternary product")
    return found


def _same(a: Array | None, b: Array | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))


def _owners(
    region: Region, node: Node, all_nodes: list[Node], end: Cut, rng: np.random.Generator
) -> list[int]:
    """The experts whose tokens change with the value of ``node``."""
    found: set[int] = set()
    value = {other: rng.standard_normal(other.type.shape) for other in all_nodes}
    for first in range(0, region.count, region.tokens):
        chosen = (first + np.arange(region.tokens)) % region.count
        experts = np.repeat(chosen[:, None], region.k, axis=1)
        given = {**region.force(experts, np.ones(experts.shape)), **value}
        before = end.rows.read(region.probe.run(list(end.nodes), given)[0])
        given[node] = rng.standard_normal(node.type.shape)
        after = end.rows.read(region.probe.run(list(end.nodes), given)[0])
        found.update(chosen[(before != after).any((1, 2))].tolist())
    return sorted(found)


def _in_front(region: Region, read: Cut, rng: np.random.Generator) -> tuple[Cut, list[Step]]:
    """The cut x from which rotation starts, and the steps from there to the product.

    Walked backwards, so that what lies in front of the rotation (a norm) stays as it is.
    """
    paths = [path(region, region.h, node)[::-1] for node in read.nodes]
    steps: list[Step] = []
    current = read
    for start in cuts(region, side_by_side(paths), read, rng):
        if start.nodes == current.nodes:
            continue
        if needs_gates(region, start, current):
            raise NotRecognised("the gates enter in front of the ternary product")
        found = _classified(region, start, current, rng)
        bad = found if isinstance(found, Unknown) else _unfit(found, "in front")
        if isinstance(bad, Unknown):
            if is_before_routing(region, current):
                break
            raise NotRecognised(_sentence(start, current, bad))
        assert not isinstance(found, Unknown)
        steps = [*found, *steps]
        current = start
    if not is_before_routing(region, current) or current.rows.slots > 1:
        raise NotRecognised(
            f"the experts do not start from one activation (reached '{current.nodes[0].name}')"
        )
    return current, simplified(steps, current.rows.channels)


def _places_behind(
    region: Region, made: tuple[Node, ...], end: Cut, rng: np.random.Generator
) -> list[Cut]:
    """The cuts from the ternary product to the result, both with them."""
    places = side_by_side([path(region, node, end.nodes[0]) for node in made])
    found = cuts(region, places[::-1], end, rng)[::-1]
    if not found or found[0].nodes != made:
        raise NotRecognised(f"the rows of the ternary product '{made[0].name}' mix")
    return found


def _behind(
    region: Region, places: list[Cut], rng: np.random.Generator
) -> tuple[Array | None, list[Step], Cut]:
    """Bias, then the steps behind the product, and the cut at which W_down or the gates begin."""
    bias: Array | None = None
    steps: list[Step] = []
    current = places[0]
    for cut in places[1:]:
        merged = cut.rows.slots < current.rows.slots or len(cut.nodes) < len(current.nodes)
        if merged or needs_gates(region, current, cut):
            break
        if any(product_of(region.probe, node) is not None for node in cut.nodes):
            break
        found = _classified(region, current, cut, rng)
        if isinstance(found, Unknown):
            if _has_rotation_or_activation(steps):
                break  # perhaps W_down in another form; `_down` will tell
            raise NotRecognised(_sentence(current, cut, found))
        if found and isinstance(found[-1], Bias):
            if steps or len(found) > 1:
                break
            bias = _sum(bias, found[0].values) if isinstance(found[0], Bias) else bias
        else:
            steps = [*steps, *found]
        current = cut
    steps = simplified(steps, places[0].rows.channels)
    kinds = [type(step) for step in steps if isinstance(step, Activation | Blocks)]
    if kinds.count(Activation) > 1:
        raise NotRecognised("an expert has several activations")
    if Activation in kinds and Activation not in (kinds[0], kinds[-1]):
        raise NotRecognised("the activation stands between two layers of the rotation")
    return bias, steps, current


def _has_rotation_or_activation(steps: list[Step]) -> bool:
    return any(isinstance(step, Activation | Blocks) for step in steps)


def _unfit(steps: list[Step], where: str) -> Unknown | None:
    for step in steps:
        if isinstance(step, Activation):
            return Unknown(f"is an activation {where} of the ternary product")
        if isinstance(step, Bias):
            return Unknown(f"adds a bias {where} of the ternary product")
    return None


def _sentence(start: Cut, end: Cut, unknown: Unknown) -> str:
    source = end.nodes[0].source
    place = f" ({source})" if source else ""
    return f"the map from '{start.nodes[0].name}' to '{end.nodes[0].name}'{place} {unknown.reason}"


def _classified(
    region: Region, start: Cut, end: Cut, rng: np.random.Generator
) -> list[Step] | Unknown:
    node = end.nodes[0]
    follows = node.operands[0] is start.nodes[0] and start.rows.channels == end.rows.channels
    if node.op == "reshape" and follows and start.rows.is_plain and end.rows.is_plain:
        return []
    if end.rows.slots < start.rows.slots:
        return Unknown("sums over the chosen experts")
    probe = row_probe(region, start, end)
    found = classify(probe, start.rows.channels, region.count, rng)
    if isinstance(found, Unknown):
        return found
    return [replace(step, source=node.source) for step in found]


def side_by_side(paths: list[tuple[Node, ...]]) -> list[tuple[Node, ...]]:
    """The places of several chains, one node an expert, as far as the chains run alike."""
    places = []
    for nodes in zip(*paths, strict=False):
        if len({(node.op, node.types) for node in nodes}) > 1:
            break
        places.append(_once(nodes))
    return places


def _down(region: Region, last: Cut, end: Cut, rng: np.random.Generator) -> Down:
    """The shared map from the experts' rows at ``last`` to y, checked on random rows and gates."""
    t, k = region.tokens, region.k
    try:
        plan = region.probe.plan(end.nodes, {*last.nodes, *region.forced})
    except OutOfReach:
        raise NotRecognised("the result needs more than the experts' rows and the gates") from None
    found = [p for node in plan if (p := product_of(region.probe, node)) is not None]
    if any(not np.array_equal(p.w, found[0].w) for p in found):
        raise NotRecognised("behind the experts lie several matrices: W_down is not shared")
    w = found[0].w if found else None
    if w is not None and w.shape[1] != last.rows.channels:
        raise NotRecognised(f"'{found[0].node.name}' does not read the experts' rows as they are")
    experts = region.spread(rng)

    def run(rows: Array, gates: Array) -> Array:  # rows: [chains, T, slots, F]
        given = region.force(experts, gates)
        given |= {node: last.rows.write(x) for node, x in zip(last.nodes, rows, strict=True)}
        return end.rows.read(region.probe.run(list(end.nodes), given)[0])[:, 0]  # [T, N]

    shape = (len(last.nodes), t, last.rows.slots, last.rows.channels)
    one = np.zeros((t, k))
    one[:, 0] = 1
    once = run(np.zeros(shape), np.zeros((t, k)))[0]
    weighted = run(np.zeros(shape), one)[0] - once
    for _ in range(2):
        rows, gates = rng.standard_normal(shape), random_gates(t, k, rng)
        chosen = np.broadcast_to(rows[0], (t, k, shape[3]))
        if len(last.nodes) > 1:
            chosen = rows[experts, np.arange(t)[:, None], 0]
        mapped = chosen if w is None else chosen @ w.astype(np.float64).T  # [T, k, N]
        if mapped.shape[2] != len(once):
            raise NotRecognised("the result has another width than the experts' rows")
        wanted = ((mapped + weighted) * gates[:, :, None]).sum(1) + once
        if not close(run(rows, gates), wanted, 1e-10):
            raise NotRecognised("the sum over the experts is not gate times one shared map")
    return Down(w, weighted if weighted.any() else None, once if once.any() else None)
