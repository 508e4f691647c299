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
from ..ir import Graph, Node, Type, print_node
from ..ir.views import root_of

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


def step_names(graph: Graph) -> list[str]:
    """What the driver calls, one after another: the names of the nodes that have kernels."""
    return [node.name for node in graph.nodes if "kernel" in node.notes]


def check_name(name: str) -> str:
    """``name`` if it can prefix C symbols. Raises UsageError otherwise."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UsageError(
            f"'{name}' cannot be the name of a compiled model",
            help="--name takes letters, digits and _, a letter first: it prefixes C symbols",
        )
    return name


def write_model(
    graph: Graph, name: str, symbols: dict[Node, str], kernels_header: str = ""
) -> ModelSource:
    """The driver of ``graph``; ``symbols`` names the kernel function of every node that has one.

    Kernels are declared as taking untyped pointers, or as ``kernels_header`` has them. With it
    ``NAME_tick`` is called after each of `step_names`.
    """
    check_name(name)
    offsets, weights = _lay_out_weights(graph)
    arena = int(graph.notes.get("arena_bytes", 0))  # type: ignore[arg-type]
    places = _Places(graph, offsets)
    called = [node for node in graph.nodes if node in symbols]
    calls = [_call(node, symbols[node], places, bool(kernels_header)) for node in called]
    if kernels_header:
        calls = [f"{call}  {name}_tick({i});\n" for i, call in enumerate(calls, 1)]
    copies = [_copy(i, node, places) for i, node in enumerate(graph.outputs)]
    users = _first_users(symbols).items()
    declared = "".join(_declaration(node, symbol) for symbol, node in users)
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
{"".join(calls)}{"".join(filter(None, copies))}  return 0;
}}
{_typed_wrapper(graph, name, body=True)}"""
    ticks = len(called) if kernels_header else 0
    header = _header(graph, name, arena, ticks)
    if ticks:
        source += WEAK_TICK.format(name=name)
    return ModelSource(name, header, source, weights)


class _Places:
    """Where the value of a node lies, as a C expression."""

    def __init__(self, graph: Graph, weights: dict[str, int]) -> None:
        self._weights = weights
        self._inputs = {node: i for i, node in enumerate(graph.inputs)}
        self._outputs: dict[tuple[Node, int], int] = {}
        for i, node in enumerate(graph.outputs):
            self._outputs.setdefault(root_of(node), i)

    def pointer(self, node: Node, index: int = 0) -> str:
        root, at = root_of(node)
        index = at or index
        if root.op == "input":
            return f"in[{self._inputs[root]}]"
        if root.op == "constant":
            return f"w + {self._weights[str(root['digest'])]}"
        if (root, index) in self._outputs:
            return f"out[{self._outputs[root, index]}]"
        return f"a + {root.notes['at'][index]}"  # type: ignore[index]

    def scratch(self, node: Node) -> list[str]:
        return [f"a + {at}" for at in node.notes.get("scratch", ())]  # type: ignore[union-attr]

    def written_by_kernel(self, output: int, node: Node) -> bool:
        root, _ = root_of(node)
        return "kernel" in root.notes and self._outputs[root_of(node)] == output


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


def _first_users(symbols: dict[Node, str]) -> dict[str, Node]:
    first: dict[str, Node] = {}
    for node, symbol in symbols.items():
        first.setdefault(symbol, node)
    return first


def _declaration(node: Node, symbol: str) -> str:
    reads = ["const void *"] * len(node.operands)
    writes = ["void *"] * (len(node.types) + len(node.notes.get("scratch", ())))  # type: ignore[arg-type]
    return f"void {symbol}({', '.join(reads + writes)});\n"


def _call(node: Node, symbol: str, places: _Places, typed: bool) -> str:
    """The call of a kernel; where it takes ``typed`` pointers, bytes must be untyped to pass."""
    reads = [places.pointer(operand) for operand in node.operands]
    writes = [places.pointer(node, i) for i in range(len(node.types))] + places.scratch(node)
    if typed:
        reads = [f"(const void *)({place})" for place in reads]
        writes = [f"(void *)({place})" for place in writes]
    comment = print_node(node).split(" @ ")[0].replace("*/", "* /").replace("/*", "/ *")
    return f"  /* {comment} */\n  {symbol}({', '.join([*reads, *writes])});\n"


def _copy(index: int, node: Node, places: _Places) -> str:
    """For an output that is an input, a constant, or the same buffer as another output."""
    if places.written_by_kernel(index, node):
        return ""
    return f"  memcpy(out[{index}], {places.pointer(node)}, {node.type.bytes});\n"


def _header(graph: Graph, name: str, arena: int, steps: int) -> str:
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
        {wrapper}{tick}
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
        tick=DECLARED_TICK.format(name=name, upper=upper, steps=steps) if steps else "",
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
