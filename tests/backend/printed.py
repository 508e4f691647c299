"""Kernels printed as C, built with every sanitizer that gcc has, and run on NumPy arrays."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from butterflyc.compiler.lower.emit_c import emit, emit_header, lower_for_c

Array = np.ndarray[Any, np.dtype[Any]]

C_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
CXX_FLAGS = ("-xc++", "-std=c++17", "-Wall", "-Wextra", "-Werror")
# A read or write outside of a buffer, and an overflow, end the program.
SANITIZERS = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")

# Every buffer is allocated by itself, at its exact size.
MAIN = """\
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static void *load(FILE *file, size_t size)
{
    void *data = malloc(size);
    if (data == NULL || fread(data, 1, size, file) != size) exit(2);
    return data;
}

static void save(FILE *file, void *data, size_t size)
{
    if (fwrite(data, 1, size, file) != size) exit(3);
    free(data);
}

int main(void)
{
    FILE *in = fopen("in.bin", "rb"), *out = fopen("out.bin", "wb");
    if (in == NULL || out == NULL) return 1;
"""


def _call(name: str, arrays: Sequence[Array]) -> str:
    count = range(len(arrays))
    return (
        "    {\n"
        + "".join(f"        void *p{i} = load(in, {arrays[i].nbytes});\n" for i in count)
        + f"        {name}({', '.join(f'p{i}' for i in count)});\n"
        + "".join(f"        save(out, p{i}, {arrays[i].nbytes});\n" for i in count)
        + "    }\n"
    )


def run_printed(
    folder: Path,
    gcc: str,
    functions: Sequence[Any],
    calls: Sequence[tuple[str, Sequence[Array]]],
    flags: Sequence[str] = (),
) -> list[list[Array]]:
    """All arrays of every call (a kernel's name, one array a parameter) as they are afterwards."""
    lowered = [lower_for_c(function) for function in functions]
    main = MAIN + "".join(_call(name, arrays) for name, arrays in calls)
    (folder / "kernels.c").write_text(emit(lowered))
    (folder / "kernels.h").write_text(emit_header(lowered, "KERNELS_H"))
    (folder / "main.c").write_text(f"{main}    return fclose(in) + fclose(out);\n}}\n")
    given = [np.ascontiguousarray(a) for _, arrays in calls for a in arrays]
    (folder / "in.bin").write_bytes(b"".join(a.tobytes() for a in given))
    build = [gcc, *C_FLAGS, *flags, "-O1", *SANITIZERS, "kernels.c", "main.c", "-o", "main"]
    subprocess.run(build, cwd=folder, check=True)
    # Leaks are found by stopping the program from outside, which containers forbid.
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    subprocess.run([folder / "main"], cwd=folder, check=True, env=environment)
    content, at, results = (folder / "out.bin").read_bytes(), 0, []
    for _, arrays in calls:
        after = []
        for a in arrays:
            part = np.frombuffer(content, a.dtype, a.size, at)
            after.append(part.reshape(a.shape))
            at += a.nbytes
        results.append(after)
    return results
