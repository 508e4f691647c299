"""What README.md and docs/ show is true: their ``python`` and ``console`` blocks are run.

Blocks of one page run in order, in a folder that holds only ``examples``, and Python blocks share
their names. In a console block a line ``$ command`` is run; the lines below it, if any, are what it
must print on stdout, where ``...`` stands for anything. Words behind the language:
``not-run: REASON`` shows a block only; ``slow`` puts its page among the slow tests.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from butterflyc.compiler.run.bare_metal import available

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(python|console)[ ]*(.*?)\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block: its language, the words behind it, its text, and the line it starts on."""

    language: str
    words: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """All ``python`` and ``console`` blocks of a page that are to be run."""
    found = [
        Block(match[1], match[2], match[3], page.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(page)
    ]
    return [block for block in found if not block.words.startswith("not-run: ")]


def run_page(name: str, page: str, folder: Path) -> None:
    """Run the page's blocks in ``folder``; the first that fails is told with its line."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{name}:{block.line}"
        assert block.words in ("", "slow"), f"{where}: '{block.words}' means nothing here"
        if block.language == "python":
            # Blank lines before the text give errors the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, name, "exec")
            exec(code, names)
        else:
            run_console(where, block.text, folder)


def run_console(where: str, text: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{where}: $ {command}\n{done.stdout}{done.stderr}"
        got, wanted = done.stdout.strip(), wanted.strip()
        same = doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)
        assert same or not wanted, f"{where}: $ {command}\n{got}\nis not\n{wanted}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            path,
            id=str(path.relative_to(ROOT)),
            marks=[pytest.mark.slow]
            if any(block.words == "slow" for block in blocks(path.read_text()))
            else [],
        )
        for path in PAGES
    ],
)
def test_page_is_true(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    needs_tool: Callable[..., str],
) -> None:
    """Every block of the page runs, and prints what the page shows."""
    if any("--on qemu" in block.text for block in blocks(page.read_text())):
        for missing in available("rv32imc"):
            needs_tool(missing.tool)
    if any("qemu-aarch64" in block.text for block in blocks(page.read_text())):
        for tool in ("qemu-aarch64", "aarch64-linux-gnu-gcc"):
            needs_tool(tool)
    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    run_page(str(page.relative_to(ROOT)), page.read_text(), tmp_path)


def page_of(*parts: str) -> str:
    return "\n".join(parts).replace("~~~", "```") + "\n"


def test_blocks_share_folder_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block sees what the blocks above it made; one that is not to be run is passed over."""
    monkeypatch.chdir(tmp_path)
    page = page_of(
        "~~~python", "x = 41", "~~~", "text",
        "~~~python", "open('x', 'w').write(str(x + 1))", "~~~",
        "~~~console", "$ cat x", "4...", "$ true", "~~~",
        "~~~console not-run: would fail", "$ false", "~~~",
        "~~~text", "$ false", "~~~",
    )  # fmt: skip
    run_page("page.md", page, tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (("~~~console", "$ false", "~~~"), "page.md:2: \\$ false"),
        (("~~~console", "$ echo one", "two", "~~~"), "is not\n *two"),
        (("", "~~~console quickly", "$ true", "~~~"), "page.md:3: 'quickly' means nothing"),
    ],
)
def test_wrong_block_is_told(tmp_path: Path, text: tuple[str, ...], fault: str) -> None:
    """A command that fails or prints something else is told with its line."""
    with pytest.raises(AssertionError, match=fault):
        run_page("page.md", page_of(*text), tmp_path)


def test_wrong_python_has_the_line_of_the_page(tmp_path: Path) -> None:
    """An error in a Python block points into the page."""
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("page.md", page_of("", "~~~python", "1 / 0", "~~~"), tmp_path)
    assert caught.traceback[-1].lineno + 1 == 3
    assert str(caught.traceback[-1].path) == "page.md"
