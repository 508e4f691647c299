"""The matrices that experts pass through: the ternary one that all share, and those behind it."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node
from .recognise_chain import Cut, Lanes
from .recognise_probe import ancestors
from .recognise_routing import NotRecognised, Region
from .recognise_ternary import Product, as_ternary, is_selection, levels, product_of

Array = np.ndarray


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


def is_shared_product(region: Region, cut: Cut) -> bool:
    """Whether each node of ``cut`` is a product with one and the same matrix, as of W_down."""
    products = [product_of(region.probe, node) for node in cut.nodes]
    first = products[0]
    if first is None or is_selection(first.w):
        return False
    return all(p is not None and np.array_equal(p.w, first.w) for p in products)


def _same(a: Array | None, b: Array | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))
