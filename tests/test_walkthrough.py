"""The excerpts of docs/walkthrough.md are what the compiler makes of examples/one_layer.py.

A comment ``<!-- stage: NAME ops: A B limit: N -->`` is followed by a block with the first N lines
of that stage whose op is named, digests shortened. ``pytest --update-golden`` rewrites the blocks.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import butterflyc as bc
from butterflyc.program import Program

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "walkthrough.md"
BLOCK = re.compile(r"(<!-- (stage|asm|driver)(.*?)-->\n)(?:```text\n.*?\n```\n)?", re.DOTALL)
WIDTH = 150

pytestmark = pytest.mark.slow


def compiled(mode: str) -> Program:
    model = f"{ROOT / 'examples' / 'one_layer.py'}:make"
    return bc.compile(model, target="x86-64-v3", mode=mode, name="layer")


def stage_lines(text: str, ops: set[str], limit: int) -> Iterator[str]:
    """The lines whose op is named, and ``...`` for each run of others."""
    skipped, shown = False, 0
    for line in text.splitlines():
        match = re.match(r"  %\S+ = (\w+)", line)
        if match and match[1] in ops and shown < limit:
            if skipped and shown:
                yield "  ..."
            yield shorten(line)
            skipped, shown = False, shown + 1
        elif match and match[1] not in ("constant", "reshape", "result"):
            skipped = True


def shorten(line: str) -> str:
    line = re.sub(r'digest = "[0-9a-f]+"', 'digest = ".."', line)
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def disassembly(library: bytes, wanted: list[str], objdump: str, folder: Path) -> Iterator[str]:
    """One run of the library's code in which the wanted instructions follow one another."""
    path = folder / "lib.so"
    path.write_bytes(library)
    command = [objdump, "-d", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [line.split("\t")[1].split("#")[0].strip() for line in text.splitlines() if "\t" in line]
    names = [line.split()[0] for line in code]
    for i in range(len(names)):
        if names[i : i + len(wanted)] == wanted:
            yield from code[i : i + len(wanted)]
            return


def test_the_excerpts_are_true(
    request: pytest.FixtureRequest, needs_tool: Callable[..., str], tmp_path: Path
) -> None:
    """Each block of the page is what the compiler gives now."""
    programs = {"f32": compiled("f32"), "a8": compiled("a8")}

    def block(match: re.Match[str]) -> str:
        head, kind, words = match[1], match[2], match[3]
        if kind == "driver":
            source = programs["f32"].artefact.section("kernels/layer.c").decode()
            calls = [line for line in source.splitlines() if re.match(r"  layer_k_", line)]
            lines = [*calls[:4], "  ..."]
        elif kind == "asm":
            library = programs["a8"].artefact.section("kernels/liblayer.so")
            wanted = words.split("ops:")[1].split()
            lines = list(disassembly(library, wanted, needs_tool("objdump"), tmp_path))
        else:
            stage, ops, limit = re.match(r": (\w+) ops: (.*) limit: (\d+)", words).groups()  # type: ignore[union-attr]
            lines = list(stage_lines(programs["f32"].ir(stage), set(ops.split()), int(limit)))
        assert lines, f"nothing to show for{words}"
        return head + "```text\n" + "\n".join(lines) + "\n```\n"

    page = PAGE.read_text()
    true = BLOCK.sub(block, page)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(true)
    assert true == PAGE.read_text(), "run pytest --update-golden and review the diff"


def test_the_example_is_recognised_and_right() -> None:
    """The example compiles to the fused form and agrees with PyTorch."""
    import torch

    from butterflyc.source import open_model
    from butterflyc.verify import relative_errors

    program = compiled("f32")
    assert program.census == {"layers": 1, "recognised": 1, "found": 4, "choosable": 4}
    source = open_model(f"{ROOT / 'examples' / 'one_layer.py'}:make")
    module, (x,) = source.module, source.examples.tensors
    with torch.no_grad():
        wanted = module(x).numpy()
    assert relative_errors(program(x.numpy()), wanted).max() <= 1e-5
