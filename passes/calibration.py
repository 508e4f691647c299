"""What a graph's values are on sample inputs, and the scales of codes that lose least of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..compiler.errors import BadInput, Unsupported
from ..compiler.ir import Graph, Node
from ..compiler.ir.interpret import interpret
from ..kernels.integer_numbers import LIMITS

Array = np.ndarray
Progress = Callable[[str], None]
KEPT = 1 << 14  # values of a tensor that thresholds are chosen by, spread over all samples
# Shares of the largest value at which codes may be clipped.
SHARES = np.linspace(0.2, 1.0, 33)


@dataclass
class Seen:
    """The largest magnitude of a value, and some of its elements."""

    largest: float
    some: list[Array]

    @property
    def elements(self) -> Array:
        return np.concatenate(self.some)


def calibrate(graph: Graph, samples: Sequence[tuple[Array, ...]]) -> dict[Node, Seen]:
    """What every float value of ``graph`` is on ``samples``: each one array an input.

    In double precision, and the largest rounded to float32: on every machine the same, though
    libraries add up products in different orders.
    Raises BadInput for no samples, and for those on which something is not finite; Unsupported for
    a constant that is not.
    """
    if not samples:
        raise BadInput(
            "no samples to choose the scales of integer mode by",
            help="pass some inputs of the kind that the model will see: --calibrate x.npz",
        )
    seen: dict[Node, Seen] = {}
    rng = np.random.default_rng(0)
    each = max(1, KEPT // len(samples))

    number = 0

    def observe(node: Node, value: object) -> None:
        if not isinstance(value, np.ndarray) or not node.type.is_float or not value.size:
            return
        with np.errstate(over="ignore"):
            largest = float(np.float32(np.abs(value).max()))
        if not np.isfinite(largest) and node.op == "constant":
            raise Unsupported(
                f"mode int8 has no codes for the constant '{node.name}', which holds numbers that "
                f"are not finite",
                where=node.source or None,
                help="compile in mode f32, or write masks as is_causal or with finite numbers",
            )
        if not np.isfinite(largest):
            raise BadInput(
                f"on sample {number}, '{node.name}' is not finite",
                where=node.source or None,
                help="leave samples with NaN, infinite or huge values out",
            )
        kept = seen.setdefault(node, Seen(0.0, []))
        kept.largest = max(kept.largest, largest)
        flat = value.reshape(-1)
        kept.some.append(flat if flat.size <= each else rng.choice(flat, each))

    for sample in samples:
        interpret(graph, *sample, precision="f64", observe=observe)
        number += 1
    return seen


def threshold(values: Sequence[Seen], dtype: str) -> float:
    """The magnitude at which codes of ``dtype`` are clipped, for the least mean square error.

    Sixteen bits are not clipped: they have levels to spare. A tensor of zeros or of nothing has 1.
    """
    largest = max((value.largest for value in values), default=0)
    if largest == 0:
        return 1.0
    if dtype == "i16":
        return largest * 1.25  # room for what the samples do not show
    elements = np.concatenate([value.elements for value in values]).astype(np.float64)
    errors = [_error(elements, largest * share, LIMITS[dtype]) for share in SHARES]
    return float(largest * SHARES[int(np.argmin(errors))])


def _error(elements: Array, limit: float, levels: int) -> float:
    scale = limit / levels
    codes = np.clip(np.rint(elements / scale), -levels, levels)
    return float(np.square(codes * scale - elements).mean())
