"""What the driver of a compiled model takes beside its kernels, on a machine that QEMU emulates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .bare_metal import build, run

# Places of a driver's buffers: as in a step of rows, some move with the row.
PLACES = ("a + row * 64", "w + 1216", "a + 3072", "w + 64")
TURNS = 10

MAIN = """\
#include "hal.h"

typedef unsigned char *Bytes;
typedef void (*Part)(Bytes a, const unsigned char *w);
{declared}
static const Part parts[] = {{{names}}};
static uint64_t memory[1024];
static const uint64_t weights[512] = {{1}};

static uint64_t counted(Part volatile part)
{{
    const uint64_t start = hal_instructions();
    part((Bytes)memory, (const unsigned char *)weights);
    return hal_instructions() - start;
}}

int main(void)
{{
    counted(parts[0]);
    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {{
        hal_print_number((int64_t)counted(parts[i]));
        hal_write(" ", 1);
    }}
    return 0;
}}
"""


def driver_instructions(
    machine: str, arguments: Sequence[int], copied: Sequence[int], folder: Path
) -> tuple[list[float], list[float]]:
    """Of a call of nothing with so many arguments each, and of copies of so many bytes each.

    The program is built in ``folder``. Raises what `bare_metal.build` and `run` do.
    """
    bodies = [""]
    for count in arguments:
        places = [PLACES[i % len(PLACES)] for i in range(count - 1)]
        call = f"nothing{count}({', '.join([*places, '7'])});"
        bodies.append(f"for (int row = 0; row < {TURNS}; row++) {call}")
    bodies += [f"memcpy(a, a + 4096, {size});" for size in copied]
    names = [f"part{i}" for i in range(len(bodies))]
    head = "void {name}(unsigned char *a, const unsigned char *w)"
    parts = "".join(
        f"{head.format(name=name)} {{ (void)a, (void)w; {body} }}\n"
        for name, body in zip(names, bodies, strict=True)
    )
    called = {count: _nothing(count) for count in arguments}
    sources = {
        "main.c": MAIN.format(
            declared="".join(f"extern {head.format(name=name)};\n" for name in names),
            names=", ".join(names),
        ),
        "driver.c": "#include <string.h>\n" + "".join(f"{n};\n" for n in called.values()) + parts,
        "nothing.c": "".join(f"{n} {{ {_unused(k)} }}\n" for k, n in called.items()),
    }
    text = run(machine, build(machine, sources, folder)).checked().text
    empty, *found = map(int, text.split())
    calls = [(count - empty) / TURNS for count in found[: len(arguments)]]
    return calls, [float(count - empty) for count in found[len(arguments) :]]


def _nothing(count: int) -> str:
    types = [*["const void *"] * (count - 1), "int "]
    return f"void nothing{count}({', '.join(f'{t}p{i}' for i, t in enumerate(types))})"


def _unused(count: int) -> str:
    return " ".join(f"(void)p{i};" for i in range(count))
