"""Why a layer that was rebuilt part by part is not the captured one: what its result hangs on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .recognise_layer import Layer
from .recognise_routing import Region
from .recognise_rows import layouts

Array = np.ndarray
NEAR = 1e-9


def why_it_differs(layer: Layer, rng: np.random.Generator) -> str:
    """What a Butterfly layer's result does not hang on, and this one's does; "" if not found."""
    if not any(_is_same_everywhere(layer, rows, rng) for rows in _equal_rows(layer.region, rng)):
        return "the same row, sent to the same experts, gives something else at another place"
    if layer.region.k > 1 and not _is_same_in_any_slot(layer, rng):
        return "an expert computes something else in another slot of its token"
    if layer.region.k > 1 and not _is_same_beside_others(layer, rng):
        return "what an expert computes hangs on which others its token is sent to"
    return ""


def _equal_rows(region: Region, rng: np.random.Generator) -> Iterator[Array]:
    """Activations in which all tokens have one row, for each way in which rows may lie."""
    for rows in layouts(region.h.type.shape, region.tokens, 1):
        row = rng.standard_normal((1, 1, rows.channels))
        yield rows.write(np.broadcast_to(row, (region.tokens, 1, rows.channels)))


def _is_same_everywhere(layer: Layer, h: Array, rng: np.random.Generator) -> bool:
    region = layer.region
    shape = (region.tokens, region.k)
    experts = np.broadcast_to(rng.permutation(region.count)[: region.k], shape)
    y = _result(layer, h, experts, np.broadcast_to(region.random_gates(rng)[:1], shape))
    return bool(np.abs(y - y[:1]).max() <= NEAR * np.abs(y).max())


def _is_same_in_any_slot(layer: Layer, rng: np.random.Generator) -> bool:
    region = layer.region
    h = rng.standard_normal(region.h.type.shape)
    experts, gates = region.spread(rng), region.random_gates(rng)
    y = _result(layer, h, experts, gates)
    turned = _result(layer, h, experts[:, ::-1], gates[:, ::-1])
    return bool(np.abs(y - turned).max() <= NEAR * np.abs(y).max())


def _is_same_beside_others(layer: Layer, rng: np.random.Generator) -> bool:
    region = layer.region
    h = rng.standard_normal(region.h.type.shape)
    experts, gates = region.spread(rng), region.random_gates(rng)
    gates[:, 1:] = 0
    others = np.concatenate([experts[:, :1], experts[:, 1:] + 1], 1) % region.count
    there = others[:, 1:] == others[:, :1]  # none is chosen twice, where there is another
    others[:, 1:] = np.where(there, (others[:, 1:] + 1) % region.count, others[:, 1:])
    y, now = (_result(layer, h, each, gates) for each in (experts, others))
    return bool(np.abs(y - now).max() <= NEAR * np.abs(y).max())


def _result(layer: Layer, h: Array, experts: Array, gates: Array) -> Array:
    """The rows [T, 1, d] of the captured layer where tokens are sent to given experts."""
    region = layer.region
    given = region.force(np.ascontiguousarray(experts), np.ascontiguousarray(gates))
    (y,) = region.probe.run([layer.y], {**given, region.h: h})
    return layer.y_rows.read(y)
