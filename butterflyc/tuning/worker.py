"""A child process that measures: what crashes or hangs there is told, and another one goes on.

The child is this file, run as a module. It reads pickles from its parent, and from nobody else:
a core and where it is, then what is `Asked` of its meter; and writes an `Outcome` for each.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import BinaryIO, cast

import attrs

from ..compiler.errors import ToolFailed
from ..targets.registry import Core
from .measure import HERE, Asked, Reading

# Seconds to import what compiles, on a slow machine.
STARTING = 120.0
# How long a fault may be in a record.
LONGEST = 300
# How faults begin that may be of the machine, and not of the way: it was busy, or out of memory.
LATE, DIED = "was not done within", "ended the process that measured"


@attrs.frozen
class Outcome:
    """What was read, or the ``fault`` of what was asked."""

    reading: Reading | None = None
    fault: str = ""


class Worker:
    """Measures for ``core`` at ``place``, each within ``limit`` seconds; for one thread alone."""

    def __init__(self, core: Core, limit: float, place: str = HERE) -> None:
        self._subject, self._limit = (core, place), limit
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, asked: Asked) -> Outcome:
        """What the meter of the core says; a fault where the child died or was not done in time.

        Raises ToolFailed if no child starts, which says nothing of the way.
        """
        if self._child is None:
            started = self._start()
            if started.fault:
                raise ToolFailed(
                    f"a process that measures does not start: {started.fault}",
                    help="what it has printed says why; what was measured before is kept",
                )
        return self._exchange(asked, self._limit)

    def close(self) -> None:
        """Ends the child and all that it has started, whatever they do."""
        if self._child is not None:
            # Its group may be there without it, or be gone with it.
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    # What was not sent yet cannot be sent any more.
                    with suppress(BrokenPipeError):
                        pipe.close()
            self._child.wait()
            self._child = None

    def _start(self) -> Outcome:
        command = [sys.executable, "-m", __name__]
        # A session of its own: ^C is for the parent, which ends the child. What children of the
        # child still run then goes with its group.
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return self._exchange(self._subject, STARTING)

    def _exchange(self, message: object, limit: float) -> Outcome:
        child = self._child
        assert child is not None, "it was started"
        assert child.stdin is not None, "it is a pipe"
        assert child.stdout is not None, "it is a pipe"
        try:
            pickle.dump(message, child.stdin)
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], limit)
            if ready:
                return cast(Outcome, pickle.load(child.stdout))
            fault = f"{LATE} {limit:g} seconds"
        except (OSError, EOFError, pickle.UnpicklingError):
            fault = f"{DIED}: {_how(child)}"
        self.close()
        return Outcome(fault=fault)


def _how(child: subprocess.Popen[bytes]) -> str:
    """By what a child ended that does not answer."""
    try:
        status = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it does not answer"
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def main() -> None:
    """The child: answers until its parent has no more to ask, or is gone."""
    requests, answers = sys.stdin.buffer, _own_output()
    core, place = pickle.load(requests)
    from .meters import meter_of

    meter = meter_of(core, place)
    _answer(answers, Outcome())
    while True:
        try:
            asked = pickle.load(requests)
        except EOFError:
            return
        try:
            outcome = Outcome(meter.read(asked))
        except Exception as error:  # whatever a kernel does to a compiler is a fault of that kernel
            outcome = Outcome(fault=f"{type(error).__name__}: {error}"[:LONGEST])
        with suppress(BrokenPipeError):  # its parent is gone, which the next request tells
            _answer(answers, outcome)


def _own_output() -> BinaryIO:
    """Standard output for answers alone: what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def _answer(answers: BinaryIO, outcome: Outcome) -> None:
    pickle.dump(outcome, answers)
    answers.flush()


if __name__ == "__main__":
    # As a module of the package: pickles name the classes there.
    from .worker import main as child

    child()
