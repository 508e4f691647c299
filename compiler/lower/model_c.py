"""The driver of a compiled model: ``NAME.c`` and ``NAME.h``, one kernel call an op, in order.

The graph must be planned: kernels and arena offsets in its notes. The code calls nothing but
kernels, memcpy and what the program gave as NAME_tick, keeps no state and allocates nothing, so it
may run in several threads at once, each with an arena of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent

import numpy as np

from ..errors import UsageError
from ..ir import Graph, Node, Type
from ..ir.schedule import steps_of
from .driver import Called, Driver, Symbols
from .threads import Threads

ALIGNMENT = 64
C_TYPES = {
    "bool": "uint8_t",
    "i8": "int8_t",
    "u8": "uint8_t",
    "i16": "int16_t",
    "i32": "int32_t",
    "i64": "int64_t",
    "f32": "float",
    "f64": "double",
}

DECLARED_TICK = """
/* {name}_run calls this after each of its steps, with how many are done. It does nothing unless a
   program defines it: to reset a watchdog, to let others run, to measure. */
#define {upper}_STEPS {steps}
void {name}_tick(int done);
"""
WEAK_TICK = """
__attribute__((weak)) void {name}_tick(int done) {{
  (void)done;
}}
"""


@dataclass(frozen=True)
class ModelSource:
    """What is to be compiled and linked beside the kernels."""

    name: str
    header: str
    source: str
    weights: bytes
    # C of the pool of threads, where there is a function for several.
    pool: str = ""

    @property
    def exported(self) -> tuple[str, ...]:
        """The functions of its C interface that there may be."""
        threads = ("run_mt", "pool_create", "pool_destroy") if self.pool else ()
        return tuple(f"{self.name}_{name}" for name in ("run", "predict", *threads))


def step_names(graph: Graph) -> list[str]:
    """What the driver computes, one after another."""
    return [step.name for step in steps_of(graph)]


def check_name(name: str) -> str:
    """``name`` if it can prefix C symbols. Raises UsageError otherwise."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UsageError(
            f"'{name}' cannot be the name of a compiled model",
            help="--name takes letters, digits and _, a letter first: it prefixes C symbols",
        )
    return name


def write_model(graph: Graph, name: str, symbols: Symbols, kernels_header: str = "") -> ModelSource:
    """The driver of ``graph``; ``symbols`` names the function of every node that has a kernel.

    Kernels are declared as taking untyped pointers, or as ``kernels_header`` has them. With it
    ``NAME_tick`` is called after each of `step_names`. A graph of several threads gets
    ``NAME_run_mt`` too.
    """
    check_name(name)
    offsets, weights = _lay_out_weights(graph)
    arena = int(graph.notes.get("arena_bytes", 0))  # type: ignore[arg-type]
    driver = Driver(graph, offsets, symbols, typed=bool(kernels_header))
    steps = steps_of(graph)
    calls = [driver.step(step) for step in steps]
    if kernels_header:
        calls = [f"{call}  {name}_tick({i});\n" for i, call in enumerate(calls, 1)]
    copies = [driver.copied_output(i, node) for i, node in enumerate(graph.outputs)]
    users = _first_users(symbols).values()
    declared = "".join(_declaration(node, called) for node, called in users)
    if kernels_header:
        declared = f'#include "{kernels_header}"\n'
    source = f"""\
/* {name}: {_signature(graph)}. Made by butterflyc; do not edit. */
#include "{name}.h"

#include <string.h>

extern const unsigned char {name}_weights[];
{declared}
int {name}_run(const void *const *in, void *const *out, void *arena) {{
  unsigned char *const a = (unsigned char *)arena;
  const unsigned char *const w = {name}_weights;
  (void)a, (void)w;
  if (in == 0 || out == 0 || (arena == 0 && {arena} > 0)) return -1;
  if ((uintptr_t)arena % {ALIGNMENT} != 0) return -2;
{"".join(calls)}{"".join(copies)}  return 0;
}}
{_typed_wrapper(graph, name, body=True)}"""
    ticks = len(steps) if kernels_header else 0
    threads = threads_of(graph, name)
    more = DECLARED_TICK.format(name=name, upper=name.upper(), steps=ticks) if ticks else ""
    if ticks:
        source += WEAK_TICK.format(name=name)
    if threads.count == 1:
        return ModelSource(name, _header(graph, name, arena, more), source, weights)
    source += threads.source(driver, copies)
    header = _header(graph, name, arena, f"{more}\n{threads.header()}")
    return ModelSource(name, header, source, weights, threads.pool())


def threads_of(graph: Graph, name: str) -> Threads:
    """What the driver of ``graph`` has for several threads."""
    return Threads(graph, name, ALIGNMENT)


def _lay_out_weights(graph: Graph) -> tuple[dict[str, int], bytes]:
    """Every constant at an aligned offset of one block, in order of first use."""
    offsets: dict[str, int] = {}
    block = bytearray()
    for node in graph.nodes:
        if node.op == "constant" and node["digest"] not in offsets:
            block.extend(b"\0" * (-len(block) % ALIGNMENT))
            offsets[str(node["digest"])] = len(block)
            block.extend(np.ascontiguousarray(graph.value(node)).tobytes())
    block.extend(b"\0" * (-len(block) % ALIGNMENT))
    return offsets, bytes(block)


def _first_users(symbols: Symbols) -> dict[str, tuple[Node, Called]]:
    first: dict[str, tuple[Node, Called]] = {}
    for (node, _), called in symbols.items():
        first.setdefault(called.symbol, (node, called))
    return first


def _declaration(node: Node, called: Called) -> str:
    reads = ["const void *"] * len(node.operands)
    writes = ["void *"] * (len(node.types) + len(node.notes.get("scratch", ())))  # type: ignore[arg-type]
    numbers = ["int32_t"] * len(called.numbers)
    return f"void {called.symbol}({', '.join(reads + writes + numbers)});\n"


def _header(graph: Graph, name: str, arena: int, more: str) -> str:
    upper = name.upper()
    sizes = "".join(
        f"#define {upper}_{kind}{i}_BYTES {type.bytes} /* {name}: {type} */\n"
        for kind, ends in (("INPUT", _inputs(graph)), ("OUTPUT", _outputs(graph)))
        for i, (name, type) in enumerate(ends)
    )
    sizes += "".join(
        f"#define {upper}_{kind}{place}_SCALE {type.scale!r} /* a code of {name} stands for it */\n"
        for kind, ends in (("INPUT", _inputs(graph)), ("OUTPUT", _outputs(graph)))
        for i, (name, type) in enumerate(ends)
        for place in ((i, "") if i == 0 else (i,))
        if type.scale is not None
    )
    return dedent("""\
        /* {name}: {signature}. Made by butterflyc; do not edit. */
        #ifndef BUTTERFLYC_{upper}_H
        #define BUTTERFLYC_{upper}_H

        #include <stdint.h>

        #ifdef __cplusplus
        extern "C" {{
        #endif

        /* Bytes of working memory, aligned to {alignment}; its contents need not be kept. */
        #define {upper}_ARENA_BYTES {arena}
        {sizes}
        /* Computes out[] from in[]: dense row-major tensors in the order above.
           Returns 0, or -1 for a null pointer, or -2 for an arena that is not aligned. */
        int {name}_run(const void *const *in, void *const *out, void *arena);
        {wrapper}{more}
        #ifdef __cplusplus
        }}
        #endif
        #endif
        """).format(
        name=name,
        signature=_signature(graph),
        upper=upper,
        alignment=ALIGNMENT,
        arena=arena,
        sizes=sizes,
        wrapper=_typed_wrapper(graph, name, body=False),
        more=more,
    )


def _typed_wrapper(graph: Graph, name: str, *, body: bool) -> str:
    """For one input and one output: the same call with typed pointers."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return ""
    source, target = (C_TYPES[n.type.dtype] for n in (graph.inputs[0], graph.outputs[0]))
    head = f"int {name}_predict(const {source} *input, {target} *output, void *arena)"
    if not body:
        return f"{head};\n"
    return dedent(f"""
        {head} {{
          const void *const in[1] = {{input}};
          void *const out[1] = {{output}};
          return {name}_run(in, out, arena);
        }}
        """)


def _inputs(graph: Graph) -> list[tuple[str, Type]]:
    return [(node.name, node.type) for node in graph.inputs]


def _outputs(graph: Graph) -> list[tuple[str, Type]]:
    types = [node.type for node in graph.outputs]
    return list(zip(graph.results, types, strict=True))


def _signature(graph: Graph) -> str:
    def types(ends: list[tuple[str, Type]]) -> str:
        return ", ".join(f"{name} {_plain(type)}" for name, type in ends)

    return f"{types(_inputs(graph))} -> {types(_outputs(graph))}"


def _plain(type: Type) -> str:
    return f"{type.dtype}[{', '.join(map(str, type.shape))}]"
