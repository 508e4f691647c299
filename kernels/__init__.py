"""Kernels: TIR templates, one file each. A file takes part by exporting KERNEL or KERNELS."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from .record import Kernel


@cache
def all_kernels() -> tuple[Kernel, ...]:
    """Every kernel record in this folder, by name. Lists them without importing TVM."""
    return records_of(__name__, __path__)


def records_of(package: str, folders: Iterable[str]) -> tuple[Kernel, ...]:
    """Every kernel record in the files of a package, by name."""
    found: list[Kernel] = []
    for module in iter_modules(folders):
        namespace = vars(import_module(f"{package}.{module.name}"))
        found.extend(namespace.get("KERNELS", ()))
        if "KERNEL" in namespace:
            found.append(namespace["KERNEL"])
    return tuple(sorted(found, key=lambda kernel: kernel.name))
