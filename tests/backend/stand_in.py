"""The stand-in for NVIDIA's driver: built, told of a machine, and asked what it was called for."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("stand_in_libcuda.c")


def built(folder: Path, compiler: str) -> Path:
    """The library, in ``folder``."""
    path = folder / "libcuda.so"
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", SOURCE, "-o", path]
    subprocess.run(command, check=True)
    return path


class StandIn:
    """The stand-in's machine, which a test changes, and the calls that it has noted."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._loaded = ctypes.CDLL(self.path)
        self._loaded.stand_in_reset()

    def set(self, **values: int) -> None:
        for name, value in values.items():
            kind = ctypes.c_void_p if name == "current" else ctypes.c_int
            kind.in_dll(self._loaded, f"stand_in_{name}").value = value

    def fail(self, function: str, status: int) -> None:
        """That function fails with that status from now on."""
        name = ctypes.create_string_buffer(function.encode(), 64)
        ctypes.memmove(
            ctypes.addressof(ctypes.c_char.in_dll(self._loaded, "stand_in_failing")), name, 64
        )
        self.set(status=status)

    @property
    def current(self) -> int | None:
        return ctypes.c_void_p.in_dll(self._loaded, "stand_in_current").value

    def calls(self) -> list[str]:
        """The calls since the last time."""
        text = (ctypes.c_char * (1 << 16)).in_dll(self._loaded, "stand_in_calls")
        lines = text.value.decode().splitlines()
        text[0] = b"\0"
        return lines


def passed(call: str) -> list[bytes]:
    """The parameters of a launch, each as it lies in memory."""
    words = call.partition(" parameters ")[2].split()
    return [bytes.fromhex(word)[::-1] for word in words]
