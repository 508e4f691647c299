"""Dense weights as codes of a few balanced-ternary digits: as few as keep to the error budget.

w = scale * (d0 + 3 d1 + 9 d2 + ..), digits of -1, 0 and 1: one digit is a ternary weight, five are
8 bits. Each is a plane, a ternary matrix of its own, so fewer digits are less flash and less work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..compiler.ir import Graph, Node
from ..kernels.integer_numbers import LIMITS, MOST_PLANES, largest_of
from .quantize_codes import RANKED

Array = np.ndarray
# Signal to noise, in dB, that the weights of a layer keep: an error of 1 % of them.
WEIGHT_SNR = 40.0
# Shares of a row's largest weight at which its codes may be clipped.
SHARES = np.linspace(0.3, 1.0, 15)
DENSE = frozenset({"linear", "integer_linear", "quantized_linear"})
# Products, and norms: what something is chosen by is not sought behind them.
_ENDS = DENSE | {
    "attention",
    "combine",
    "integer_attention",
    "integer_combine",
    "integer_layer_norm",
    "layer_norm",
    "matmul",
    "quantized_combine",
    "quantized_ternary",
    "ternary_dot",
    "ternary_matmul",
}


@dataclass(frozen=True)
class Weights:
    """``rows`` [N, K] of ``planes`` digits, each of its own ``scale`` [N]; ``snr`` in dB."""

    rows: Array
    scale: Array
    planes: int
    snr: float


def coded(weights: Array, added: Array, budget: float) -> Weights:
    """``weights`` [N, K] in the fewest digits whose signal to noise is ``budget`` dB, or in five.

    ``added`` [N] are biases in codes of x. A bias far beyond the sums of products would not fit 32
    bits, and take bits from the sums of all rows: such a row gets coarser weights, whose roundings
    are nothing beside its bias, and count for nothing in the budget.
    """
    for planes in range(1, MOST_PLANES + 1):
        found = _coded(weights, added, planes)
        if found.snr >= budget:
            break
    return found


def _coded(weights: Array, added: Array, planes: int) -> Weights:
    largest = largest_of(planes)
    own = _scales(weights, largest)
    snr = _snr(weights, _rows(weights, own, largest) * own[:, None])
    levels = np.abs(weights).sum(1) / own
    most = max(4 * LIMITS["i8"] * float(levels.max(initial=0)), 2.0**15)
    scale = np.maximum(own, np.abs(added) / min(most, 2.0**30))
    return Weights(_rows(weights, scale, largest), scale, planes, snr)


def _rows(weights: Array, scale: Array, largest: int) -> Array:
    return np.clip(np.rint(weights / scale[:, None]), -largest, largest)


def _scales(weights: Array, largest: int) -> Array:
    """What a code of each row stands for, for the least square error; 1 where a row is 0."""
    ends = np.abs(weights).max(1, initial=0) / largest
    ends = np.where(ends > 0, ends, 1)
    errors = [
        np.square(_rows(weights, ends * share, largest) * (ends * share)[:, None] - weights).sum(1)
        for share in SHARES
    ]
    return ends * SHARES[np.argmin(errors, 0)]


def _snr(weights: Array, found: Array) -> float:
    signal, noise = np.square(weights).sum(), np.square(found - weights).sum()
    return math.inf if noise <= 1e-12 * signal else 10 * math.log10(signal / noise)


def deciding(graph: Graph) -> frozenset[Node]:
    """The linear maps whose sums are ranked: routers. A choice has no budget of errors.

    ``graph`` is of floats, or of integers.
    """
    found: set[Node] = set()
    seen: set[Node] = set()
    stack = [node.operands[0] for node in graph.nodes if node.op in RANKED]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op in DENSE:
            found.add(node)
        if node.op not in _ENDS:
            stack += node.operands
    return frozenset(found)
