"""Programs are linked statically where the C library lets them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.compiler.lower.cross import Compiler
from butterflyc.compiler.lower.link import LinkFailed, c_compiler, link_program

SOURCES = {"main.c": b'#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'}


def compiler(folder: Path, hermetic: bool) -> Compiler:
    """The system's, which has no static C library."""
    command = c_compiler()
    script = folder / "cc"
    script.write_text(
        '#!/bin/sh\ncase " $* " in *" -static "*) echo no libc.a >&2; exit 1;; esac\n'
        f'exec {" ".join(command)} "$@"\n'
    )
    script.chmod(0o755)
    return Compiler((str(script),), (str(script), "-static"), hermetic)


def test_without_a_static_c_library(tmp_path: Path, needs_tool: Callable[..., str]) -> None:
    """The shared one is taken, and it is said so; the program runs."""
    needs_tool("cc")
    told: list[str] = []
    (tmp_path / "hello").write_bytes(
        link_program(SOURCES, [], compiler(tmp_path, False), told.append)
    )
    (tmp_path / "hello").chmod(0o755)
    done = subprocess.run([tmp_path / "hello"], capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"
    assert told == ["linking once more, against the system's shared C library"]


def test_what_must_be_the_same_everywhere_is_not_replaced(tmp_path: Path) -> None:
    """A compiler that makes the same on every machine makes this program or fails."""
    with pytest.raises(LinkFailed, match=r"no libc\.a"):
        link_program(SOURCES, [], compiler(tmp_path, True))
