"""`compile` takes what was measured where it fits, says so, and makes the same bytes of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import butterflyc as bc
from butterflyc.cli.inspect import kernels, summary
from butterflyc.compiler.errors import Damaged, UsageError
from butterflyc.passes.select_kernels import spec_of
from butterflyc.program import Program
from butterflyc.targets.registry import load_core
from butterflyc.tuning.calls import Call
from butterflyc.tuning.database import Database
from butterflyc.tuning.exchange import to_lines
from butterflyc.tuning.meters import meter_of, task_of, tools
from butterflyc.tuning.records import Records, records_for
from butterflyc.tuning.trial import Task, Tools, Trial

from .small import X, calls, expected, net

OTHERS = Tools("apache-tvm 0.1", 1)
HOST = load_core("host")


def call_of(op: str) -> Call:
    """The call of that op whose result is the widest."""
    found = [call for call in calls() if call.spec.op == op]
    return max(found, key=lambda call: (call.spec.results[0].shape, call.key))


LINEAR, EXPERTS = (call_of(op) for op in ("linear", "butterfly_experts"))


def task(call: Call) -> Task:
    return task_of(meter_of(HOST), call.key)


def trial(call: Call, number: int, value: float | None, **changes: Any) -> Trial:
    """A record of a way of ``call``; with other fields by ``changes``."""
    way = call.ways[number]
    fault = "" if value is not None else "WrongResult: x"
    made = Trial(task(call), tools(HOST), way.kernel, way.parameters, value, fault)
    return attrs.evolve(made, **changes)


def written(path: Path, *trials: Trial) -> Path:
    with Database(path) as database:
        for each in trials:
            assert database.add(each)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tune.sqlite"


def compiled(records: Path | bool) -> Program:
    return bc.compile(net(), (X,), records=records)


def taken(program: Program, call: Call) -> list[tuple[str, dict[str, int]]]:
    """What the last stage has noted on the nodes of ``call``."""
    last = list(program.stages.values())[-1]
    nodes = {node.name: node for node in last.nodes}
    return [
        (str(nodes[name].notes["kernel"]), dict(spec_of(nodes[name]).parameters))
        for name in call.nodes
    ]


def way_of(call: Call, number: int) -> tuple[str, dict[str, int]]:
    return call.ways[number].kernel, dict(call.ways[number].parameters)


def tuned(path: Path) -> list[Trial]:
    """Records by which two calls are done otherwise than by default."""
    last = len(LINEAR.ways) - 1
    found = [trial(LINEAR, 0, 3.0), trial(LINEAR, last, 1.0), trial(LINEAR, 2, 2.0)]
    return [*found, trial(EXPERTS, 5, 1.0), trial(EXPERTS, 6, None)]


def test_the_best_is_taken(path: Path) -> None:
    """Its kernel and parameters are on the nodes; the manifest says which records were used."""
    records = tuned(path)
    program = compiled(written(path, *records))
    assert taken(program, LINEAR) == [way_of(LINEAR, -1)] * len(LINEAR.nodes)
    assert taken(program, EXPERTS) == [way_of(EXPERTS, 5)]
    said = program.manifest["tuning"]
    assert (said["kernels"], said["tuned"], said["ignored"]) == (len(calls()), 2, {})
    found = {each["task"]["spec"]: each for each in said["records"]}
    assert found.keys() == {LINEAR.key, EXPERTS.key}
    assert found[LINEAR.key]["nodes"] == list(LINEAR.nodes)
    assert found[LINEAR.key]["parameters"] == way_of(LINEAR, -1)[1]
    error = np.linalg.norm(program(X.numpy()) - expected()) / np.linalg.norm(expected())
    assert error < 1e-5


@pytest.mark.slow
def test_the_same_records_make_the_same_bytes(path: Path, tmp_path: Path) -> None:
    """Twice from the database, and from lines of it; without records the bytes are others."""
    records = tuned(path)
    written(path, *records)
    lines = tmp_path / "r.jsonl"
    lines.write_bytes(to_lines(records))
    made = [
        compiled(where).save(tmp_path / f"{i}.bfly").read_bytes()
        for i, where in enumerate((path, path, lines, False))
    ]
    assert made[0] == made[1] == made[2] != made[3]


def test_inspect_shows_what_was_tuned(path: Path, tmp_path: Path) -> None:
    """The summary says of how many kernels, and the list of kernels has their parameters."""
    made = compiled(written(path, *tuned(path)))
    program = bc.load(made.save(tmp_path / "tuned.bfly"))
    assert summary(program)["tuning"]["tuned"] == 2
    listed = {each["name"]: each for each in kernels(program)["kernels"]}
    for call, i in ((LINEAR, -1), (EXPERTS, 5)):
        assert listed[call.nodes[0]]["parameters"] == way_of(call, i)[1]


def test_untuned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``records=False`` nothing is taken, also where the user has records."""
    monkeypatch.setenv("BUTTERFLYC_TUNE_DB", str(written(path, *tuned(path))))
    assert compiled(True).manifest["tuning"]["tuned"] == 2
    program = compiled(False)
    said = program.manifest["tuning"]
    assert (said["kernels"], said["tuned"], said["records"]) == (len(calls()), 0, [])
    assert taken(program, LINEAR) == [way_of(LINEAR, 0)] * len(LINEAR.nodes)


def test_records_of_others_are_counted(path: Path) -> None:
    """Those of other tools, or of another CPU, are no figures for this machine."""
    elsewhere = attrs.evolve(task(LINEAR), features=("another CPU",))
    written(
        path,
        trial(LINEAR, 1, 0.1, tools=OTHERS),
        trial(LINEAR, 2, 0.1, tools=OTHERS),
        trial(LINEAR, 1, 0.1, task=elsewhere),
        trial(LINEAR, 3, 0.1, task=attrs.evolve(elsewhere, target="another")),
        trial(EXPERTS, 4, 1.0),
    )
    known = records_for(HOST, path)
    assert known.best.keys() == {EXPERTS.key}
    assert known.ignored == {"made by other tools": 2, "measured on another machine": 1}
    said = compiled(path).manifest["tuning"]
    assert (said["tuned"], said["ignored"]) == (1, known.ignored)


def test_the_nearest_to_the_truth_is_taken(path: Path) -> None:
    """Times come before counts, and of two instruments that of more trials; faults never."""
    counts = attrs.evolve(task(LINEAR), method="instructions")
    rare = attrs.evolve(task(LINEAR), instrument="a watch")
    written(
        path,
        *(trial(LINEAR, i, 1.0, task=counts) for i in range(9)),
        *(trial(LINEAR, i, 9.0 - i) for i in (1, 2, 3)),
        trial(LINEAR, 4, None),
        trial(LINEAR, 5, 0.1, task=rare),
    )
    assert records_for(HOST, path).best[LINEAR.key].parameters == way_of(LINEAR, 3)[1]


def test_calls_of_which_nothing_has_a_figure(path: Path) -> None:
    """Faults alone say nothing."""
    assert not records_for(HOST, written(path, trial(LINEAR, 0, None))).best


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [("no_such_kernel", {}), ("linear", {"tile_rows": 10**6, "tile_vectors": 10**6})],
)
def test_what_cannot_be_done_any_more(path: Path, kernel: str, parameters: dict[str, int]) -> None:
    """A kernel that is gone, or sizes that it does not take, are left, and not called tuned."""
    gone = trial(LINEAR, 1, 0.1, kernel=kernel, parameters=parameters)
    program = compiled(written(path, gone))
    assert taken(program, LINEAR) == [way_of(LINEAR, 0)] * len(LINEAR.nodes)
    assert program.manifest["tuning"]["tuned"] == 0


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """One that is named must be there; a user who has none is not asked for one."""
    with pytest.raises(UsageError, match="does not exist"):
        compiled(tmp_path / "none.sqlite")
    with pytest.raises(UsageError, match="does not exist"):
        compiled(tmp_path)
    assert records_for(HOST, True) == Records()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["r.sqlite", "r.jsonl"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    """They are told, and left as they are."""
    file = tmp_path / name
    file.write_bytes(b"no records" * 500)
    with pytest.raises(Damaged):
        compiled(file)
    assert file.read_bytes() == b"no records" * 500


def test_damaged_records_of_a_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken from them in silence, by default as well."""
    written(path, trial(LINEAR, 1, 1.0))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trials SET parameters = '{'")
    connection.close()
    monkeypatch.setenv("BUTTERFLYC_TUNE_DB", str(path))
    with pytest.raises(Damaged, match="no trial"):
        compiled(True)


def test_targets_that_nothing_measures(path: Path) -> None:
    """For them there are no records, and nothing is asked of the file."""
    assert records_for(load_core("c99"), path) == Records()
