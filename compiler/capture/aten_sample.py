"""ATen's samples of images at places that are computed: `grid_sample`."""

from __future__ import annotations

from ..ir.graph import Node
from .aten_elementwise import arithmetic, compare
from .site import Site, accept, lowers

_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1


@lowers("aten.grid_sampler", "aten.grid_sampler_2d")
def grid_sample(
    site: Site, x: Node, grid: Node, mode: int, padding: int, align_corners: bool
) -> Node:
    """Elements of x [B, C, H, W] at places grid [B, h, w, 2] from -1 to 1: [B, C, h, w].

    The last axis of ``grid`` holds where along W, then along H.
    """
    accept(x.type.rank == 4, "grid_sample of volumes", "gather the neighbours, and weigh them")
    accept(mode in (_BILINEAR, _NEAREST), "grid_sample by cubic functions", "use mode='bilinear'")
    accept(padding in (_ZEROS, _BORDER), "grid_sample that reflects", "use padding_mode='border'")
    batch, _, height, width = x.type.shape
    count = grid.type.size // (2 * batch)
    grid = site.reshape(grid, (batch, 1, count, 2))
    across, down = (
        _place(site, site.slice(grid, 3, i, i + 1), size, padding, align_corners)
        for i, size in enumerate((width, height))
    )
    total: Node | None = None
    for row, by_row in _neighbours(site, down, height, mode):
        for column, by_column in _neighbours(site, across, width, mode):
            weight = site.make("mul", by_row, by_column)
            part = site.make("mul", _at(site, x, row, column), weight)
            total = part if total is None else site.make("add", total, part)
    assert total is not None, "there is one neighbour at least"
    return site.reshape(total, site.out.shape)


def _place(site: Site, place: Node, size: int, padding: int, align_corners: bool) -> Node:
    """The places [B, 1, N] along an axis of an image, in elements."""
    place = site.reshape(place, place.type.shape[:3])
    scale, shift = ((size - 1) / 2, (size - 1) / 2) if align_corners else (size / 2, (size - 1) / 2)
    place = arithmetic(site, "add", arithmetic(site, "mul", place, scale), shift)
    inside = {"low": 0, "high": size - 1}
    return site.make("clip", place, **inside) if padding == _BORDER else place


def _neighbours(site: Site, place: Node, size: int, mode: int) -> list[tuple[Node, Node]]:
    """The elements next to each place, and what they weigh: 0 where they lie outside."""
    if mode == _NEAREST:
        one = site.constant(1, place.type.dtype)
        return [_inside(site, site.make("round", place), one, size)]
    low = site.make("floor", place)
    high = arithmetic(site, "add", low, 1.0)
    part = site.make("sub", place, low)
    rest = arithmetic(site, "sub", 1.0, part)
    return [_inside(site, low, rest, size), _inside(site, high, part, size)]


def _inside(site: Site, element: Node, weight: Node, size: int) -> tuple[Node, Node]:
    is_inside = site.make(
        "logical_and",
        compare(site, "greater_equal", element, 0.0),
        compare(site, "less", element, float(size)),
    )
    zero = site.constant(0, weight.type.dtype)
    weight = site.make("where", is_inside, weight, zero)
    return site.cast(site.make("clip", element, low=0, high=size - 1), "i64"), weight


def _at(site: Site, x: Node, row: Node, column: Node) -> Node:
    """The elements [B, C, N] of an image at rows and columns [B, 1, N]."""
    batch, channels, height, width = x.type.shape
    place = site.make("add", site.make("mul", row, site.constant(width, "i64")), column)
    flat = site.reshape(x, (batch, channels, height * width))
    index = site.broadcast(place, (batch, channels, place.type.shape[2]))
    return site.make("gather", flat, index, axis=2)
