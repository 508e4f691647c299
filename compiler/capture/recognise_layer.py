"""What a Butterfly layer is made of, read off its region part by part.

    y = sum over slots i of gate_i * (W_down . middle . W_hat . rotation_in (x) + bias) + bias

Each part is refused alone, with a reason; nothing is taken over that was not probed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..ir.graph import Node
from .recognise_chain import (
    EXPERT,
    SLOT,
    TOKEN,
    Cut,
    cuts,
    is_before_routing,
    needs_gates,
    path,
    row_probe,
)
from .recognise_probe import ancestors
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
    end = Cut((y,), y_rows, TOKEN)
    lanes, products = find_substrate(region, end, rng)
    product = products[0]
    behind = _places_behind(region, tuple(p.node for p in products), end, lanes, rng)
    read_rows = behind[0].rows.with_channels(product.x.type.shape)
    if read_rows is None:
        raise NotRecognised(f"'{product.node.name}' multiplies along another axis")
    nodes = _once(p.x for p in products)
    read = Cut(nodes, read_rows, behind[0].kind if len(nodes) == len(products) else TOKEN)
    substrate = as_ternary(product.w)
    assert substrate is not None, "find_substrate gives ternary products only"
    x, rotation_in = _in_front(region, read, rng)
    bias, middle, last = _behind(region, behind, rng)
    bias = _sum(product.bias, bias)
    down = _down(region, last, end, rng)
    return Layer(region, y, y_rows, x, rotation_in, product, substrate, bias, middle, down)


def _once(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes of a cut: one where all are the same."""
    each = tuple(nodes)
    return each[:1] if len(set(each)) == 1 else each


def _sum(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a + b


def find_substrate(region: Region, end: Cut, rng: np.random.Generator) -> tuple[str, list[Product]]:
    """The ternary product through which all experts pass, or one for each slot or expert.

    Raises NotRecognised where there is none, or where the experts' matrices differ.
    """
    y = end.nodes[0]
    plan = region.probe.plan((y,), {region.h, *region.forced})
    live = {region.h}
    for node in plan:
        if not live.isdisjoint(node.operands):
            live.add(node)
    products = [p for node in plan if (p := product_of(region.probe, node)) and p.x in live]
    if not products:
        raise NotRecognised("no product with a constant matrix between the routing and its result")
    ternary = [p for p in products if as_ternary(p.w) is not None and not is_selection(p.w)]
    if not ternary:
        found = ", ".join(dict.fromkeys(f"'{p.node.name}': {levels(p.w)}" for p in products[:4]))
        raise NotRecognised(f"no matrix of the experts is ternary ({found})")
    # W_down may be ternary too, so the substrate is the first one on its path.
    nodes = {p.node for p in ternary}
    heads = [p for p in ternary if len(nodes & ancestors(p.node)) == 1]
    if any(not np.array_equal(p.w, heads[0].w) for p in heads):
        raise NotRecognised("the experts do not share their ternary matrix")
    if any(not _same(p.bias, heads[0].bias) for p in heads):
        raise NotRecognised("the experts do not share the bias behind the ternary product")
    if len(heads) == 1:
        return SLOT, heads
    lanes, order = _lanes(region, [p.node for p in heads], end, rng)
    return lanes, [heads[number] for number in order]


def _same(a: Array | None, b: Array | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))


def _lanes(
    region: Region, heads: list[Node], end: Cut, rng: np.random.Generator
) -> tuple[str, list[int]]:
    """Whether a loop's products belong to slots or to experts, and the number of each one's.

    Each token shows one slot. The product it passes through is read off bit by bit: bit b by
    changing all products whose number has it.
    """
    t, k = region.tokens, region.k
    by_slot: dict[int, set[int]] = {slot: set() for slot in range(k)}
    by_expert: dict[int, set[int]] = {expert: set() for expert in range(region.count)}
    rounds = 0
    while rounds < 2 or (rounds < 200 and not all(by_expert.values())):
        rounds += 1
        experts, lit = region.spread(rng), rng.integers(k, size=t)
        gates = np.where(np.arange(k) == lit[:, None], 1.0, 0.0)
        value = {node: rng.standard_normal(node.type.shape) for node in heads}
        forced = region.force(experts, gates)
        base = end.read(region.probe.run(end.nodes, forced | value))
        number = np.zeros(t, np.int64)
        for bit in range(len(heads).bit_length()):
            fresh = {
                node: rng.standard_normal(node.type.shape)
                for i, node in enumerate(heads, start=1)
                if i >> bit & 1
            }
            seen = end.read(region.probe.run(end.nodes, forced | value | fresh))
            number += (seen != base).any((1, 2)).astype(np.int64) << bit
        for token in range(t):
            by_slot[int(lit[token])].add(int(number[token]))
            by_expert[int(experts[token, lit[token]])].add(int(number[token]))
    for kind, votes in ((SLOT, by_slot), (EXPERT, by_expert)):
        order = [min(numbers) - 1 for numbers in votes.values() if len(numbers) == 1]
        if len(order) == len(votes) and sorted(order) == list(range(len(heads))):
            return kind, order
    raise NotRecognised(
        f"{len(heads)} ternary products belong neither to the {k} slots nor to the "
        f"{region.count} experts, one each"
    )


def _in_front(region: Region, read: Cut, rng: np.random.Generator) -> tuple[Cut, list[Step]]:
    """The cut x from which rotation starts, and the steps from there to the product.

    Walked backwards, so that what lies in front of the rotation (a norm) stays as it is.
    """
    paths = [path(region, region.h, node)[::-1] for node in read.nodes]
    steps: list[Step] = []
    current = read
    for start in cuts(region, side_by_side(paths)[1:], read, read.kind, rng):
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
    if not is_before_routing(region, current):
        raise NotRecognised(
            f"the experts do not start from one activation (reached '{current.nodes[0].name}')"
        )
    return current, simplified(steps, current.channels)


def _places_behind(
    region: Region, made: tuple[Node, ...], end: Cut, lanes: str, rng: np.random.Generator
) -> list[Cut]:
    """The cuts from the ternary product to the result, both with them."""
    places = side_by_side([path(region, node, end.nodes[0], made) for node in made])
    found = cuts(region, places[::-1], end, lanes, rng)[::-1]
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
        merged = cut.kind == TOKEN != current.kind
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
    steps = simplified(steps, places[0].channels)
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
    follows = (node.operands[0],) == start.nodes and start.kind == end.kind
    plain = start.rows.is_plain and end.rows.is_plain and start.channels == end.channels
    if node.op == "reshape" and follows and plain:
        return []
    found = classify(row_probe(region, start, end), start.channels, region.count, rng)
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
    plan = region.probe.plan(end.nodes, {*last.nodes, *region.forced})
    found = [p for node in plan if (p := product_of(region.probe, node)) is not None]
    if any(not np.array_equal(p.w, found[0].w) for p in found):
        raise NotRecognised("behind the experts lie several matrices: W_down is not shared")
    w = found[0].w if found else None
    if w is not None and w.shape[1] != last.channels:
        raise NotRecognised(f"'{found[0].node.name}' does not read the experts' rows as they are")
    experts = region.spread(rng)

    def run(rows: Array, gates: Array) -> Array:  # rows: [T, S, F]
        given = region.force(experts, gates) | last.write(rows)
        return end.read(region.probe.run(end.nodes, given))[:, 0]  # [T, N]

    zeros = np.zeros((t, last.slots, last.channels))
    one = np.zeros((t, k))
    one[:, 0] = 1
    once = run(zeros, np.zeros((t, k)))[0]
    weighted = run(zeros, one)[0] - once
    for _ in range(2):
        rows, gates = rng.standard_normal(zeros.shape), random_gates(t, k, rng)
        # chosen: [T, k, F], the row of each chosen expert
        if last.kind == EXPERT:
            chosen = np.take_along_axis(rows, experts[:, :, None], 1)
        else:
            chosen = np.broadcast_to(rows, (t, k, last.channels))
        mapped = chosen if w is None else chosen @ w.astype(np.float64).T  # [T, k, N]
        if mapped.shape[2] != len(once):
            raise NotRecognised("no matrix that all experts share makes the result of their rows")
        wanted = ((mapped + weighted) * gates[:, :, None]).sum(1) + once
        if not close(run(rows, gates), wanted, 1e-10):
            raise NotRecognised("the sum over the experts is not gate times one shared map")
    return Down(w, weighted if weighted.any() else None, once if once.any() else None)
