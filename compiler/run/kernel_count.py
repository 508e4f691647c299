"""What one call of a kernel costs on a machine that QEMU emulates, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from ...kernels.lanes import Lanes
from ...kernels.layout import storage
from ...kernels.record import Kernel, Spec, Tensor
from ..ir.types import STORAGE
from .bare_call import call_packed
from .kernel import with_layouts

# Kinds of operands that are no zeros: how many bits are drawn, and what is added to them.
DRAWN = {"i8": (8, -128), "i16": (14, 0)}
# The operand that holds the powers of two of one octave, of which the largest is 2**14: what is
# divided by must be as large.
OCTAVES = {"integer_softmax": 1, "integer_attention": 3}
POWER = 13, 16383


def kernel_instructions(
    machine: str, kernel: Kernel, spec: Spec, lanes: Lanes, folder: Path
) -> int:
    """Of one call, without what calling costs; built in ``folder``.

    Operands of 8 and 16 bits hold numbers drawn at random, of which the latter are positive as
    factors and tables are; all others are zeros, which are valid as places and as packed weights.
    Raises what `bare_call.call_packed` does.
    """
    operands = list(_operands(kernel, spec, lanes))
    return call_packed(machine, kernel, spec, operands, lanes, folder).instructions


def _operands(kernel: Kernel, spec: Spec, lanes: Lanes) -> Iterator[np.ndarray]:
    """Operands as the kernel wants them packed."""
    state = 1
    for i, tensor in enumerate(with_layouts(kernel, spec, lanes).operands):
        if tensor.layout or tensor.dtype not in DRAWN:
            yield _zeros(tensor)
            continue
        bits, added = POWER if OCTAVES.get(spec.op) == i else DRAWN[tensor.dtype]
        states = _states(state, prod(tensor.shape))
        state = int(states[-1]) if states.size else state
        drawn = (states >> 8) % np.uint32((1 << bits) - 1) + 1
        yield (drawn.astype(np.int64) + added).astype(STORAGE[tensor.dtype]).reshape(tensor.shape)


def _states(state: int, count: int) -> np.ndarray:
    """The next ``count`` states of a generator, each 1664525 times the last one and 1013904223."""
    powers = np.cumprod(np.full(count, 1664525, np.uint32), dtype=np.uint32)
    sums = np.cumsum(np.append(np.uint32(1), powers)[:count], dtype=np.uint32)
    return powers * np.uint32(state) + sums * np.uint32(1013904223)


def _zeros(tensor: Tensor) -> np.ndarray:
    stored = storage(tensor)
    return np.zeros(stored.shape, STORAGE[stored.dtype])
