"""Launches of the small kernels in ``tiny_gpu``, and their machine code, compiled once a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from butterflyc.compiler.lower.cubin import Code, compile_all
from butterflyc.kernels.gpu.launch import Argument, Launch

PACKAGE = "tiny_gpu"
# Folders whose packages the processes that compile can import.
if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))


def launch(
    function: str, constants: dict[str, int], module: str = "kernels", **arguments
) -> Launch:
    """A launch of one block; an argument is a type and a value."""
    given = tuple((name, Argument(*argument)) for name, argument in arguments.items())
    return Launch(module, function, given, tuple(constants.items()), (1, 1, 1))


def scale_rows(count: int = 1000, block: int = 128) -> Launch:
    return launch(
        "scale_rows",
        {"BLOCK": block},
        x=("*fp32", "x"),
        y=("*fp32", "y"),
        count=("i32", count),
        factor=("fp32", 2.5),
    )


def product(dtype: str = "fp16", size: int = 64, depth: int = 256) -> Launch:
    return launch(
        "product",
        {"M": size, "N": size, "K": size},
        a=(f"*{dtype}", "x"),
        b=(f"*{dtype}", "w"),
        c=("*fp32", "y"),
        depth=("i32", depth),
    )


def spills(block: int = 8192) -> Launch:
    given = launch("spills", {"BLOCK": block}, x=("*fp32", "x"), y=("*fp32", "y"))
    return replace(given, warps=1)


@cache
def code(wanted: Launch, capability: int = 80) -> Code:
    return compile_all([wanted], capability, package=PACKAGE)[wanted.symbol]
