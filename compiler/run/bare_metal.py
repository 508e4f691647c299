"""C programs on machines without an operating system: built, run in QEMU, and counted exactly.

A program includes ``hal.h`` (in ``machines/``), which has output, a count of the instructions
executed and the depth of the stack, and ends with main's return value. Each machine counts the
same on every run and every host.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from ..errors import ButterflycError, ToolMissing, UsageError
from ..files import make_folder
from .machine import MACHINES, Machine, Missing, load_machine
from .tools import limited, run_tool

SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.[chs]")
# hal_trap's last words, behind a character that texts do not hold.
TRAP = re.compile(rb"\n\x18trap (\d+) (\d+)\n\Z")
MAX_OUTPUT_BYTES = 64 << 20
SHOWN_LINES = 10


class ProgramFailed(ButterflycError):
    """A program on a bare machine trapped, did not end in time, or returned other than 0."""

    code = "BF994"


@attrs.frozen
class Output:
    """How a program ended: what main returned (0 to 255), and the bytes that it wrote."""

    status: int
    data: bytes

    @property
    def text(self) -> str:
        """The bytes as UTF-8; those that are none are shown as ``\\xNN``."""
        return self.data.decode(errors="backslashreplace")

    def checked(self) -> Output:
        """The same. Raises ProgramFailed unless the status is 0."""
        if self.status != 0:
            raise ProgramFailed(f"the program returned {self.status}{_last_lines(self.data)}")
        return self


@attrs.frozen(order=True)
class Symbol:
    """A symbol of an object: ``kind`` is nm's letter (``T`` code, ``U`` undefined, ...)."""

    name: str
    kind: str
    size: int


@attrs.frozen
class Sizes:
    """Bytes of an object: ``text`` (code and constants), ``data``, ``bss``."""

    text: int
    data: int
    bss: int


def available(machine: str) -> list[Missing]:
    """The tools that ``machine`` needs and that are not there, each with its Debian package.

    Empty if programs can be built and run. Raises UnknownName.
    """
    return load_machine(machine).missing()


def build(
    machine: str,
    sources: Mapping[str, str],
    folder: Path,
    optimise: str = "-O2",
    flags: Sequence[str] = (),
) -> Path:
    """The program made of ``sources`` (name to text; ``.c``, ``.h`` and ``.s``), an ELF file.

    It lies in ``folder``, as do the sources and the object of each, ``NAME.o`` (``main.c.o``).
    The language is C99; what is emulated has at least 4 MB each for code with constants and for
    data, and 256 KiB of stack. There is C's library, but on ``esp32`` only a part of <string.h>.
    ``flags`` go to the C compiler. The machine's own code is always built with -O2.
    Raises UnknownName, ToolMissing, UsageError for a bad file name, CannotWrite, ToolFailed with
    the first lines of what the compiler or the linker said.
    """
    objects = compile_sources(machine, sources, folder, optimise, flags)
    return link(machine, objects, folder, f"{machine}.elf")


def compile_sources(
    machine: str,
    sources: Mapping[str, str],
    folder: Path,
    optimise: str = "-O2",
    flags: Sequence[str] = (),
) -> list[str]:
    """The names of the objects of ``sources`` in ``folder``, as in `build`, which may be linked."""
    record = load_machine(machine)
    _need_tools(record)
    for name in sources:
        if not SOURCE_NAME.fullmatch(name) or name == "hal.h":
            raise UsageError(
                f"a source cannot be named {name!r}",
                help="a plain name that ends in .c, .h or .s, and is not hal.h",
            )
    make_folder(folder)
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = [name for name in sources if not name.endswith(".h")]
    return [_object(record, name, folder, optimise, flags) for name in files]


def link(machine: str, objects: Sequence[str], folder: Path, elf: str) -> Path:
    """The program ``elf`` made of ``objects`` in ``folder`` and the machine's own code.

    Raises ToolFailed with what the linker said, as where it does not fit.
    """
    own = [f"machine.{i}.o" for i in range(len(load_machine(machine).sources))]
    for name, content in zip(own, _machine_objects(machine), strict=True):
        (folder / name).write_bytes(content)
    command = load_machine(machine).link
    run_tool(_filled(command, {"result": elf}, {"objects": [*own, *objects]}), folder)
    return folder / elf


def compiler_version(machine: str) -> str:
    """The C compiler of ``machine``, as its first line of ``--version``. Raises ToolMissing."""
    record = load_machine(machine)
    _need_tools(record)
    return run_tool([record.step(".c").command[0], "--version"], MACHINES).splitlines()[0]


def run(machine: str, elf: Path, timeout: float = 60.0) -> Output:
    """What the program in ``elf`` writes and returns, in at most ``timeout`` seconds.

    Raises ToolMissing, UsageError if ``elf`` is no program for this machine, ProgramFailed if it
    traps, is not done in time or writes more than 64 MiB, ToolFailed if QEMU itself fails.
    """
    record = load_machine(machine)
    _need_tools(record)
    _check_elf(record, elf)
    command = _filled(record.emulator, {"elf": str(elf.absolute())}, {})
    ended = limited(command, timeout, MAX_OUTPUT_BYTES)
    if ended.why:
        raise ProgramFailed(
            f"the program {ended.why}{_last_lines(ended.data)}",
            help="look for a loop that does not end, or give it more time",
        )
    if trap := TRAP.search(ended.data):
        cause, address = int(trap[1]), int(trap[2])
        name = record.causes.get(cause, "exception")
        raise ProgramFailed(
            f"the program trapped: {name} ({cause}) at {address:#010x}"
            f"{_last_lines(ended.data[: trap.start()])}"
        )
    return Output(ended.status, ended.data)


def object_symbols(machine: str, path: Path) -> list[Symbol]:
    """The symbols of an object or a program, sorted by name. Raises ToolMissing, ToolFailed."""
    record = load_machine(machine)
    _need_tools(record)
    lines = run_tool([record.nm, "--format=posix", str(path.absolute())], path.parent).splitlines()
    # NAME KIND [VALUE [SIZE]], the numbers in hexadecimal.
    rows = [[*line.split(), "0", "0"] for line in lines if line]
    return sorted(Symbol(row[0], row[1], int(row[3], 16)) for row in rows)


def sizes(machine: str, path: Path) -> Sizes:
    """How large an object or a program is. Raises ToolMissing, ToolFailed."""
    record = load_machine(machine)
    _need_tools(record)
    printed = run_tool([record.size, str(path.absolute())], path.parent)
    return Sizes(*(int(number) for number in printed.splitlines()[1].split()[:3]))


def _need_tools(machine: Machine) -> None:
    if missing := machine.missing():
        packages = sorted({item.package for item in missing})
        tools = ", ".join(f"{item.tool} (Debian package {item.package})" for item in missing)
        raise ToolMissing(
            f"programs for {machine.name} need what is not installed: {tools}",
            help=f"apt-get install --no-install-recommends {' '.join(packages)}",
        )


@cache
def _machine_objects(name: str) -> tuple[bytes, ...]:
    """The objects of the machine's own code, in the order of its sources."""
    machine = load_machine(name)
    with TemporaryDirectory() as folder:
        return tuple(
            (Path(folder) / _object(machine, str(MACHINES / path), Path(folder))).read_bytes()
            for path in machine.sources
        )


def _object(
    machine: Machine, source: str, folder: Path, optimise: str = "-O2", flags: Sequence[str] = ()
) -> str:
    """The name of the object made of ``source`` in ``folder``, step by step."""
    at, name = source, Path(source).name
    while not at.endswith(".o"):
        step = machine.step(Path(at).suffix)
        result = f"{name}{step.makes}"
        words = {"source": at, "result": result, "optimise": optimise}
        run_tool(_filled(step.command, words, {"flags": flags}), folder)
        at = result
    return at


def _filled(
    command: Sequence[str], words: Mapping[str, str], lists: Mapping[str, Sequence[str]]
) -> list[str]:
    """``command`` with each ``{name}`` replaced; one of ``lists`` by any number of words."""
    filled: list[str] = []
    for word in command:
        if (name := word.strip("{}")) in lists:
            filled += lists[name]
        else:
            filled.append(word.format(machines=MACHINES, **words))
    return filled


def _check_elf(machine: Machine, elf: Path) -> None:
    # QEMU would hang on a missing file, and run any other file as code.
    try:
        with elf.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise UsageError(f"cannot read {elf}: {error.strerror or error}") from error
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise UsageError(f"{elf} is no ELF file", help="give what build() returned")
    (found,) = struct.unpack_from("<H", head, 18)
    if found != machine.elf_machine:
        raise UsageError(
            f"{elf} is for ELF machine {found}, {machine.name} is {machine.elf_machine}",
            help="build it for this machine",
        )


def _last_lines(data: bytes) -> str:
    lines = data[-4096:].decode(errors="backslashreplace").splitlines()[-SHOWN_LINES:]
    return "\n".join(["; its last output:", *lines]) if lines else "; it wrote nothing"
