"""What one call of a kernel costs on a machine that QEMU emulates, exactly."""

from __future__ import annotations

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

MAIN = """\
#include "hal.h"
#include "kernel.h"

{buffers}
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
    """Of one call on zeros, in whole words, without what calling costs; built in ``folder``.

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
        types=", ".join(f"{type} {name}" for type, name in zip(types, names, strict=True)),
        unused=" ".join(f"(void){name};" for name in names),
        arguments=", ".join([*(f"b{i}" for i in range(len(sizes))), *map(str, numbers)]),
    )
    sources = {"main.c": main, "kernel.c": emit(lowered), "kernel.h": emit_header(lowered, "K_H")}
    return int(run(machine, build(machine, sources, folder)).checked().text)


def _bytes(tensor: Tensor) -> int:
    stored = storage(tensor)
    return prod(stored.shape) * np.dtype(STORAGE[stored.dtype]).itemsize
