"""What a GPU kernel uses, read from its machine code by cuobjdump, which comes with Triton."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from ..errors import ToolFailed, ToolMissing
from .tools import run_tool

# Instructions of tensor cores: of floats, of integers; on Ampere, Hopper and Blackwell.
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "IGMMA", "UTCIMMA")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
# An instruction stands behind its address, and maybe the predicate that it depends on.
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@attrs.frozen
class Resources:
    """What one kernel uses: registers a thread, bytes of stack a thread, and its instructions.

    ``shared`` are the bytes that the machine code itself sets aside; what a launch asks for comes
    on top (`Code.shared`). ``opcodes`` are full names with how often each stands in the code.
    """

    registers: int
    stack: int
    shared: int
    opcodes: Mapping[str, int]

    def count(self, *names: str) -> int:
        """How many instructions are of ``names``, as written before the first dot."""
        return sum(n for opcode, n in self.opcodes.items() if opcode.split(".")[0] in names)

    @property
    def spills(self) -> int:
        """Loads and stores of a thread's own memory: of what registers do not hold."""
        return self.count("LDL", "STL")

    @property
    def barriers(self) -> int:
        return self.count("BAR")

    @property
    def tensor_core(self) -> int:
        """How many instructions are for tensor cores."""
        return self.count(*TENSOR_CORES)


def resources(cubin: bytes) -> Resources:
    """What the kernel in ``cubin`` uses. Raises ToolMissing, and ToolFailed if it is no cubin."""
    tool = str(cuobjdump())
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel.cubin").write_bytes(cubin)
        usage = _USAGE.search(run_tool([tool, "-res-usage", "kernel.cubin"], folder))
        opcodes = Counter(_OPCODE.findall(run_tool([tool, "-sass", "kernel.cubin"], folder)))
    if usage is None or not opcodes:
        raise ToolFailed(f"{tool} finds no kernel in {len(cubin)} bytes of machine code")
    registers, stack, shared = map(int, usage.groups())
    return Resources(registers, stack, shared, dict(sorted(opcodes.items())))


def cuobjdump() -> Path:
    """Triton's program of that name, or CUDA's. Raises ToolMissing."""
    package = find_spec("triton")
    if package and package.origin:
        own = Path(package.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if own.is_file():
            return own
    found = shutil.which("cuobjdump")
    if found is None:
        raise ToolMissing(
            "machine code of GPUs is read by cuobjdump, which is not installed",
            help='pip install "butterflyc[gpu]"',
        )
    return Path(found)
