"""Kernels: TIR templates, one file each. A file takes part by exporting KERNEL or KERNELS."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from .record import Kernel


@cache
def all_kernels() -> tuple[Kernel, ...]:
    """Every kernel record in this folder, by name. Lists them without importing TVM."""
    found: list[Kernel] = []
    for module in iter_modules(__path__):
        namespace = vars(import_module(f"{__name__}.{module.name}"))
        found.extend(namespace.get("KERNELS", ()))
        if "KERNEL" in namespace:
            found.append(namespace["KERNEL"])
    return tuple(sorted(found, key=lambda kernel: kernel.name))
