"""Which points are measured, in which order, and what is wanted of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .problem import Routing, Shape

OUTPUTS = {256: 1024, 1024: 4096, 4096: 14336}
REHEARSED_OUTPUTS = {16: 32}
# Of the fastest eager Butterfly layer.
EAGER = 5.0
LARGEST = Shape(4096, 14336, 8, 65536)


@dataclass(frozen=True)
class Point:
    """One shape and routing; ``compiled``: against what torch.compile makes, for which it takes
    its time.
    """

    shape: Shape
    routing: Routing = "uniform"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.shape} {self.routing}" + (" compiled" if self.compiled else "")


def wanted(shape: Shape) -> float:
    """How many times as fast as the best standard mixture a layer has to be."""
    many = shape.experts >= 64
    if shape.channels < 1024:
        return 1.5 if shape.tokens <= 32 else 1.0
    if shape.tokens <= 1:
        return 2.5
    if shape.tokens <= 32:
        return 20.0 if many else 6.0
    if shape.tokens <= 4096:
        return 1.6 if many else 1.2
    return 1.2


def _shapes(widths: Iterable[int], experts: Iterable[int], tokens: Iterable[int]) -> list[Shape]:
    return [Shape(d, OUTPUTS[d], e, t) for d in widths for e in experts for t in tokens]


def points() -> list[Point]:
    """All points, those with targets first, the largest weights last."""
    few, many = (1, 32, 4096), (1, 32, 4096, 65536)
    first = _shapes([1024], [8, 64], many) + _shapes([4096], [8, 64], few)
    first += [*_shapes([256], [8, 64], [1, 32]), LARGEST]
    then = _shapes([256], [8, 64], [4096, 65536]) + _shapes([256, 1024], [256], many)
    skewed = _shapes([1024], [8, 64], [32, 4096]) + _shapes([4096], [64], [32])
    compiled = _shapes([1024, 256], [8], [1, 32]) + _shapes([1024], [8], [4096])
    return [
        *map(Point, first),
        *(Point(shape, "zipf") for shape in skewed),
        *(Point(shape, compiled=True) for shape in compiled),
        *map(Point, then),
        *map(Point, _shapes([4096], [256], few)),
    ]


def rehearsed_points() -> list[Point]:
    """One of each kind, tiny."""
    d, f = next(iter(REHEARSED_OUTPUTS.items()))
    few, many = Shape(d, f, 4, 3), Shape(d, f, 4, 65)
    return [Point(few, "zipf"), Point(many), Point(few, compiled=True)]


def tuned_shapes(asked: Iterable[Point]) -> list[Shape]:
    """The shapes to tune for: each width and number of tokens once, of as many experts as first."""
    seen: dict[tuple[int, int], Shape] = {}
    for point in asked:
        seen.setdefault((point.shape.channels, point.shape.tokens), point.shape)
    return list(seen.values())
