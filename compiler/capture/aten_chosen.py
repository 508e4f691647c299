"""ATen calls that choose rows by a mask that hangs on data: every row stays, marked by it."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node
from .aten_elementwise import truth
from .site import Site, lowers


def coordinates(site: Site, mask: Node) -> tuple[Node, ...]:
    """For each axis of ``mask`` the place [N] of every element, true or not: marked by the mask."""
    places = np.unravel_index(np.arange(mask.type.size), mask.type.shape)
    # A name of its own for each axis: equal constants of one name are one node.
    return tuple(
        site.choose(site.constant(place, "i64", f"{site.name}.axis{axis}"), 0, mask)
        for axis, place in enumerate(places)
    )


@lowers("aten.nonzero", "aten.argwhere")
def nonzero(site: Site, x: Node) -> Node:
    mask = truth(site, x)
    places = np.unravel_index(np.arange(mask.type.size), mask.type.shape)
    return site.choose(site.constant(np.stack(places, 1), "i64"), 0, mask)


@lowers("aten.nonzero_numpy", "aten.where.default")
def nonzero_by_axis(site: Site, x: Node) -> tuple[Node, ...]:
    return coordinates(site, truth(site, x))


@lowers("aten.masked_select")
def masked_select(site: Site, x: Node, mask: Node) -> Node:
    shape = np.broadcast_shapes(x.type.shape, mask.type.shape)
    x, mask = site.broadcast(x, shape), site.broadcast(mask, shape)
    flat = site.reshape(x, (x.type.size,))
    every = site.constant(np.arange(x.type.size), "i64", f"{site.name}.places")
    return site.make("take", flat, site.choose(every, 0, mask), axis=0)
