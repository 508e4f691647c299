"""Static libraries are those of GNU ar, byte for byte."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.compiler.errors import Damaged
from butterflyc.compiler.lower.elf import architecture_of, defined_symbols
from butterflyc.compiler.lower.link import c_compiler
from butterflyc.compiler.lower.static_library import static_library

SOURCES = {
    "a.o": "int first(void) { return 1; } static int own; int *kept(void) { return &own; }",
    "exactly_15_ab.o": "int second = 2;",
    "a_name_that_is_longer_than_fifteen.o": "__attribute__((weak)) int third(void) { return 3; }",
    "another_long_name_of_an_object.o": "static int nobody_sees; int *look(void)"
    " { return &nobody_sees; } const char odd[3] = {1, 2, 3};",
}


def objects(folder: Path, sources: dict[str, str]) -> dict[str, bytes]:
    """Each source, compiled."""
    for name, text in sources.items():
        (folder / "x.c").write_text(text)
        command = [*c_compiler(), "-c", "x.c", "-o", name]
        subprocess.run(command, cwd=folder, check=True)
    return {name: (folder / name).read_bytes() for name in sources}


@pytest.mark.parametrize("names", [list(SOURCES), list(SOURCES)[:2], list(SOURCES)[2:3]])
def test_the_bytes_of_ar(names: list[str], tmp_path: Path, needs_tool: Callable[..., str]) -> None:
    """Names long and short, sizes even and odd: what `ar rcsD` writes."""
    made = objects(tmp_path, {name: SOURCES[name] for name in names})
    subprocess.run([needs_tool("ar"), "rcsD", "lib.a", *made], cwd=tmp_path, check=True)
    assert static_library(made) == (tmp_path / "lib.a").read_bytes()


def test_an_object_gives_what_is_not_its_own(tmp_path: Path) -> None:
    """Functions and variables that others see are told, static ones are not."""
    made = objects(tmp_path, SOURCES)
    assert sorted(defined_symbols(made["a.o"])) == ["first", "kept"]
    assert defined_symbols(made["a_name_that_is_longer_than_fifteen.o"]) == ["third"]


def test_what_is_no_object_is_refused() -> None:
    """Other files, and those cut short, are told as damaged."""
    for content in (b"hello", b"\x7fELF"):
        with pytest.raises(Damaged):
            static_library({"x.o": content})
        with pytest.raises(Damaged):
            architecture_of(content)
