"""Kernels timed on a board that ssh reaches, for which a stand-in is here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.bench.kernels import dense_spec
from butterflyc.compiler.errors import ToolFailed, Unsupported, UsageError
from butterflyc.compiler.lower import cross
from butterflyc.compiler.run.native import cpu_name
from butterflyc.targets.registry import load_core
from butterflyc.tuning.calls import key_of
from butterflyc.tuning.database import Database
from butterflyc.tuning.engine_ray import check_address
from butterflyc.tuning.measure import Asked
from butterflyc.tuning.meters import meter_of, task_of, tools
from butterflyc.tuning.records import records_for
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import Task, Trial
from butterflyc.tuning.worker import Worker

STAND_INS = Path(__file__).parents[1] / "targets" / "stand_ins" / "ssh"
CORE = load_core("cortex-a53")
SPEC = dense_spec(4, 16, 8)
DEFAULT, OTHER = Way("linear", {}), Way("linear", {"tile_rows": 1, "tile_vectors": 2})


@pytest.fixture
def board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_tool: Callable[..., str]
) -> Callable[[str], str]:
    """``board(name)``: the address of a board that is called so, and behaves so."""
    needs_tool("qemu-aarch64")
    if not cross.find_spec("ziglang"):
        needs_tool("aarch64-linux-gnu-gcc")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(STAND_INS), os.environ["PATH"]]))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return lambda name: f"ssh:pi@{name}"


def test_a_board_times(board: Callable[[str], str]) -> None:
    """A time of the default way, and of another one in its figure; by the board's name, alone."""
    meter = meter_of(CORE, board("raspberry"))
    task = task_of(meter)
    assert (task.target, task.method) == ("cortex-a53", "time")
    assert task.features[0], "it has a name"
    first = meter.read(Asked(SPEC, DEFAULT, DEFAULT, rounds=3))
    assert first.value > 0
    # Both are the same program to an emulator, but for noise.
    told = meter.read(Asked(SPEC, OTHER, DEFAULT, reference=100.0, rounds=3))
    assert 10 < told.value < 1000
    with pytest.raises(UsageError, match="times are measured on this machine alone"):
        check_address("ray", meter.alone)


def test_a_worker_reaches_a_board(board: Callable[[str], str]) -> None:
    """A process that measures is told where; a board that is lost is a fault of no way."""
    worker = Worker(CORE, 120.0, board("raspberry"))
    try:
        outcome = worker.read(Asked(SPEC, DEFAULT, DEFAULT, rounds=2))
    finally:
        worker.close()
    assert outcome.reading is not None, outcome.fault


def test_a_board_that_cannot_be_reached_is_told(board: Callable[[str], str]) -> None:
    """Before anything is tried."""
    with pytest.raises(ToolFailed, match="unreachable cannot be reached"):
        task_of(meter_of(CORE, board("unreachable")))


@pytest.mark.parametrize("target", ["rv32imc", "esp32s3", "cuda-sm90"])
def test_what_has_no_linux_is_refused(board: Callable[[str], str], target: str) -> None:
    """With an example of what is not."""
    with pytest.raises(Unsupported, match=f"kernels for {target} are not timed over ssh"):
        meter_of(load_core(target), board("raspberry"))


def test_another_place_is_refused() -> None:
    """With what is one."""
    with pytest.raises(UsageError, match="names no machine"):
        meter_of(CORE, "ssh:a b")


def test_times_of_a_board_come_before_models(tmp_path: Path) -> None:
    """A time on a board of that core counts more than cycles; on this machine only its own."""
    key, path = key_of(SPEC), tmp_path / "trials.sqlite"
    slow = Task(key, "cortex-a53", (), "cycles", "a model")
    board = Task(key, "cortex-a53", ("Raspberry Pi 3",), "time")
    other = Task(key, "x86-64-v3", ("another CPU",), "time")
    own = Task(key, "x86-64-v3", (cpu_name(),), "time")
    with Database(path) as database:
        for task, rows in ((slow, 1), (board, 2), (other, 3), (own, 4)):
            database.add(Trial(task, tools(CORE), "linear", {"tile_rows": rows}, 1.0 / rows))
    assert records_for(CORE, path).tuned(SPEC) == ("linear", {"tile_rows": 2})
    assert records_for(CORE, path).ignored == {}
    here = records_for(load_core("host"), path)
    if meter_of(load_core("host")).target == "x86-64-v3":
        assert here.tuned(SPEC) == ("linear", {"tile_rows": 4})
        assert here.ignored == {"measured on another machine": 1}
