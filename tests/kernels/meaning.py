"""Run a kernel on the operands of an op, and ask the op what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec

from .harness import Array, run, tensor

Attributes = Mapping[str, Any]
MISSING: Mapping[str, Any] = MappingProxyType({})

# Operands that hold ternary weights, by op.
TERNARY = {"ternary_dot": 1, "ternary_matmul": 1, "butterfly_experts": 2}


def meaning(
    name: str, arrays: Sequence[Array], attributes: Attributes = MISSING, double: bool = False
) -> list[Array]:
    """The results of the op, in float64 on request."""
    full = OPS[name].complete(attributes)
    given = [a.astype(np.float64) if double and a.dtype == np.float32 else a for a in arrays]
    results = OPS[name].meaning(*given, **full)
    return list(results) if isinstance(results, tuple) else [results]


def spec_of(
    name: str,
    arrays: Sequence[Array],
    attributes: Attributes = MISSING,
    parameters: Mapping[str, int] = MISSING,
) -> Spec:
    """The spec of the op on these arrays; ``parameters`` are the kernel's."""
    operands = [tensor(a) for a in arrays]
    if name in TERNARY:
        operands[TERNARY[name]] = replace(operands[TERNARY[name]], dtype="ternary")
    results = [tensor(a) for a in meaning(name, arrays, attributes)]
    full = OPS[name].complete(attributes)
    return Spec(
        name,
        tuple(sorted(full.items())),
        tuple(operands),
        tuple(results),
        tuple(sorted(parameters.items())),
    )


def results_of(
    kernel: Kernel,
    name: str,
    arrays: Sequence[Array],
    lanes: Lanes,
    attributes: Attributes = MISSING,
    parameters: Mapping[str, int] = MISSING,
) -> list[Array]:
    """What the kernel makes of these arrays."""
    return run(kernel, spec_of(name, arrays, attributes, parameters), arrays, lanes)


def floats(rng: np.random.Generator, *shape: int) -> Array:
    """Normal numbers in float32."""
    return rng.standard_normal(shape).astype(np.float32)


def ternary(rng: np.random.Generator, *shape: int) -> Array:
    """Weights -1, 0 and 1."""
    return rng.integers(-1, 2, shape, np.int8)


def blocks(rng: np.random.Generator, experts: int, groups: int, b: int) -> Array:
    """Orthogonal blocks [experts, groups, b, b]."""
    return np.linalg.qr(rng.standard_normal((experts, groups, b, b)))[0].astype(np.float32)


def relative_error(result: Array, wanted: Array) -> float:
    """The largest error, relative to the largest magnitude wanted."""
    return float(np.abs(result - wanted).max() / max(np.abs(wanted).max(), 1e-30))
