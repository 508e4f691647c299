"""The whole layer against the captured subgraph: compulsory, and the last word.

Layers that gate the expert's input, or mix angles by the gate, may pass every expert-wise test and
fail only here; so do experts that differ from place to place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Node
from .recognise_layer import Layer
from .recognise_probe import OutOfReach
from .recognise_rotation import Activation, Blocks
from .recognise_routing import Region, leaves_out_others
from .recognise_rows import layouts
from .recognise_ternary import as_ternary, product_of

Array = np.ndarray
LIMIT = 1e-9
# What float32's rounding of `w + (quantised - w)`, or of sqrt(2) in GELU, may change in a layer.
ROUNDING_LIMIT = 2e-6


@dataclass(frozen=True)
class Residual:
    """The largest relative difference from the captured layer, and on which trial it was seen.

    ``exact`` is the difference where the captured layer is given exactly ternary matrices in place
    of straight-through ones; what is ``rounded`` cannot be so replaced.
    """

    captured: float
    exact: float
    rounded: bool
    where: str

    @property
    def passes(self) -> bool:
        """Whether nothing differs but by float32's rounding of what was found to be rounded."""
        return self.captured <= ROUNDING_LIMIT and (self.rounded or self.exact <= LIMIT)


def residual(layer: Layer, new: Node, rng: np.random.Generator) -> Residual:
    """How far ``new`` is from the layer's y, over all trials."""
    y, probe = layer.y, layer.region.probe
    matrices = _exact_matrices(layer)
    steps = [*layer.rotation_in, *layer.middle]
    rounded = any(isinstance(step, Activation | Blocks) and step.rounded for step in steps)
    captured, exact, where = 0.0, 0.0, "no trial"
    for name, given in _trials(layer.region, rng):
        seen = _difference(*probe.run([new, y], given))
        strict = _difference(*probe.run([new, y], given | matrices)) if matrices else seen
        where = name if max(seen, strict) >= max(captured, exact) else where
        captured, exact = max(captured, seen), max(exact, strict)
    return Residual(captured, exact, rounded, where)


def _difference(now: Array, was: Array) -> float:
    """The largest difference, relative to the largest element; infinite where one is not finite."""
    if not (np.isfinite(was).all() and np.isfinite(now).all()):
        return float("inf")
    return float(np.abs(was - now).max()) / max(float(np.abs(was).max()), 1e-300)


def _exact_matrices(layer: Layer) -> dict[Node, Array]:
    """The exactly ternary value of each constant that is nearly so."""
    region = layer.region
    exact: dict[Node, Array] = {}
    for node in region.probe.plan((layer.y,), {region.h, *region.forced}):
        product = product_of(region.probe, node)
        ternary = None if product is None else as_ternary(product.w)
        if product is not None and ternary is not None and ternary.drift:
            exact[product.constant] = product.held(ternary.value)
    return exact


def routes_by_order(region: Region, rng: np.random.Generator) -> bool:
    """Whether permuted tokens get other experts or gates, as where an expert's places are few."""
    if not routes_by_h(region):
        return False
    x = rng.standard_normal(region.h.type.shape)
    before = _routing(region, x)
    for rows in layouts(region.h.type.shape, region.tokens, 1):
        orders = [rng.permutation(region.tokens) for _ in range(3)]
        if all(
            np.allclose(_routing(region, rows.write(rows.read(x)[order])), before[order], 1e-9)
            for order in orders
        ):
            return False
    return True


def _routing(region: Region, h: Array) -> Array:
    """Expert numbers and gates of each token, [T, 2 k], where nothing is forced."""
    numbers, *values = region.probe.run([region.experts, *region.gates.heads], {region.h: h})
    experts = numbers.reshape(region.tokens, region.k)
    return np.concatenate([experts, region.gates.read(values, experts)], axis=1)


def routes_by_h(region: Region) -> bool:
    """Whether the router reads the experts' own activation and nothing else."""
    try:
        region.probe.plan((region.experts, *region.gates.heads), {region.h})
    except OutOfReach:
        return False
    return True


def _trials(region: Region, rng: np.random.Generator) -> Iterator[tuple[str, dict[Node, Any]]]:
    """Named sets of given values: natural routing at several scales, then forced routing."""
    shape, t, k = region.h.type.shape, region.tokens, region.k
    natural = routes_by_h(region)
    # Scores of experts that are not chosen must count for nothing, which natural routing shows.
    is_open = region.gates.is_dense and not natural and not leaves_out_others(region, rng)

    def forced(numbers: Array) -> dict[Node, Any]:
        others = rng.uniform(0.3, 1.5, (t, region.count)) if is_open else None
        return region.force(numbers, region.random_gates(rng), others)

    if natural:
        yield "natural routing", {region.h: rng.standard_normal(shape)}
        yield "natural routing of inputs times 5", {region.h: 5 * rng.standard_normal(shape)}
        yield "natural routing of small inputs", {region.h: 0.05 * rng.standard_normal(shape)}
    for first in range(0, region.count, max(1, t * k)):
        numbers = (first + np.arange(t * k).reshape(t, k)) % region.count
        yield "every expert forced", {**forced(numbers), region.h: rng.standard_normal(shape)}
    only = np.broadcast_to(rng.permutation(region.count)[:k], (t, k))
    yield "all other experts idle", {**forced(only), region.h: rng.standard_normal(shape)}
