"""Products of integer matrices, which wrap: counts and positions, so small ones."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import (
    COMPUTED,
    Strides,
    broadcast_strides,
    nest,
    offset,
    parameters,
    plain,
    row_major,
    widened,
    write,
)
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import Registers, T, function, let

INTEGERS = frozenset(COMPUTED) - {"bool", "f32"}


def supports(spec: Spec, lanes: Lanes) -> bool:
    dtypes = {tensor.dtype for tensor in (*spec.operands, *spec.results)}
    ranks = [len(tensor.shape) for tensor in spec.operands]
    without_activation = dict(spec.attributes).get("activation", "none") == "none"
    same = len(dtypes) == 1 and dtypes <= INTEGERS
    return plain(spec) and same and without_activation and len(ranks) == 2 and min(ranks) >= 1


def _steps(spec: Spec) -> tuple[Strides, Strides, int, int]:
    """The strides of both operands along the result's axes, and those along the summed axis."""
    a, b = spec.operands
    shape = spec.results[0].shape
    if spec.op == "linear":
        along = (0,) * (len(shape) - 1)
        return (*row_major(a.shape)[:-1], 0), (*along, b.shape[1]), 1, 1
    left = broadcast_strides((*a.shape[:-1], 1), (*shape[:-1], 1))
    scaled = tuple(step * a.shape[-1] for step in left[:-1])
    inner = b.shape[-2] * b.shape[-1]
    batch = broadcast_strides((*b.shape[:-2], 1), (*shape[:-2], 1))[:-1]
    return (*scaled, 0), (*(step * inner for step in batch), 0, 1), 1, b.shape[-1]


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    result = spec.results[0]
    kind, depth = COMPUTED[result.dtype], spec.operands[0].shape[-1]
    a_steps, b_steps, a_step, b_step = _steps(spec)
    with function(name, parameters(spec)) as f, nest(result.shape) as indices:
        a, b, y = f.buffers
        total = Registers(1, 1, kind)
        total[0] = getattr(T, kind)(0)
        with T.serial(depth) as k:
            left, right = (
                let(widened(buffer[offset(indices, steps, k * step)], result.dtype, 1), 1, kind)
                for buffer, steps, step in ((a, a_steps, a_step), (b, b_steps, b_step))
            )
            total[0] = total[0] + left * right
        write(y, total[0], result.dtype, offset(indices, row_major(result.shape)), 1)
    return f.result


def cost(spec: Spec, lanes: Lanes) -> float:
    return 2.0 * prod(spec.results[0].shape) * spec.operands[0].shape[-1]


KERNEL = Kernel("integer_matmul", ("matmul", "linear"), supports, build, cost)
