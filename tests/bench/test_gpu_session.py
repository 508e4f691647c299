"""The whole GPU benchmark, rehearsed on a CPU; what it writes, shows and returns."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from butterflyc.bench.gpu import report, session
from butterflyc.bench.gpu.contender import Contender
from butterflyc.bench.gpu.device import Clock, DeviceLost, Rehearsal
from butterflyc.bench.gpu.document import SCHEMA, Document, now
from butterflyc.bench.gpu.layer import Bench, Measured, rows
from butterflyc.bench.gpu.measure import Figure, fastest
from butterflyc.bench.gpu.points import Point, points
from butterflyc.bench.gpu.problem import Shape
from butterflyc.bench.gpu.session import Options, chosen, run
from butterflyc.bench.gpu.tuning import Layers, Tuning
from butterflyc.compiler.errors import UnknownName
from butterflyc.targets.tuned import from_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command():
    """benchmarks/gpu.py as a module."""
    found = importlib.util.spec_from_file_location("gpu_command", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def document_in(folder):
    (path,) = folder.glob("gpu-*.json")
    return path, json.loads(path.read_text())


def test_a_rehearsal_goes_through_every_step(command, tmp_path, capsys):
    """--dry-run checks, tunes and 'times' every kind of point, and writes what a GPU would."""
    assert command.main(["--dry-run", "--out", str(tmp_path)]) == 0
    path, data = document_in(tmp_path)
    assert (data["schema"], data["rehearsal"], data["complete"]) == (SCHEMA, True, True)
    assert (data["faults"], data["not_measured"]) == ([], [])
    assert path.name.startswith("gpu-rehearsal-")
    assert {"torch", "triton", "numpy"} <= set(data["versions"])
    assert all(not check["fault"] for check in data["checks"])
    kernels = {check["kernel"] for check in data["checks"]}
    assert kernels == {kernel.name for kernel in chosen(())}
    assert set(data["ceilings"]) == {"copy_bytes_a_second", "products_a_second", "node_seconds"}
    assert [len(p["left_out"]) for p in data["points"]] == [0] * 3
    named = {name for p in data["points"] for name in p["figures"]}
    assert named >= {
        *("butterfly eager", "butterfly sum-first", "butterfly sum-first graph"),
        *("butterfly compiled", "standard loop", "standard grouped_mm", "standard triton"),
        *("standard gathered", "standard grouped_mm routed", "standard triton routed"),
        *("ours again", "ours routed"),
    }
    tuned = from_json((tmp_path / "tuned-rehearsal.json").read_bytes(), "tuned")
    assert {entry.sizes.tokens for entry in tuned.entries} == {3, 65}
    assert path.with_suffix(".png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "no figure is a measurement" in shown
    assert "targets met; 0 faults" in shown


def test_without_a_gpu_the_command_says_what_to_do(command, tmp_path, capsys):
    """The plain command ends with the status of a tool that is missing, and writes nothing."""
    assert command.main(["--out", str(tmp_path)]) == 7
    assert "--dry-run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_lost_device_starts_the_command_again(command, tmp_path, capsys, monkeypatch):
    """In a process of its own, without the kernel, for the time that is left."""
    began = []

    def lose(options, progress):
        raise DeviceLost("gpu_decode", "illegal memory access")

    monkeypatch.setattr(command, "run", lose)
    monkeypatch.setattr(command.os, "execv", lambda *words: began.append(words))
    command.main(["--seconds", "100"])
    ((program, words),) = began
    assert program == sys.executable
    assert words[2:4] == ["--seconds", "100"]
    assert 90 < float(words[5]) <= 100
    assert words[6:] == ["--skip", "gpu_decode"]
    assert "starting again without it" in capsys.readouterr().err


def quick(monkeypatch, points=()):
    """A session whose checks and tuning are nothing, and whose points are ``points``."""
    monkeypatch.setattr(session.checking, "checks", lambda *_: [])
    monkeypatch.setattr(session, "rehearsed_points", lambda: list(points))


def test_control_c_leaves_a_valid_file(tmp_path, monkeypatch):
    """What was found before is in the file, with the exit status of what is not complete."""
    quick(monkeypatch, [Point(Shape(16, 32, 8, 3))] * 2)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "measure", stop)
    assert run(Options(tmp_path, rehearsal=True, tune=False), lambda _: None) == 1
    _, data = document_in(tmp_path)
    assert data["faults"] == ["stopped before the end"]
    assert not data["complete"]
    assert data["ceilings"]


def test_a_lost_device_is_in_the_file(tmp_path, monkeypatch):
    """The file says which kernel it was before the error goes on."""
    quick(monkeypatch)

    def lose(*_):
        raise DeviceLost("gpu_fused", "gone")

    monkeypatch.setattr(session.checking, "run", lose)
    with pytest.raises(DeviceLost):
        run(Options(tmp_path, rehearsal=True), lambda _: None)
    assert document_in(tmp_path)[1]["faults"] == ["gpu_fused left the GPU unusable: gone"]


def test_what_failed_its_check_is_not_timed(tmp_path, monkeypatch):
    """In the mode that is timed; failures of other modes are faults, what is late is neither."""
    quick(monkeypatch)
    base = {"shape": "s", "routing": "uniform", "asm": True}
    found = [
        {**base, "kernel": "gpu_decode", "mode": "bf16", "fault": "wrong"},
        {**base, "kernel": "gpu_fused", "mode": "f32", "fault": "wrong"},
        {**base, "kernel": "gpu_library", "mode": "bf16", "fault": session.checking.NOT_RUN},
        {**base, "kernel": "gpu_prefill", "mode": "bf16", "fault": ""},
    ]
    monkeypatch.setattr(session.checking, "run", lambda *_: iter(found))
    left = []
    monkeypatch.setattr(session, "_time", lambda todo, bench, *_: left.extend(bench.kernels))
    assert run(Options(tmp_path, rehearsal=True, tune=False), lambda _: None) == 1
    others = ["gpu_deep_library", "gpu_fused", "gpu_library", "gpu_prefill"]
    assert [kernel.name for kernel in left] == others
    _, data = document_in(tmp_path)
    assert [line.split()[0] for line in data["faults"]] == ["gpu_decode", "gpu_fused"]
    assert len(data["not_measured"]) == 1
    assert len(data["checks"]) == 4


def test_a_skipped_kernel_is_a_fault(tmp_path, monkeypatch):
    """It is not run, and the exit status says that it was not checked."""
    quick(monkeypatch)
    options = Options(tmp_path, rehearsal=True, tune=False, skip=("gpu_fused",))
    assert run(options, lambda _: None) == 1
    assert document_in(tmp_path)[1]["faults"] == ["gpu_fused was skipped: not checked, not timed"]
    with pytest.raises(UnknownName, match="gpu_fuse"):
        chosen(["gpu_fuse"])


@pytest.fixture
def bench():
    device = Rehearsal()
    return Bench(chosen(()), Layers(device, "bf16", 8), Tuning(), device)


def timed(bench, points, tmp_path, seconds=100.0):
    document = Document(tmp_path, bench.device, "bf16", now())
    session._time(points, bench, document, Clock(seconds), lambda _: None)
    return document.data


def test_points_without_time_are_listed(bench, tmp_path):
    """What no time is left for is named; what torch.compile would make gives way first."""
    small = Point(Shape(16, 32, 8, 3))
    data = timed(bench, [small, replace(small, compiled=True)], tmp_path, seconds=5.0)
    assert data["not_measured"] == [str(small), str(replace(small, compiled=True))]
    found = []
    bench.measure = lambda point, *_: found.append(point) or Measured(point, 1)
    data = timed(bench, [replace(small, compiled=True), small], tmp_path, seconds=30.0)
    assert data["not_measured"] == [str(replace(small, compiled=True))]
    assert found == [small]


def test_a_point_that_fails_does_not_end_the_others(bench, tmp_path):
    """It is listed with its reason; after a device is lost nothing else is tried."""
    three = [Point(Shape(16, 32, 8, tokens)) for tokens in (1, 2, 3)]

    def measure(point, *_):
        if point is three[0]:
            raise RuntimeError("CUDA out of memory")
        return Measured(point, 1, left_out={"gpu_fused": "differs from eager by 1"})

    bench.measure = measure
    data = timed(bench, three, tmp_path)
    assert data["not_measured"] == [f"{three[0]}: RuntimeError: CUDA out of memory"]
    assert [point["T"] for point in data["points"]] == [2, 3]
    assert data["faults"][0] == f"{three[1]} gpu_fused: differs from eager by 1"

    def gone():
        raise RuntimeError("illegal memory access")

    bench.device.release = gone
    data = timed(bench, three[1:], tmp_path)
    assert "unusable" in data["faults"][-1]
    assert data["not_measured"] == [str(three[2])]


def figure(name, side, us, **kinds):
    made = Contender(name, side, lambda *_: None, 1, 1, **kinds)
    return Figure(made, (us * 1e-6,) * 3)


def measured(tokens=32, experts=8, standard=12.0, routing="uniform"):
    found = Measured(Point(Shape(1024, 4096, experts, tokens), routing), experts)
    figures = [
        figure("gpu_decode", "ours", 2.0),
        figure("gpu_library", "ours", 3.0),
        figure("standard loop", "standard", 90.0, captured=False),
        figure("standard triton", "standard", standard),
        figure("butterfly eager", "butterfly", 30.0, captured=False),
        figure("butterfly sum-first", "butterfly", 9.0, captured=False),
        figure("butterfly sum-first graph", "butterfly", 4.0),
        figure("ours again", "ours", 2.0),
        figure("ours routed", "ours", 4.0, routed=True),
        figure("standard triton routed", "standard", 20.0, routed=True),
    ]
    found.figures = {each.contender.name: each for each in figures}
    best = fastest({n: found.figures[n] for n in ("gpu_decode", "gpu_library")}, "ours")
    found.rows = rows(found, best)
    return found


def test_rows_are_against_the_best_of_each_side():
    """Targets are for the best standard mixture and the fastest eager form; routing is apart."""
    found = {row.baseline: row for row in measured().rows}
    best = found["fastest standard (standard triton)"]
    assert (best.name, best.ratio, best.target_ratio) == ("gpu_decode", pytest.approx(6.0), 6.0)
    eager = found["fastest eager butterfly (butterfly sum-first)"]
    assert (eager.ratio, eager.target_ratio) == (pytest.approx(4.5), 5.0)
    routed = found["fastest standard, both with routing (standard triton routed)"]
    assert (routed.name, routed.ratio, routed.target_ratio) == ("ours routed", 5.0, None)
    assert "standard loop" in found
    assert not any("again" in baseline for baseline in found)
    skewed = {row.baseline: row for row in measured(routing="zipf").rows}
    assert skewed["fastest standard (standard triton)"].target_ratio is None


def shown_document(tmp_path, *found):
    document = Document(tmp_path, Rehearsal(), "bf16", now())
    document.add("points", *(each.as_dict() for each in found))
    document.put(rehearsal=False)
    return document.data


def test_the_table_says_which_targets_are_met(tmp_path, capsys):
    """Each point has a line with its verdict; the last line counts them."""
    empty = Measured(Point(Shape(1024, 4096, 64, 1), "uniform", compiled=True), 2)
    report.show(shown_document(tmp_path, measured(standard=12.1), measured(standard=11.9), empty))
    lines = capsys.readouterr().out.splitlines()
    assert "6.05   6       ok" in lines[2]
    assert "5.95   6       below" in lines[3]
    assert "uniform compiled" in lines[4]
    assert lines[-1] == "1 of 4 targets met; 0 faults"


def test_the_plot_needs_points_and_matplotlib(tmp_path, monkeypatch):
    """Without either there is no file, and no error."""
    path = tmp_path / "a.png"
    assert not report.plot(shown_document(tmp_path), path)
    data = shown_document(tmp_path, measured(), measured(tokens=1), measured(experts=64))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not report.plot(data, path)
    monkeypatch.undo()
    assert not path.exists()
    assert report.plot(data, path)
    assert path.exists()


def test_all_that_the_points_need_is_compiled_at_once():
    """The launches of all points are few, since one kernel serves many shapes."""
    asked = []

    class Large(Rehearsal):
        rehearsal = False

        def compile(self, launches, clock, spilling=False):
            asked.append({launch.symbol: launch.function for launch in launches})
            return {}

    device = Large()
    Bench(chosen(()), Layers(device, "bf16"), Tuning(), device).compile(points(), Clock(60))
    (symbols,) = asked
    functions = list(symbols.values())
    assert 0 < len(functions) < 120
    assert functions.count("grouped_product") < 50
    assert {"up_prefill", "up_decode", "fused_layer", "combine_rows"} <= set(functions)


def test_a_kernel_without_code_is_left_out(bench):
    """Its reason is the compiler's; the other contenders of the point are timed."""

    class Partly(Rehearsal):
        def compile(self, launches, clock, spilling=False):
            names = {"combine_rows", "grouped_product"}
            return {each.symbol: "no code" for each in launches if each.function in names}

    bench.device = Partly()
    bench.kernels = tuple(k for k in bench.kernels if k.name in ("gpu_library", "gpu_prefill"))
    found = bench.measure(Point(Shape(16, 32, 8, 3)), 1.0, lambda _: None)
    assert set(found.left_out) == {"gpu_library", "standard triton"}
    assert found.left_out["gpu_library"].endswith("no code")
    assert "no way of 1 works" in found.left_out["standard triton"]
    assert "gpu_prefill" in found.figures
    assert found.faults == {}
