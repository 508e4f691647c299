"""A kernel timed beside another on a machine of another kind: a board that ssh reaches.

Both are functions of one static program, which calls them in turns and writes what a call took. A
round is one after the other, so a board that grows hot slows both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np

from ...kernels.lanes import Lanes
from ...kernels.layout import pack, storage
from ...kernels.record import Kernel, Spec
from ..errors import ToolFailed
from ..ir.types import STORAGE
from ..lower.tir import build_object
from .executions import ARCHITECTURES, static_linker
from .hosted import Place
from .kernel import with_layouts
from .kernel_call import split, write_data
from .tools import run_tool

# Of the program, its files and its functions: what is measured, and beside what.
NAMES = "way", "other"
ROUND_SECONDS = 0.02

MAIN = """\
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

{declarations}
static void call(int which)
{{
    if (which)
        other({other});
    else
        way({way});
}}

static double seconds(int which, long count)
{{
    struct timespec start, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    for (long i = 0; i < count; i++)
        call(which);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}}

int main(int words, char **word)
{{
    const int rounds = words > 1 ? atoi(word[1]) : 1;
    long counts[2];
    FILE *results = fopen("results", "wb"), *times = fopen("times", "wb");
    if (!results || !times)
        return 1;
    call(0);
{writes}    for (int which = 0; which < 2; which++) {{
        seconds(which, 3); /* warm */
        const double one = seconds(which, 1);
        counts[which] = one < {round} ? (long)({round} / (one > 1e-7 ? one : 1e-7)) : 1;
    }}
    for (int i = 0; i < rounds; i++) {{
        double took[2];
        for (int j = 0; j < 2; j++) {{
            const int which = (i + j) % 2;
            took[which] = seconds(which, counts[which]) / (double)counts[which];
        }}
        fwrite(took, sizeof took, 1, times);
    }}
    return fclose(results) || fclose(times);
}}
"""

# The board as its maker calls it, else its processor as the system does.
WHO = """\
#include <stdio.h>
#include <string.h>

int main(void)
{
    char line[256] = "";
    FILE *out = fopen("name", "wb"), *in = fopen("/proc/device-tree/model", "rb");
    if (!out)
        return 1;
    if (in && fgets(line, sizeof line, in))
        return fputs(line, out) < 0 || fclose(out);
    in = fopen("/proc/cpuinfo", "rb");
    while (in && fgets(line, sizeof line, in))
        if (!strncmp(line, "model name", 10) || !strncmp(line, "CPU part", 8))
            return fputs(strchr(line, ':') + 1, out) < 0 || fclose(out);
    return fclose(out);
}
"""


@attrs.frozen
class TimedCall:
    """The ``results`` of a way, and by round the CPU seconds of a call: [rounds, 2].

    The first of each round is the way's, the second the other one's.
    """

    results: tuple[np.ndarray, ...]
    seconds: np.ndarray


def time_beside(
    place: Place,
    ways: Sequence[tuple[Kernel, Spec]],
    arrays: Sequence[np.ndarray],
    lanes: Lanes,
    target: Mapping[str, Any],
    rounds: int,
) -> TimedCall:
    """A way and another one, each a kernel and its spec, timed on ``arrays`` at ``place``.

    ``arrays`` are given unpacked; ``target`` is TVM's description. Raises ToolMissing, ToolFailed
    where the program does not end well, and what `Place.run` raises.
    """
    functions = {}
    with TemporaryDirectory() as made:
        folder, parts = Path(made), []
        buffers: dict[str, np.ndarray] = {}
        for name, (kernel, asked) in zip(NAMES, ways, strict=True):
            spec = with_layouts(kernel, asked, lanes)
            functions[name] = kernel.build(kernel.opened(spec), lanes, name)
            held = _buffers(kernel, spec, arrays, lanes)
            own = {f"{name}_{i}": array for i, array in enumerate(held)}
            buffers |= own
            parts.append((name, list(own), kernel.arguments(spec)))
        (folder / "kernel.o").write_bytes(build_object(functions, target))
        write_data(folder, buffers)
        first, count = len(arrays), len(ways[0][1].results)
        results = parts[0][1][first : first + count]
        (folder / "main.c").write_text(_main(parts, {name: buffers[name] for name in results}))
        program = _linked(folder, target, ["main.c", "data.S", "kernel.o"])
        ended = place.run(program, [str(rounds)], {}, ["results", "times"])
    if ended.status != 0:
        raise ToolFailed(f"the program at {place.name} ended with {ended.status}: {ended.message}")
    like = [buffers[name] for name in results]
    times = np.frombuffer(ended.files["times"], "<f8").reshape(-1, 2)
    return TimedCall(split(ended.files["results"], like), times)


def name_of(place: Place, target: Mapping[str, Any]) -> str:
    """What the machine at ``place`` is called. Raises ToolMissing, and what `Place.run` raises."""
    with TemporaryDirectory() as made:
        (Path(made) / "who.c").write_text(WHO)
        program = _linked(Path(made), target, ["who.c"])
        ended = place.run(program, [], {}, ["name"])
    told = ended.files.get("name", b"").decode(errors="replace").strip("\0\n\t ")
    return told or place.name


def _linked(folder: Path, target: Mapping[str, Any], files: Sequence[str]) -> bytes:
    """A static program made of ``files`` in ``folder``."""
    architecture = next(name for name in ARCHITECTURES if target["mtriple"].startswith(name))
    run_tool([*static_linker(architecture), "-O2", *files, "-o", "program"], folder)
    return (folder / "program").read_bytes()


def _buffers(
    kernel: Kernel, spec: Spec, arrays: Sequence[np.ndarray], lanes: Lanes
) -> list[np.ndarray]:
    """Operands as packed, then results and scratch."""
    operands = [
        pack(tensor.layout, array) if tensor.layout else np.ascontiguousarray(array)
        for tensor, array in zip(spec.operands, arrays, strict=True)
    ]
    others = (storage(tensor) for tensor in (*spec.results, *kernel.scratch(spec, lanes)))
    return [*operands, *(np.zeros(t.shape, STORAGE[t.dtype]) for t in others)]


def _main(
    parts: Sequence[tuple[str, Sequence[str], Sequence[int]]], results: Mapping[str, np.ndarray]
) -> str:
    declared, calls = [], {}
    for name, buffers, numbers in parts:
        types = ["void *"] * len(buffers) + ["int32_t"] * len(numbers)
        declared.append(f"void {name}({', '.join(types)});\n")
        declared += [f"extern unsigned char {buffer}[];\n" for buffer in buffers]
        calls[name] = ", ".join([*buffers, *map(str, numbers)])
    writes = (f"    fwrite({name}, 1, {a.nbytes}, results);\n" for name, a in results.items())
    return MAIN.format(
        declarations="".join(declared), writes="".join(writes), round=ROUND_SECONDS, **calls
    )
