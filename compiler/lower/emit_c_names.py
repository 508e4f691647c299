"""The names of one function in C, and what its buffers are used for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from ...kernels.tir import LazyModule
from .emit_c_types import RESERVED, c_type
from .tir import ForbiddenInKernel

tir: Any = LazyModule("tvm.tirx")


class Names:
    """C names of variables: as in TIR where C has no other use for them, free again after a block.

    Keeps count of what is read and written, by the buffer behind any number of views.
    """

    def __init__(self, kernel: str, forbidden: frozenset[str]) -> None:
        self.kernel = kernel
        self._forbidden = RESERVED | forbidden | {kernel}
        self._name: dict[Any, str] = {}
        self._root: dict[Any, Any] = {}
        # Names in sight, and all that the function ever had.
        self._visible: set[str] = set()
        self._every: set[str] = set()
        self._pointers: dict[tuple[Any, int], str] = {}
        self.parameters: list[Any] = []
        # Variables and buffers of the body, parameters not among them.
        self.local: set[Any] = set()
        self.scalars: set[Any] = set()
        self.read: set[Any] = set()
        self.stores: dict[Any, int] = {}
        self.addressed: set[Any] = set()

    def declare(self, variable: Any) -> str:
        """A new name, by which ``name`` then knows the variable."""
        base = re.sub(r"\W", "_", str(variable.name), flags=re.ASCII).lstrip("_") or "v"
        if base[0].isdigit():
            base = f"v{base}"
        taken = self._forbidden | self._visible | set(self._pointers.values())
        name, n = base, 1
        while name in taken:
            name, n = f"{base}_{n}", n + 1
        self._visible.add(name)
        self._every.add(name)
        self._name[variable] = name
        return name

    def parameter(self, variable: Any) -> None:
        self.parameters.append(variable)
        self.declare(variable)

    def name(self, variable: Any) -> str:
        return self._name[variable]

    @contextmanager
    def block(self) -> Iterator[None]:
        """What is declared inside is out of sight afterwards."""
        before = set(self._visible)
        yield
        self._visible = before

    def view(self, view: Any, source: Any) -> None:
        """``view`` is another name of the memory of ``source``."""
        same = tir.is_buffer_var(source) and str(source.dtype) == str(view.dtype)
        if not same or not _is_zero(view.elem_offset):
            raise ForbiddenInKernel(
                f"kernel {self.kernel} reinterprets memory as {view.name or 'another'}",
                help="declare one buffer a type, each starting at its first element",
            )
        self._root[view] = source

    def root(self, buffer: Any) -> Any:
        """The declared buffer behind any number of views."""
        while buffer in self._root:
            buffer = self._root[buffer]
        return buffer

    def load(self, buffer: Any) -> None:
        self.read.add(self.root(buffer))

    def store(self, buffer: Any) -> None:
        root = self.root(buffer)
        self.stores[root] = self.stores.get(root, 0) + 1

    def address(self, buffer: Any) -> None:
        """The address leaves the function, so the buffer may be read and written there."""
        self.load(buffer)
        self.store(buffer)
        self.addressed.add(self.root(buffer))

    def pointer(self, buffer: Any, offset: int) -> str | None:
        """A pointer of its own to element ``offset`` of an array parameter.

        None where the buffer is no parameter, or has no such element.
        """
        root = self.root(buffer)
        sizes = [n for n in root.shape if isinstance(n, tir.IntImm)]
        if root in self.local or len(sizes) < len(root.shape):
            return None
        if not 0 < offset < prod(int(n) for n in sizes):
            return None
        if (root, offset) not in self._pointers:
            base = f"{self.name(root)}_{offset}"
            name, n = base, 1
            taken = self._forbidden | self._every | set(self._pointers.values())
            while name in taken:
                name, n = f"{base}_{n}", n + 1
            self._pointers[root, offset] = name
        return self._pointers[root, offset]

    def pointers(self) -> list[str]:
        """The declarations of all pointers."""
        return [
            f"const {c_type(str(root.dtype), self.kernel)} *const {name} = "
            f"{self.name(root)} + {offset};"
            for (root, offset), name in self._pointers.items()
        ]


def _is_zero(offset: Any) -> bool:
    return offset is None or (isinstance(offset, (int, tir.IntImm)) and int(offset) == 0)
