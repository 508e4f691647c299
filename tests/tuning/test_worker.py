"""A process that measures may crash, hang or be wrong: it is told, and the next one works."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from butterflyc.compiler.errors import ToolFailed
from butterflyc.targets.registry import load_core
from butterflyc.tuning.engine import Local, engine
from butterflyc.tuning.measure import HERE, Asked, WrongResult, trying
from butterflyc.tuning.meters import meter_of
from butterflyc.tuning.search import Way
from butterflyc.tuning.worker import Worker

from .small import LINEAR, spec

WAY = Way("linear", {})
JOB = Asked(LINEAR, WAY, WAY, rounds=1)
# It would take days.
ENDLESS = Asked(LINEAR, WAY, WAY, rounds=10**7)
# x @ w by a kernel that computes x @ w.T.
WRONG = Asked(spec("matmul", "f32 4 4, f32 4 4", "f32 4 4"), WAY, WAY)
SOON = 10.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    """One that has started, for what leaves it alive."""
    worker = Worker(load_core("host"), 60.0)
    yield worker
    worker.close()


def child_of(worker: Worker) -> int:
    assert worker._child is not None
    return worker._child.pid


def is_there(pid: int) -> bool:
    """Whether it runs, or is not yet waited for by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether it is ``done`` in that time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def check_works(worker: Worker) -> None:
    outcome = worker.read(JOB)
    assert not outcome.fault
    assert outcome.reading is not None
    assert 0 < outcome.reading.value < 1e-3


def test_readings_come_back(shared: Worker) -> None:
    """A process measures one way after another."""
    check_works(shared)
    first = child_of(shared)
    other = Asked(LINEAR, Way("linear", {"tile_rows": 1}), WAY, 1.0, rounds=3)
    outcome = shared.read(other)
    assert outcome.reading is not None
    assert 0.1 < outcome.reading.value < 20, "in the default way's time, which is 1 here"
    assert outcome.reading.spread >= 0
    assert child_of(shared) == first


def test_wrong_results_disqualify(shared: Worker) -> None:
    """A kernel that computes another op is told, and how far off it is; the process goes on."""
    outcome = shared.read(WRONG)
    assert outcome.reading is None
    assert outcome.fault.startswith("WrongResult: result 0 is off by")
    check_works(shared)


def test_results_are_compared_with_the_ops() -> None:
    """Results that are the op's are right; others, and too few, are not."""
    tried = trying(LINEAR)
    tried.check(tried.wanted)
    for results in ((), (tried.wanted[0] + 1,)):
        with pytest.raises(WrongResult):
            tried.check(results)


def test_what_a_compiler_refuses_is_told(shared: Worker) -> None:
    """Any error is a fault of the way that was asked for, with its kind and in few words."""
    outcome = shared.read(Asked(LINEAR, Way("linear", {"tile_rows": 0}), WAY, 1.0))
    kind, _, text = outcome.fault.partition(": ")
    assert kind.isidentifier()
    assert text
    assert len(outcome.fault) <= 300
    check_works(shared)


@pytest.mark.parametrize("name", ["SIGSEGV", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_a_crash_is_told(shared: Worker, name: str) -> None:
    """With the signal; the next job has another process, and works."""
    check_works(shared)
    pid = child_of(shared)

    def kill() -> None:
        time.sleep(0.3)
        os.kill(pid, getattr(signal, name))

    thread = Thread(target=kill)
    thread.start()
    outcome = shared.read(ENDLESS)
    thread.join()
    assert outcome.fault == f"ended the process that measured: {name}"
    check_works(shared)
    assert child_of(shared) != pid


def test_a_job_beyond_its_limit_is_ended(shared: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told how long it had; the next job works."""
    check_works(shared)
    pid = child_of(shared)
    with monkeypatch.context() as hurried:
        hurried.setattr(shared, "_limit", 0.5)
        assert shared.read(ENDLESS).fault == "was not done within 0.5 seconds"
    assert not is_there(pid)
    check_works(shared)


OWNER = """
import pickle, sys
from butterflyc.targets.registry import load_core
from butterflyc.tuning.worker import Worker

job, last = pickle.loads(bytes.fromhex(sys.argv[1]))
worker = Worker(load_core("host"), 60.0)
assert not worker.read(job).fault
print(worker._child.pid, flush=True)
if last:
    worker.read(last)
sys.stdin.read()
"""


def owner_of(*arguments: str) -> subprocess.Popen[str]:
    """A process that has a worker, and says by which id."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, *arguments], stdin=pipe, stdout=pipe, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False])
def test_no_orphan_stays(busy: bool) -> None:
    """Where a tuner is killed, its processes end, also one that measures just then."""
    last = Asked(LINEAR, WAY, WAY, rounds=100) if busy else None
    owner = owner_of(pickle.dumps((JOB, last)).hex())
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_there(pid)
    if busy:
        time.sleep(0.3)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert within(SOON, lambda: not is_there(pid))


CHILD = """
import subprocess, time
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""


def test_what_a_child_runs_ends_with_it() -> None:
    """An emulator that a process has started, and that does not end, does not outlive it."""
    worker, pipe = Worker(load_core("host"), 0.2), subprocess.PIPE
    worker._child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, start_new_session=True
    )
    assert worker._child.stdout is not None
    pid = int(worker._child.stdout.readline())
    assert is_there(pid)
    assert worker.read(JOB).fault == "was not done within 0.2 seconds"
    assert within(SOON, lambda: not is_there(pid))


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error, not as a fault of what was asked for: another time it may start."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ToolFailed, match=r"does not start: .* status 1"):
        Worker(load_core("host"), 1.0).read(JOB)
    with closing(Local(load_core("host"), 1, 60.0)) as local:
        local.submit("job", JOB)
        with pytest.raises(ToolFailed):
            local.finished(60.0)


@pytest.mark.slow
def test_an_engine_names_what_is_done() -> None:
    """By the keys that it was given; nothing is done before its time, or when all is closed."""
    with closing(Local(load_core("host"), 1, 60.0)) as local:
        local.submit("bad", WRONG)
        local.submit("good", JOB)
        found = dict(filter(None, (local.finished(60.0) for _ in range(2))))
        assert found["bad"].fault
        assert found["good"].reading
        local.submit("endless", ENDLESS)
        assert local.finished(0.1) is None
        pid = child_of(local._workers[0])
    assert within(SOON, lambda: not is_there(pid))


def test_an_engine_may_be_as_wide_as_the_machine() -> None:
    """One process for each core, where they do not disturb each other; none starts for nothing."""
    cores = len(os.sched_getaffinity(0))
    for target, width in (("host", 1), ("rv32imc", cores)):
        core = load_core(target)
        with engine("local", core, HERE, meter_of(core), "") as made:
            assert made.width == width
