"""What makes the result of the experts' rows: one map that all share, weighed by the gates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .recognise_chain import Chain, Cut
from .recognise_rotation import close_by_row
from .recognise_routing import NotRecognised
from .recognise_substrate import products_between

Array = np.ndarray


@dataclass(frozen=True)
class Down:
    """The shared map behind the experts: w [N, F], or None where their rows are the result."""

    w: Array | None
    weighted: Array | None
    once: Array | None


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
    floor = np.abs(once) + np.abs(weighted)
    # A clamp, or a threshold, does nothing to values near 1.
    sizes = np.resize(10.0 ** np.array([4, -4, 2, -2, 0, 3, -3, 1, -1]), (t, 1))
    for trial, number in enumerate((*range(len(chain.views)), 0)):
        rows = rng.standard_normal(zeros.shape) * rng.permutation(sizes)
        gate = region.random_gates(rng)[:, :1] * rng.permutation(sizes)
        mapped = rows if w is None else rows @ w.astype(np.float64).T  # [T, N]
        if mapped.shape[1] != len(once):
            none = "no matrix that all experts share makes the result of their rows"
            raise NotRecognised(none, 6)
        made = run(number, rows, gate[:, 0])
        wanted = (mapped + weighted) * gate + once
        # The scales of a ternary W_down may be applied to its result.
        if not trial and w is not None and not close_by_row(made, wanted, 1e-10, floor):
            scale = _scale(mapped * gate, made - weighted * gate - once)
            w, mapped = w * scale[:, None], mapped * scale
            wanted = (mapped + weighted) * gate + once
        if not close_by_row(made, wanted, 1e-10, floor):
            raise NotRecognised("the sum over the experts is not gate times one shared map", 6)
    return Down(w, weighted if weighted.any() else None, once if once.any() else None)
