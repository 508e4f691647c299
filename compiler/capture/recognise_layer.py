"""What a Butterfly layer is made of, read off its region part by part.

    y = sum over slots i of gate_i * (W_down . middle . W_hat . rotation_in (x) + bias) + bias

Each part is refused alone, with a reason; nothing is taken over that was not probed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from ..ir.graph import Node
from .recognise_chain import (
    Chain,
    Cut,
    Lanes,
    Root,
    is_before_routing,
    learnt,
    path,
    reads_gates,
    side_by_side,
    views,
)
from .recognise_dense import as_dense, in_pairs
from .recognise_down import Down, find_down
from .recognise_rotation import (
    Activation,
    Bias,
    Blocks,
    Scale,
    Step,
    Unknown,
    classify,
    close,
    simplified,
)
from .recognise_routing import NotRecognised, Region
from .recognise_rows import Rows, layouts
from .recognise_substrate import find_substrate, is_shared_product, products_between
from .recognise_ternary import Product, Ternary, as_ternary

Array = np.ndarray


@dataclass(frozen=True)
class Layer:
    """A recognised layer. The experts read the rows ``x_rows`` of the node ``x``."""

    region: Region
    y: Node
    y_rows: Rows
    x: Node
    x_rows: Rows
    rotation_in: list[Step]
    product: Product
    substrate: Ternary
    bias: Array | None
    middle: list[Step]
    down: Down


def parse(region: Region, y: Node, y_rows: Rows, rng: np.random.Generator) -> Layer:
    """The parts of the mixture whose result is ``y``. Raises NotRecognised."""
    products = find_substrate(region, y)
    product = products[0]
    chain, fronts, backs = _chain(region, products, y, y_rows, rng)
    made = tuple(p.node for p in products)
    behind = chain.cuts(backs[::-1], chain.end)[::-1]
    if not behind or behind[0].nodes != tuple(dict.fromkeys(made)):
        raise NotRecognised(f"the rows of the ternary product '{made[0].name}' mix", 4)
    read = chain.cut_at(tuple(p.x for p in products), behind[0])
    found = (0, 0) if read is None else (behind[0].channels, read.channels)
    if read is not None and product.w.shape == (found[0] * region.count, found[1]):
        each = product.w.reshape(region.count, -1)  # one matrix under the other
        if (each != each[0]).any():
            raise NotRecognised("the experts do not share their ternary matrix", 5)
    if read is None or found != product.w.shape:
        raise NotRecognised(f"'{product.node.name}' multiplies along another axis", 4)
    substrate = as_ternary(product.w)
    assert substrate is not None, "find_substrate gives ternary products only"
    x, x_rows, rotation_in = _in_front(chain, read, fronts, rng)
    steps, last = _behind(chain, behind, rng)
    if product.bias is not None:
        steps = [Bias(product.bias), *steps]
    gain_in, rotation_in = _without_scale(rotation_in, region.count)
    rotation_in = simplified(rotation_in, x_rows.channels)
    gain_out, bias, middle = _at_product(steps, region.count)
    substrate = substrate.times(gain_in * gain_out)
    _check_order(middle)
    middle = simplified(middle, behind[0].channels)
    down = find_down(chain, last, rng)
    return Layer(region, y, y_rows, x, x_rows, rotation_in, product, substrate, bias, middle, down)


def _chain(
    region: Region, products: list[Product], y: Node, y_rows: Rows, rng: np.random.Generator
) -> tuple[Chain, list[Lanes], list[Lanes]]:
    """The chain through the products, with its places in front of them and behind, in order."""
    made = tuple(p.node for p in products)
    reads = tuple(p.x for p in products)
    if reads_gates(region, reads, ()) and not _only_whether_any(region, reads, rng):
        raise NotRecognised("the gates enter in front of the ternary product", 4)
    backs = side_by_side([path(region, node, y, made) for node in made])
    y_index = y_rows.read(np.arange(y.type.size).reshape(y.type.shape))[:, 0]
    for root in _roots(region, reads):
        found = views(region, root, made, (y,), y_index, rng)
        if found is None:
            continue
        for view in found:
            if (view.lane < 0).any():
                raise NotRecognised(
                    f"the result of a token needs none or several of {len(made)} ternary products",
                    4,
                )
        fronts = side_by_side([path(region, root.node, read) for read in reads])
        fronts = [*fronts[:-1], reads]
        nodes = list(dict.fromkeys(node for place in (*fronts, *backs) for node in place))
        known = tuple(learnt(region, view, root, nodes, rng) for view in found)
        end = Cut((y,), (y_index,) * len(known))
        return Chain(region, known, end), fronts, backs
    raise NotRecognised(f"the rows of the ternary product '{made[0].name}' mix", 4)


def _only_whether_any(region: Region, reads: Lanes, rng: np.random.Generator) -> bool:
    """Whether all that matters to ``reads`` is that a gate is not zero.

    A row whose gate is zero counts for nothing. Where a gate must be above zero, ``region`` speaks
    of no other.
    """
    given = {region.h: rng.standard_normal(region.h.type.shape)}
    experts = region.spread(rng)
    first, second = (
        region.probe.run(reads, given | region.force(experts, region.random_gates(rng)))
        for _ in range(2)
    )
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _roots(region: Region, reads: Sequence[Node]) -> Iterator[Root]:
    """The activations in front of the routing that all ``reads`` follow, each as rows of tokens."""
    shared = path(region, region.h, reads[0])
    for node in reads[1:]:
        others = set(path(region, region.h, node))
        shared = tuple(n for n in shared if n in others)
    for node in shared:
        if node.type.is_float and is_before_routing(region, node):
            for rows in layouts(node.type.shape, region.tokens, 1):
                yield Root(node, rows)


def _without_scale(steps: list[Step], experts: int) -> tuple[Array, list[Step]]:
    """The one factor by which linear ``steps`` scale all channels, and the steps without it."""
    gain = np.asarray(1.0)
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Scale) and close(step.values, step.values[:1]):
            gain = gain * step.values[0]
        else:
            kept.append(_plain(step, experts))
    return gain, kept


def _at_product(steps: list[Step], experts: int) -> tuple[Array, Array | None, list[Step]]:
    """The factor of the rows and the bias that ``steps`` start with, and the steps that follow."""
    gain = np.asarray(1.0)
    bias: Array | None = None
    rest = list(steps)
    while rest and isinstance(rest[0], Scale | Bias):
        step = rest.pop(0)
        if isinstance(step, Bias):
            bias = step.values if bias is None else bias + step.values
        else:
            assert isinstance(step, Scale)
            gain, bias = gain * step.values, None if bias is None else bias * step.values
    plain = [_plain(step, experts) for step in rest]
    if bias is not None:
        return gain, bias, plain
    linear = len(list(takewhile(lambda step: not isinstance(step, Bias | Activation), rest)))
    factor, first = _without_scale(rest[:linear], experts)
    return gain * factor, None, first + plain[linear:]


def _plain(step: Step, experts: int) -> Step:
    """A factor of each channel as blocks, and all else as it is."""
    return step.as_blocks(experts) if isinstance(step, Scale) else step


def _in_front(
    chain: Chain, read: Cut, fronts: list[Lanes], rng: np.random.Generator
) -> tuple[Node, Rows, list[Step]]:
    """The node x from which rotation starts, its rows, and the steps from there to the product.

    Walked backwards, so that what lies in front of the rotation (a norm) stays as it is.
    """
    steps: list[Step] = []
    current = read
    for start in chain.cuts(fronts[-2::-1], read):
        found = _classified(chain, start, current, rng)
        bad = found if isinstance(found, Unknown) else _unfit(found, "in front")
        if isinstance(bad, Unknown):
            if _rows(chain, current) is not None:
                break
            raise NotRecognised(_sentence(start, current, bad), 5)
        assert not isinstance(found, Unknown)
        steps = [*found, *steps]
        current = start
    rows = _rows(chain, current)
    if rows is None:
        name = current.nodes[0].name
        raise NotRecognised(f"the experts do not start from one activation (reached '{name}')", 5)
    return current.nodes[0], rows, simplified(steps, current.channels)


def _rows(chain: Chain, cut: Cut) -> Rows | None:
    """How the one node of ``cut`` holds a row for each token, where the model may repeat them.

    None where the node depends on the routing, or has not the same row for all experts.
    """
    if not chain.is_before_routing(cut):
        return None
    node = cut.nodes[0]
    number = np.arange(node.type.size).reshape(node.type.shape)
    for copies in dict.fromkeys((1, cut.copies)):
        for rows in layouts(node.type.shape, chain.region.tokens, copies):
            index = rows.read(number)  # [T, copies, n]
            if rows.channels == cut.channels and all(
                (index == shown[:, None]).all(2).any(1).all() for shown in cut.index
            ):
                value = rows.read(chain.views[0].base[node])
                if (value == value[:, :1]).all():
                    return rows
    return None


def _behind(chain: Chain, places: list[Cut], rng: np.random.Generator) -> tuple[list[Step], Cut]:
    """The steps behind the product, and the cut at which W_down or the gates begin."""
    steps: list[Step] = []
    current = places[0]
    last = 0, current
    for cut in places[1:]:
        if reads_gates(chain.region, cut.nodes, current.nodes):
            break
        if is_shared_product(chain.region, cut):
            break
        found = _classified(chain, current, cut, rng)
        if isinstance(found, Unknown):
            if _has_rotation_or_activation(steps) and not found.part:
                break  # perhaps W_down in another form; `find_down` will tell
            raise NotRecognised(_sentence(current, cut, found), 5)
        steps = [*steps, *found]
        current = cut
        # A bias that nothing follows is one of the result.
        if not steps or not isinstance(steps[-1], Bias) or not _has_rotation_or_activation(steps):
            last = len(steps), cut
    # Behind W_down it would be the product of both, which float32 rounds.
    if products_between(chain.region, current.nodes, chain.end.nodes[0]):
        last = len(steps), current
    return steps[: last[0]], last[1]


def _check_order(steps: list[Step]) -> None:
    """Raises NotRecognised unless one activation stands in front of the rotation or behind it."""
    first = next((step for step in steps if isinstance(step, Blocks)), None)
    if first is not None and _scales(first.blocks):
        raise NotRecognised("each expert scales its rows by factors of its own", 5)
    kinds = [type(step) for step in steps if isinstance(step, Activation | Blocks)]
    if kinds.count(Activation) > 1:
        raise NotRecognised("an expert has several activations", 5)
    if Activation in kinds and Activation not in (kinds[0], kinds[-1]):
        raise NotRecognised("the activation stands between two layers of the rotation", 5)


def _scales(blocks: Array) -> bool:
    """Whether blocks [E, groups, b, b] only scale channels, not alike for all experts."""
    diagonal = np.eye(blocks.shape[2]) * blocks
    return bool((diagonal == blocks).all() and (np.abs(blocks[0]) != np.abs(blocks[1:])).any())


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
    chain: Chain, start: Cut, end: Cut, rng: np.random.Generator
) -> list[Step] | Unknown:
    node = end.nodes[0]
    if node.op == "reshape" and (node.operands[0],) == start.nodes and _same_rows(start, end):
        return []
    count = chain.region.count
    probe = chain.row_probe(start, end)
    found = classify(probe, start.channels, count, rng)
    if isinstance(found, Unknown):
        square = found.linear and start.channels == end.channels
        layers = as_dense(probe, start.channels, count) if square else None
        if layers is None or isinstance(layers, Unknown):
            return layers or found
        found = layers
    return [replace(step, source=node.source) for step in in_pairs(found)]


def _same_rows(start: Cut, end: Cut) -> bool:
    """Whether both cuts find the same rows at the same places."""
    return all(np.array_equal(a, b) for a, b in zip(start.index, end.index, strict=True))
