"""What one call of a kernel costs on a machine that QEMU emulates, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np

from ...kernels.lanes import Lanes
from ...kernels.layout import storage
from ...kernels.record import Kernel, Spec, Tensor
from ..ir.types import STORAGE
from ..lower.emit_c import emit, emit_header, lower_for_c
from .bare_metal import build, run
from .kernel import with_layouts

# Kinds of operands that are no zeros: C's type, and what a number is.
DRAWN = {
    "i8": ("int8_t", "(int8_t)(drawn(8) - 128)"),
    "i16": ("int16_t", "(int16_t)drawn(14)"),
}
# The operand that holds the powers of two of one octave, of which the largest is 2**14: what is
# divided by must be as large.
OCTAVES = {"integer_softmax": 1, "integer_attention": 3}
POWER = "int16_t", "(int16_t)(16383 + drawn(13))"

MAIN = """\
#include "hal.h"
#include "kernel.h"

{buffers}
static uint32_t state = 1;

/* A number of `bits` bits, other than 0. */
static int32_t drawn(int bits)
{{
    state = state * 1664525u + 1013904223u;
    return (int32_t)((state >> 8) % ((1u << bits) - 1)) + 1;
}}

static void fill(void)
{{
    unsigned i = 0;
    (void)i, (void)drawn;
{fills}}}

static void nothing({types}) {{ {unused} }}

typedef void (*Kernel)({types});
static Kernel volatile called;

static uint64_t counted(void)
{{
    const uint64_t start = hal_instructions();
    called({arguments});
    return hal_instructions() - start;
}}

int main(void)
{{
    fill();
    called = nothing;
    counted();
    const uint64_t calling = counted();
    called = (Kernel)kernel;
    hal_print_number((int64_t)(counted() - calling));
    return 0;
}}
"""


def kernel_instructions(
    machine: str, kernel: Kernel, spec: Spec, lanes: Lanes, folder: Path
) -> int:
    """Of one call, without what calling costs; built in ``folder``.

    Operands of 8 and 16 bits hold numbers drawn at random, of which the latter are positive as
    factors and tables are; all others are zeros, which are valid as places and as packed weights.
    Raises what `bare_metal.build` and `run` do.
    """
    lowered = [lower_for_c(kernel.build(kernel.opened(spec), lanes, "kernel"))]
    operands = with_layouts(kernel, spec, lanes).operands
    tensors = (*operands, *spec.results, *kernel.scratch(spec, lanes))
    sizes = [_bytes(tensor) for tensor in tensors]
    numbers = kernel.arguments(spec)
    types = ["void *"] * len(sizes) + ["int32_t"] * len(numbers)
    names = [f"p{i}" for i in range(len(types))]
    main = MAIN.format(
        buffers="".join(f"static uint64_t b{i}[{n // 8 + 1}];\n" for i, n in enumerate(sizes)),
        fills="".join(f"    {line}\n" for line in _fills(spec, operands)),
        types=", ".join(f"{type} {name}" for type, name in zip(types, names, strict=True)),
        unused=" ".join(f"(void){name};" for name in names),
        arguments=", ".join([*(f"b{i}" for i in range(len(sizes))), *map(str, numbers)]),
    )
    sources = {"main.c": main, "kernel.c": emit(lowered), "kernel.h": emit_header(lowered, "K_H")}
    return int(run(machine, build(machine, sources, folder)).checked().text)


def _fills(spec: Spec, operands: Sequence[Tensor]) -> Iterator[str]:
    """C that sets the operands."""
    for i, tensor in enumerate(operands):
        if tensor.layout or tensor.dtype not in DRAWN:
            continue
        kind, text = POWER if OCTAVES.get(spec.op) == i else DRAWN[tensor.dtype]
        yield f"for (i = 0; i < {prod(tensor.shape)}; i++) (({kind} *)b{i})[i] = {text};"


def _bytes(tensor: Tensor) -> int:
    stored = storage(tensor)
    return prod(stored.shape) * np.dtype(STORAGE[stored.dtype]).itemsize
