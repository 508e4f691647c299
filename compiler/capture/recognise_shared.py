"""The matrices that all experts share: the ternary one, and what makes the result of their rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node
from .recognise_chain import Chain, Cut, Lanes
from .recognise_probe import ancestors
from .recognise_rotation import close
from .recognise_routing import NotRecognised, Region
from .recognise_ternary import Product, as_ternary, is_selection, levels, product_of

Array = np.ndarray


@dataclass(frozen=True)
class Down:
    """The shared map behind the experts: w [N, F], or None where their rows are the result."""

    w: Array | None
    weighted: Array | None
    once: Array | None


def find_substrate(region: Region, y: Node) -> list[Product]:
    """The ternary products through which all experts pass: one, or one for each lane of a loop.

    Raises NotRecognised where there is none, or where the experts' matrices differ.
    """
    products = products_between(region, (region.h,), y)
    if not products:
        nothing = "no product with a constant matrix between the routing and its result"
        raise NotRecognised(nothing, 1)
    ternary = [p for p in products if as_ternary(p.w) is not None and not is_selection(p.w)]
    if not ternary:
        found = ", ".join(dict.fromkeys(f"'{p.node.name}': {levels(p.w)}" for p in products[:4]))
        raise NotRecognised(f"no matrix of the experts is ternary ({found})", 2)
    # W_down may be ternary too, so the substrate is the first one on its path.
    nodes = {p.node for p in ternary}
    heads = [p for p in ternary if len(nodes & ancestors(p.node)) == 1]
    if any(not np.array_equal(p.w, heads[0].w) for p in heads):
        raise NotRecognised("the experts do not share their ternary matrix", 5)
    if any(not _same(p.bias, heads[0].bias) for p in heads):
        raise NotRecognised("the experts do not share the bias behind the ternary product", 5)
    return heads


def products_between(region: Region, start: Lanes, end: Node) -> list[Product]:
    """The products with constant matrices between ``start`` and ``end``, in order."""
    live = set(start)
    found = []
    for node in region.probe.plan((end,), {*start, *region.forced}):
        if not live.isdisjoint(node.operands):
            live.add(node)
            product = product_of(region.probe, node) if node.type.is_float else None
            if product is not None and product.x in live:
                found.append(product)
    return found


def _same(a: Array | None, b: Array | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))


def _scale(x: Array, y: Array) -> Array:
    """The factor of each channel by which ``x`` [T, n] may become ``y``, where it is largest."""
    largest = np.abs(x).argmax(0)[None]
    x, y = (np.take_along_axis(value, largest, 0)[0] for value in (x, y))
    return np.asarray(np.divide(y, x, out=np.ones_like(x), where=x != 0))


def find_down(chain: Chain, last: Cut, rng: np.random.Generator) -> Down:
    """The shared map from the experts' rows at ``last`` to y, checked on random rows and gates."""
    region = chain.region
    t, k = region.tokens, region.k
    found = products_between(region, last.nodes, chain.end.nodes[0])
    if any(not np.array_equal(p.w, found[0].w) for p in found):
        raise NotRecognised("behind the experts lie several matrices: W_down is not shared", 6)
    w = found[0].w if found else None
    if w is not None and w.shape[1] != last.channels:
        unread = f"'{found[0].node.name}' does not read the experts' rows as they are"
        raise NotRecognised(unread, 6)

    def run(number: int, rows: Array, gate: Array) -> Array:  # rows: [T, F], gate: [T] -> [T, N]
        view = chain.views[number]
        gates = np.where(np.arange(k) == view.lit[:, None], gate[:, None], 0.0)
        return chain.run(number, last, chain.end, rows, region.force(view.experts, gates))

    zeros = np.zeros((t, last.channels))
    once = run(0, zeros, np.zeros(t))[0]
    weighted = run(0, zeros, np.ones(t))[0] - once
    for trial, number in enumerate((*range(len(chain.views)), 0)):
        rows, gate = rng.standard_normal(zeros.shape), region.random_gates(rng)[:, :1]
        mapped = rows if w is None else rows @ w.astype(np.float64).T  # [T, N]
        if mapped.shape[1] != len(once):
            none = "no matrix that all experts share makes the result of their rows"
            raise NotRecognised(none, 6)
        made = run(number, rows, gate[:, 0])
        # The scales of a ternary W_down may be applied to its result.
        if not trial and w is not None and not close(made, (mapped + weighted) * gate + once):
            scale = _scale(mapped * gate, made - weighted * gate - once)
            w, mapped = w * scale[:, None], mapped * scale
        if not close(made, (mapped + weighted) * gate + once, 1e-10):
            raise NotRecognised("the sum over the experts is not gate times one shared map", 6)
    return Down(w, weighted if weighted.any() else None, once if once.any() else None)
