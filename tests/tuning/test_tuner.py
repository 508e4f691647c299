"""A tuner asks for what it does not know, keeps all that it gets, and stops when it should."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from butterflyc.compiler.errors import UsageError
from butterflyc.tuning import tuner
from butterflyc.tuning.database import Database
from butterflyc.tuning.measure import ROUNDS
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import Tools
from butterflyc.tuning.tuner import CONFIRMING, Budget, budget_of

from .fake import Fake, add, by_tile, trial_of, tune
from .small import TOOLS, call_of, rows, task_for

CALL = call_of("a", 6)
MANY = call_of("many", 300)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tune.sqlite"


@pytest.mark.parametrize(
    ("text", "seconds", "trials"),
    [("64", None, 64), ("90s", 90, None), ("5m", 300, None), ("1.5h", 5400, None)],
)
def test_budgets(text: str, seconds: float | None, trials: int | None) -> None:
    """They are a time or a number of trials."""
    assert budget_of(text) == Budget(seconds, trials)


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "0s", "5 m", "m", "5d", "ten", "5m3s"])
def test_other_budgets_are_told(text: str) -> None:
    """What is neither is refused, with what would do."""
    with pytest.raises(UsageError, match="a budget of") as error:
        budget_of(text)
    assert "90s, 5m or 1h" in str(error.value)


def test_the_default_is_measured_first_and_alone(path: Path) -> None:
    """Whatever else could run beside it; the others are told in its figure."""
    running = []
    engine = Fake(width=3)
    engine.meanwhile = lambda: running.append(len(engine.running))
    (progress,), interrupted = tune(path, [CALL], engine)
    assert not interrupted
    assert engine.tiles()[0] == 0
    assert running[:2] == [1, 3]
    assert [asked.reference for _, asked in engine.asked] == [None] + [1000.0] * 5
    assert all(asked.default == CALL.ways[0] for _, asked in engine.asked)
    assert progress.default == progress.trials[0]


def test_defaults_of_several_calls_run_beside_each_other(path: Path) -> None:
    """A call that waits for its default way holds up no other; no more run than can."""
    engine = Fake(width=3)
    tune(path, [call_of(name, 5) for name in "abcd"], engine)
    first = [key[1].parameters["tile"] for key, _ in engine.asked[:4]]  # type: ignore[index]
    assert first == [0] * 4
    assert engine.most == 3
    assert len(engine.asked) == 20


def test_a_small_space_is_tried_in_full(path: Path) -> None:
    """Each way once, and that is all."""
    engine = Fake()
    (progress,), _ = tune(path, [CALL], engine)
    assert sorted(engine.tiles()) == list(range(6))
    assert progress.best is not None
    assert progress.best.parameters == {"tile": 5}
    assert progress.gain == pytest.approx(1000 / 995)
    assert len(rows(path)) == 6


def test_so_many_trials_of_each_call(path: Path) -> None:
    """Those of earlier runs count, and those that are running."""
    engine = Fake(width=3)
    (first, other), _ = tune(path, [MANY, CALL], engine, 10)
    assert (len(first.trials), len(other.trials)) == (10, 6)
    (first, other), _ = tune(path, [MANY, CALL], again := Fake(width=3), 14)
    assert (len(first.trials), first.earlier) == (14, 10)
    assert (len(other.trials), other.earlier) == (6, 6)
    assert len(again.asked) == 4
    assert not set(again.tiles()) & set(engine.tiles())


def test_a_time_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is begun after it, and what runs is waited for."""
    clock = SimpleNamespace(now=0.0)

    def later() -> None:
        clock.now += 1.0

    monkeypatch.setattr(tuner, "monotonic", lambda: clock.now)
    engine = Fake(width=3, meanwhile=later)
    (progress,), _ = tune(path, [MANY], engine, budget=Budget(seconds=10))
    # One by itself, then one for each that ends, and in the end the three that run.
    assert len(progress.trials) == len(engine.asked) == 12
    assert not engine.running


def test_what_takes_more_is_tried_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are shared by what calls take of an inference, their number included."""
    clock = SimpleNamespace(now=0.0)

    def later() -> None:
        clock.now += 1.0

    monkeypatch.setattr(tuner, "monotonic", lambda: clock.now)
    calls = [call_of("one", 300), call_of("four", 300, count=4), call_of("slow", 300)]
    engine = Fake(lambda number, way: [10, 10, 50][number] + way.parameters["tile"] / 1e3)
    engine.meanwhile = later
    found, _ = tune(path, calls, engine, budget=Budget(seconds=100))
    counts = [len(progress.trials) for progress in found]
    assert counts == pytest.approx([10, 40, 50], abs=2)


def of_faults(number: int, way: Way) -> float | str:
    faults = {1: "WrongResult: off", 3: "WrongResult: by much", 4: "ended the process: SIGSEGV"}
    return faults.get(way.parameters["tile"]) or by_tile(number, way)


def test_faults_are_kept(path: Path) -> None:
    """They are trials without figures, counted by what they are, and not tried again."""
    (progress,), _ = tune(path, [CALL], Fake(of_faults))
    assert progress.faults == {"WrongResult": 2, "ended the process": 1}
    assert len(progress.trials) == 6
    assert len(progress.best_so_far) == 3
    assert {row[11] for row in rows(path)} == {
        "", "WrongResult: off", "WrongResult: by much", "ended the process: SIGSEGV"
    }  # fmt: skip
    tune(path, [CALL], again := Fake())
    assert not again.asked


def test_a_default_that_fails_closes_its_call(path: Path) -> None:
    """There is nothing to compare with; in the next run too. Other calls go on."""
    calls = [CALL, call_of("b", 6)]
    engine = Fake(lambda number, way: "WrongResult: x" if not number else by_tile(number, way))
    (bad, good), _ = tune(path, calls, engine)
    assert (len(bad.trials), len(good.trials)) == (1, 6)
    assert bad.gain is bad.best is None
    (bad, _), _ = tune(path, calls, again := Fake())
    assert not again.asked
    assert bad.default is not None


def test_a_run_goes_on(path: Path) -> None:
    """What is known is not measured, and the search goes on from it."""
    add(path, *(trial_of(CALL, tile, 50.0 + tile) for tile in (0, 2, 4)))
    (progress,), _ = tune(path, [CALL], engine := Fake())
    assert sorted(engine.tiles()) == [1, 3, 5]
    assert [asked.reference for _, asked in engine.asked] == [50.0] * 3
    assert (progress.earlier, len(progress.trials)) == (3, 6)
    assert progress.gain == 1.0, "none that was measured is better than 50"


def test_without_the_default_nothing_is_told(path: Path) -> None:
    """Of records that lack it, it is measured first."""
    add(path, trial_of(CALL, 3, 1.0))
    tune(path, [CALL], engine := Fake())
    assert engine.tiles()[0] == 0
    assert engine.asked[0][1].reference is None


def test_a_way_that_is_no_more(path: Path) -> None:
    """Records of ways that the call has not are left aside."""
    add(path, trial_of(CALL, 99, 0.1))
    (progress,), _ = tune(path, [CALL], Fake())
    assert progress.earlier == 0
    assert progress.best is not None
    assert progress.best.parameters == {"tile": 5}


def test_records_of_others_are_hints(path: Path) -> None:
    """The best of each come right behind the default one, are counted, and are no figures."""
    elsewhere = attrs.evolve(task_for(MANY), instrument="a meter 2.0")
    hints = [
        trial_of(MANY, 200, 0.1, tools=Tools("llvm 21", 4)),
        trial_of(MANY, 201, 0.2, tools=Tools("llvm 21", 4)),
        trial_of(MANY, 123, 0.3, task=elsewhere),
        trial_of(MANY, 999, 0.1, task=elsewhere, tools=Tools("llvm 20", 1)),
    ]
    add(path, *hints)
    (progress,), _ = tune(path, [MANY], engine := Fake(), 5)
    assert engine.tiles()[:3] == [0, 200, 123]
    assert (progress.hints, progress.earlier) == (4, 0)
    assert len(progress.trials) == 5
    assert min(progress.best_so_far) >= 0.4, "0.1 was measured by nobody here"
    assert len(rows(path)) == 9


def other_tuner(path: Path, *found: tuple[int, float | None]) -> Fake:
    """An engine; while it measures for the first time, another tuner adds what it ``found``."""
    engine = Fake()

    def meanwhile() -> None:
        if found and len(engine.asked) == 1:
            add(path, *(trial_of(CALL, tile, value) for tile, value in found))

    engine.meanwhile = meanwhile
    return engine


def test_what_another_tuner_tries_is_taken(path: Path) -> None:
    """It is not measured again, and it is not what this run has measured."""
    engine = other_tuner(path, (2, 7.0), (3, None))
    (progress,), _ = tune(path, [CALL], engine)
    assert sorted(engine.tiles()) == [0, 1, 4, 5]
    assert (len(progress.trials), progress.earlier) == (6, 2)
    assert progress.best is not None
    assert progress.best.value == 7.0


def test_of_two_that_try_the_same_the_first_counts(path: Path) -> None:
    """Where another has added it meanwhile, its figure is everybody's."""
    engine = other_tuner(path, (0, 42.0))
    (progress,), _ = tune(path, [CALL], engine)
    assert progress.default is not None
    assert progress.default.value == 42.0
    assert {asked.reference for _, asked in engine.asked[1:]} == {42.0}
    assert (len(progress.trials), progress.earlier) == (6, 1)
    with Database(path) as database:
        assert sorted(database, key=str) == sorted(progress.trials, key=str)


def test_another_tuners_failing_default_closes_the_call(path: Path) -> None:
    """As one's own does."""
    engine = Fake()
    second = call_of("b", 6)

    def meanwhile() -> None:
        if len(engine.asked) == 1:
            add(path, trial_of(second, 0, None))

    engine.meanwhile = meanwhile
    (_, progress), _ = tune(path, [CALL, second], engine)
    assert engine.tiles(1) == []
    assert len(progress.trials) == 1


def test_an_interrupted_run_keeps_all(path: Path) -> None:
    """What was finished before ^C is in the report and in the database; nothing is confirmed."""
    engine = Fake(width=2, patience=4)
    (progress,), interrupted = tune(path, [CALL], engine, method="time")
    assert interrupted
    assert progress.confirmed is None
    assert len(progress.trials) == len(rows(path)) == 4
    tune(path, [CALL], again := Fake(), method="time")
    assert len([key for key, _ in again.asked if isinstance(key, tuple)]) == 2


def test_times_are_confirmed(path: Path) -> None:
    """The best way runs for longer, and that is its figure; so does the next, if it was luck."""
    longer = {5: 999.0, 4: 997.0, 3: 996.5, 2: 1.0}

    def figure(number, way):
        tile = way.parameters["tile"]
        return longer[tile] if engine.asked[-1][1].rounds > ROUNDS else by_tile(0, way)

    engine = Fake(figure)
    (progress,), _ = tune(path, [CALL], engine, method="time")
    confirming = [asked for _, asked in engine.asked if asked.rounds == CONFIRMING]
    assert [asked.way.parameters["tile"] for asked in confirming] == [5, 4, 3]
    assert {asked.reference for asked in confirming} == {1000.0}
    assert progress.best is not None
    assert (progress.best.parameters, progress.gain) == ({"tile": 3}, 1000 / 996.5)
    assert len(rows(path)) == 6, "a confirmation is no trial"
    (progress,), _ = tune(path, [CALL], again := Fake(), method="time")
    assert again.asked == [], "what was confirmed once is not measured again"
    assert progress.gain == 1000 / 996.5


def test_a_confirmation_that_fails_changes_nothing(path: Path) -> None:
    """The figure stays that of the trial."""
    engine = Fake(
        lambda number, way: "late" if engine.asked[-1][1].rounds > ROUNDS else by_tile(0, way)
    )
    (progress,), _ = tune(path, [CALL], engine, method="time")
    assert progress.confirmed is None
    assert progress.gain == 1000 / 995


def test_a_default_that_is_best_is_not_confirmed(path: Path) -> None:
    """It would be compared with itself."""
    engine = Fake(lambda number, way: 1.0 + way.parameters["tile"])
    (progress,), _ = tune(path, [CALL], engine, method="time")
    assert len(engine.asked) == 6
    assert progress.gain == 1.0


def test_trials_are_told(path: Path) -> None:
    """Each that is made, when it is in the database, with how far its call is."""
    told = []

    def on_trial(trial, progress) -> None:
        told.append((trial.parameters["tile"], len(progress.trials), len(rows(path))))

    tune(path, [CALL], engine := Fake(), on_trial=on_trial)
    assert told == [(tile, i, i) for i, tile in enumerate(engine.tiles(), 1)]


def test_tools_are_of_the_trials(path: Path) -> None:
    """Rows name the task and what made the code."""
    tune(path, [CALL], Fake(), 1)
    ((_, spec, target, *others, epoch, kernel, parameters, value, fault, _),) = rows(path)
    assert (spec, target, kernel, parameters) == ("a", "a-core", "k", '{"tile": 0}')
    assert others == ["[]", "instructions", "a meter 1.0", TOOLS.toolchain]
    assert (epoch, value, fault) == (TOOLS.epoch, 1000.0, "")
