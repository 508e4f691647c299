"""Programs on another machine, by the system's own ssh and scp.

What goes to the other side's shell is made of fixed words, names of ours and a folder that its own
mktemp named; nothing that a user gave.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from ..errors import Incompatible, ToolFailed, ToolMissing, UsageError
from .hosted import Files, Finished

PREFIX = "ssh:"
# A user and a host, or an alias of ~/.ssh/config; a port.
WORD = r"[A-Za-z0-9_][\w.-]*"
DESTINATION = re.compile(rf"(?P<host>(?:{WORD}@)?{WORD})(?::(?P<port>\d{{1,5}}))?", re.ASCII)
MADE = re.compile(rf"(?:/{WORD})*/butterflyc\.\w{{8}}", re.ASCII)
PROGRAM = "program"
# Never ask for a password, and notice a line that broke.
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=4"),
)
SHORT_SECONDS, COPY_SECONDS, RUN_SECONDS = 60.0, 900.0, 3600.0
SSH_FAILED, CANNOT_EXECUTE = 255, 126


@attrs.frozen
class Remote:
    """The machine that ssh calls ``host``. Raises ToolMissing without ssh and scp."""

    host: str
    port: str | None = None

    def __attrs_post_init__(self) -> None:
        for tool in ("ssh", "scp"):
            if not shutil.which(tool):
                raise ToolMissing(
                    f"{tool} is not installed, by which programs reach another machine",
                    help="apt-get install openssh-client",
                )

    @property
    def name(self) -> str:
        return self.host

    def run(
        self,
        program: bytes,
        words: Sequence[str],
        reads: Files,
        writes: Sequence[str],
    ) -> Finished:
        """See `Place`. The folder there is removed again, also after a failure.

        Raises ToolFailed if the machine is not reached, a copy fails or a time limit is over,
        Incompatible if it cannot run such programs.
        """
        folder = self._make_folder()
        try:
            with TemporaryDirectory(prefix="butterflyc-") as made:
                here = Path(made)
                for name, content in {**reads, PROGRAM: program}.items():
                    (here / name).write_bytes(content)
                (here / PROGRAM).chmod(0o700)
                sent = [str(here / name) for name in (PROGRAM, *reads)]
                self._copy([*sent, f"{self.host}:{folder}/"], "to")
                ended = self._execute(folder, words)
                if ended.status != 0:
                    return ended
                self._copy([*(f"{self.host}:{folder}/{name}" for name in writes), made], "from")
                files = {name: (here / name).read_bytes() for name in writes}
                return attrs.evolve(ended, files=files)
        finally:
            # What happened before counts: if the line broke, nothing can be removed there.
            with suppress(ToolFailed):
                self._ssh(["rm", "-rf", "--", folder], SHORT_SECONDS)

    def _make_folder(self) -> str:
        done = self._ssh(["mktemp", "-d", "-t", "butterflyc.XXXXXXXX"], SHORT_SECONDS)
        if done.returncode != 0:
            why = "cannot be reached" if done.returncode == SSH_FAILED else "has no folder for us"
            raise ToolFailed(
                f"{self.host} {why}: {_said(done)}",
                help=f"`ssh {self.host} true` must work without a password: a key, and a host "
                "that is known",
            )
        # A shell's start-up files may print something as well.
        folders = [line for line in done.stdout.splitlines() if MADE.fullmatch(line)]
        if len(folders) != 1:
            raise ToolFailed(
                f"{self.host} answered {done.stdout[:200]!r} in place of a new folder's name",
                help=f"see what `ssh {self.host} mktemp -d -t butterflyc.XXXXXXXX` prints",
            )
        return folders[0]

    def _copy(self, paths: Sequence[str], way: str) -> None:
        port = ["-P", self.port] if self.port else []
        done = _run(["scp", "-q", "-p", *OPTIONS, *port, "--", *paths], COPY_SECONDS)
        if done.returncode != 0:
            raise ToolFailed(
                f"cannot copy {way} {self.host}: {_said(done)}",
                help="a full disk is the most frequent cause: see `df` there",
            )

    def _execute(self, folder: str, words: Sequence[str]) -> Finished:
        # Names of files are relative: they mean the folder.
        for word in words:
            assert re.fullmatch(f"(?:--)?{WORD}", word, re.ASCII), f"{word!r} is no word of ours"
        command = ["cd", folder, "&&", f"./{PROGRAM}", *words]
        done = self._ssh(command, RUN_SECONDS)
        if done.returncode == SSH_FAILED:
            raise ToolFailed(f"{self.host} was lost: {_said(done)}")
        if done.returncode == CANNOT_EXECUTE or "exec format error" in done.stderr.lower():
            raise Incompatible(
                f"{self.host} cannot execute the program: {_said(done)}",
                help="compile for its processor: `uname -m` there says which it has; where that "
                "is right, its folder for temporary files may allow no programs: set TMPDIR there",
            )
        return Finished(done.returncode, done.stderr.strip(), {})

    def _ssh(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        port = ["-p", self.port] if self.port else []
        return _run(["ssh", *OPTIONS, *port, "--", self.host, *command], seconds)


def remote(place: str) -> Remote:
    """The machine of ``ssh:[user@]host[:port]``. Raises UsageError for another text."""
    match = DESTINATION.fullmatch(place.removeprefix(PREFIX))
    if not match:
        raise UsageError(
            f"'{place}' names no machine",
            help="--on ssh:user@host, ssh:host:port, or ssh:alias of your ~/.ssh/config",
        )
    return Remote(match["host"], match["port"])


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(
            f"{command[0]} took more than {seconds:g} s", help=f"it was: {shlex.join(command)}"
        ) from error


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a program wrote, where it says why."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"
