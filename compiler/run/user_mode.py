"""Programs for Linux on another processor, run here by QEMU's user mode."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from ..errors import ToolFailed, ToolMissing
from .hosted import Files, Finished

EMULATORS = ("qemu-aarch64", "qemu-arm")
RUN_SECONDS = 3600.0


@attrs.frozen
class UserMode:
    """The emulator of that name, and which of its processors it is. Raises ToolMissing."""

    emulator: str
    cpu: str | None
    seconds: float = RUN_SECONDS
    path: str = attrs.field(init=False)

    @path.default
    def _find(self) -> str:
        for name in (self.emulator, f"{self.emulator}-static"):
            if found := shutil.which(name):
                return found
        raise ToolMissing(
            f"{self.emulator} is not installed, which runs programs of other processors",
            help="apt-get install qemu-user",
        )

    @property
    def name(self) -> str:
        return self.emulator

    def run(
        self,
        program: bytes,
        words: Sequence[str],
        reads: Files,
        writes: Sequence[str],
    ) -> Finished:
        """See `Place`. Raises ToolFailed if it takes longer than an hour."""
        with TemporaryDirectory(prefix="butterflyc-") as made:
            folder = Path(made)
            for name, content in {**reads, "program": program}.items():
                (folder / name).write_bytes(content)
            (folder / "program").chmod(0o700)
            cpu = ["-cpu", self.cpu] if self.cpu else []
            try:
                done = subprocess.run(
                    [self.path, *cpu, "./program", *words],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="backslashreplace",
                    check=False,
                    timeout=self.seconds,
                )
            except subprocess.TimeoutExpired as error:
                raise ToolFailed(f"{self.emulator} took more than {self.seconds:g} s") from error
            ok = done.returncode == 0
            files = {name: (folder / name).read_bytes() for name in writes} if ok else {}
            return Finished(done.returncode, done.stderr.strip(), files)
