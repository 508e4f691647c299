"""Machine code is cut into the blocks and loops that its branches make."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import ToolFailed, ToolMissing
from butterflyc.compiler.run.machine_code import Instruction, disassemble

from .assembly import assembled

# Two loops, one in the other, behind a jump that may leave both out.
NESTED = """
  cbz x1, 3f
1: mov x2, #4
2: add x0, x0, x2
  subs x2, x2, #1
  b.ne 2b
  subs x1, x1, #1
  b.ne 1b
3: ret
"""


def test_cuts_blocks_at_branches_and_where_they_lead(llvm, tmp_path):
    """Blocks start at targets and behind branches; what may follow each is known."""
    code = assembled(tmp_path, NESTED)
    assert {a: (len(b.instructions), b.next) for a, b in code.blocks.items()} == {
        0: (1, (4, 28)),
        4: (1, (8,)),
        8: (3, (20, 8)),
        20: (2, (28, 4)),
        28: (1, ()),
    }


def test_finds_loops_inner_ones_first(llvm, tmp_path):
    """Each loop has its header and its blocks, the jump around them is of none."""
    loops = assembled(tmp_path, NESTED).loops
    assert [(loop.header, sorted(loop.blocks)) for loop in loops] == [(8, [8]), (4, [4, 8, 20])]


def test_a_jump_into_a_loop_is_no_loop_of_its_own(llvm, tmp_path):
    """A loop with two entries has no header, so it is none; nor is code that nothing comes to."""
    text = "cbz x0, 2f\n1: nop\n2: subs x0, x0, #1\n b.ne 1b\n ret\n3: nop\n b 3b\n"
    assert [loop.header for loop in assembled(tmp_path, text).loops] == []


@pytest.mark.parametrize(
    ("text", "mnemonic", "jumps"),
    [
        ("b 0f\n0: ret", "b", True),
        ("b.hi 0f\n0: ret", "b.hi", True),
        ("tbnz w1, #3, 0f\n0: ret", "tbnz", True),
        ("cbz x1, 0f\n0: ret", "cbz", True),
        ("bl 0f\n0: ret", "bl", False),
        ("adr x1, 0f\n0: ret", "adr", False),
        ("ldr q0, 0f\n0: ret", "ldr", False),
    ],
)
def test_tells_jumps_from_other_addresses(llvm, tmp_path, text, mnemonic, jumps):
    """Only a branch goes on at the address that it names, and an assembler need not reach it."""
    code = assembled(tmp_path, text)
    first = next(iter(code.blocks.values())).instructions[0]
    assert (first.mnemonic, first.place) == (mnemonic, 4)
    assert (first.target == 4) is jumps
    assert first.assembly.split()[-1] == "."


def test_other_code_is_its_own_assembly():
    """An instruction without an address is left as it is."""
    assert Instruction(0, "ldr q0, [x0, #0x10]").assembly == "ldr q0, [x0, #0x10]"


@given(st.lists(st.sampled_from(["nop", "b.ne", "b", "cbz x0,", "ret"]), min_size=1), st.data())
@settings(max_examples=25)
def test_blocks_hold_every_instruction_once(llvm, tmp_path_factory, names, data):
    """Whatever jumps where, the blocks are the code in order, and branches stand at their ends."""
    lines = []
    for i, name in enumerate(names):
        to = data.draw(st.integers(0, len(names) - 1)) if name not in ("nop", "ret") else ""
        lines.append(f".L{i}: {name} {f'.L{to}' if to != '' else ''}")
    code = assembled(tmp_path_factory.mktemp("code"), "\n".join(lines))
    found = [i for block in code.blocks.values() for i in block.instructions]
    assert [i.address for i in found] == [4 * i for i in range(len(names))]
    for at, block in code.blocks.items():
        assert at == block.address
        assert not any(i.ends_block for i in block.instructions[:-1])
        assert set(block.next) <= set(code.blocks)
        assert {i.target for i in block.instructions} - {None} <= set(block.next)
    for loop in code.loops:
        assert loop.header in loop.blocks


def test_missing_tools_name_their_package(tmp_path, monkeypatch):
    """Without LLVM the error says which package has it."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissing, match=r"llvm-objdump-19[^\n]*\n[^\n]*llvm-19"):
        disassemble(tmp_path / "code.o", "code")


def test_what_is_no_object_is_told(llvm, tmp_path):
    """A file that is no object ends in an error of the tool's, not in no code."""
    (tmp_path / "code.o").write_bytes(b"nothing")
    with pytest.raises(ToolFailed, match="llvm-objdump-19 failed"):
        disassemble(tmp_path / "code.o", "code")
