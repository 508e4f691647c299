"""How many bytes of code a compiled model is: estimated from its kernels, or measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..compiler.ir import Graph
from ..compiler.ir.schedule import steps_of
from ..compiler.run import bare_metal
from ..compiler.run.machine import machine_names
from ..kernels import all_kernels
from ..passes.select_kernels import kernel_of, spec_of
from .registry import Core

# The largest function of each kernel in the trained digits model and in small ones, by gcc 12.2
# (rv32imc, cortex-m4) and clang 22 (esp32) with -O2. The estimate made from them is 1.9 to 2.1
# times what was measured on esp32, 3.0 to 4.5 times on rv32imc, 2.4 to 3.3 times on cortex-m4.
KERNEL_BYTES = {
    "integer_elements": 570,
    "integer_layer_norm": 1480,
    "integer_pairs": 800,
    "integer_products": 1760,
    "integer_softmax": 1830,
    "lookup": 130,
    "move": 1450,
    "rank": 200,
    "ternary_dot_table": 3120,
    "top_k": 1020,
}
OTHER_KERNEL_BYTES = 3400  # not measured: as much as the largest of them
CALL_BYTES = 58  # on esp32; 38 to 44 on the others
DRIVER_BYTES = 200


@dataclass(frozen=True)
class Code:
    """``bytes`` of machine code with its constants; the machine it was ``measured`` on, or None."""

    bytes: int
    measured: str | None = None


def estimated(graph: Graph) -> Code:
    """A high estimate: each kernel as large as the largest of its name that was measured."""
    steps = steps_of(graph)
    called = [
        (kernel_of(node, all_kernels()), spec_of(node, rows))
        for step in steps
        for node in step.nodes
        for *_, rows in step.tiles
        if "kernel" in node.notes
    ]
    kernels = {(kernel.name, kernel.opened(spec).digest) for kernel, spec in called}
    functions = sum(KERNEL_BYTES.get(name, OTHER_KERNEL_BYTES) for name, _ in kernels)
    return Code(DRIVER_BYTES + CALL_BYTES * len(called) + functions)


def measured(files: Mapping[str, bytes], name: str, core: Core) -> Code | None:
    """What a C compiler makes of the driver and the kernels in ``files``, with -O2.

    None where there is no compiler for the machine that has the core's instruction set.
    """
    machine = core.runner
    if machine not in machine_names() or bare_metal.available(machine):
        return None
    sources = [f"{stem}.{kind}" for stem in (name, f"{name}_kernels") for kind in "hc"]
    texts = {source: files[f"src/{source}"].decode() for source in sources}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        objects = bare_metal.compile_sources(machine, texts, folder)
        sizes = [bare_metal.sizes(machine, folder / object) for object in objects]
    return Code(sum(size.text + size.data + size.bss for size in sizes), machine)
