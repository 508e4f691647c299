"""The most multiply-accumulates a second that one core of this machine does, measured."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ..compiler.errors import ToolMissing
from ..compiler.lower.link import c_compiler, run
from ..compiler.run.native import cpu_features

ROUNDS = 100_000


def peaks() -> dict[str, tuple[Callable[[], None], int]]:
    """For `ternary` and `float`: a call that runs at the peak rate, and the products it does.

    Raises ToolMissing on a machine for which there is no such measurement.
    """
    if platform.machine() != "x86_64" or not {"avx2", "fma"} <= cpu_features():
        raise ToolMissing(
            "peak rates are measured on x86-64 with AVX2 only",
            help="the other suites give ratios between programs, which need no peak",
        )
    source = Path(__file__).with_name("peak_x86.c")
    with TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        run([*c_compiler(), "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], folder)
        loaded = ctypes.CDLL(str(library))
    found: dict[str, tuple[Callable[[], None], int]] = {}
    for kind in ("ternary", "float"):
        function = loaded[f"peak_{kind}"]
        function.argtypes, function.restype = [ctypes.c_long], ctypes.c_long
        found[kind] = partial(function, ROUNDS), function(1) * ROUNDS
    return found
