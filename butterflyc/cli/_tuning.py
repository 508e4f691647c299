"""How ``tune`` shows what it found, and ``compile`` what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._output import bytes_text, print_line, print_table

if TYPE_CHECKING:
    from ..tuning.calls import Call
    from ..tuning.check import Checked
    from ..tuning.report import Report
    from ..tuning.trial import Trial
    from ..tuning.tuner import CallProgress

HEADER = ("kernel", "calls", "default", "best", "gain", "trials", "best way")
CHECKED = ("kernel", "way", "registers", "shared", "spills", "tensor cores", "")
SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (0.0, "ns"))


def kernel_line(trial: Trial, progress: CallProgress) -> str:
    """How far the call is of which ``trial`` was just made."""
    took = trial.fault.partition(":")[0] if trial.fault else _figure(trial.value, progress)
    gain = f"best x{progress.gain:.2f}" if progress.gain else ""
    tried = f"{len(progress.trials)} of {len(progress.call.ways)} ways"
    return f"{_call_name(progress.call)}: {tried}, {took}  {gain}".rstrip()


def show_report(report: Report) -> None:
    """A line a kernel, and what it comes to."""
    if not report.found:
        print_line("no kernel of this model can be computed in more than one way")
        return
    print_table([HEADER, *map(_row, report.found)])
    for line in _summary(report):
        print_line(line)


def show_checked(found: Sequence[Checked]) -> None:
    """A line a way: what its code takes, or why there is none."""
    if not found:
        print_line("no kernel of this model can be computed in more than one way")
        return
    rows = [
        (_call_name(each.call), _way_name(each.way.kernel, each.way.parameters), each.registers,
         bytes_text(each.shared), each.spills, each.tensor_core, each.fault)
        for each in found
    ]  # fmt: skip
    print_table([CHECKED, *rows])
    fine = sum(not each.fault and not each.spills for each in found)
    print_line(f"{fine} of {len(found)} ways compile, fit and spill nothing")
    print_line("nothing was measured: tune on a machine that has such a GPU")


def tuning_text(tuning: Mapping[str, Any]) -> str:
    """What a compilation took of records: ``5 of 7 kernels``, and how many it left aside."""
    ignored = [f"{count} {reason}" for reason, count in tuning["ignored"].items()]
    aside = f" (records left aside: {', '.join(ignored)})" if ignored else ""
    return f"{tuning['tuned']} of {tuning['kernels']} kernels{aside}"


def _row(progress: CallProgress) -> tuple[object, ...]:
    default, best = progress.default, progress.best
    gain = f"x{progress.gain:.2f}" if progress.gain else ""
    if progress.confirmed:
        gain += f" ±{progress.confirmed.spread / 2:.1%}"
    return (
        _call_name(progress.call),
        progress.call.count,
        _figure(default.value if default else None, progress),
        _figure(best.value if best else None, progress),
        gain,
        f"{len(progress.trials)}/{len(progress.call.ways)}",
        _way_name(best.kernel, best.parameters) if best else "",
    )


def _call_name(call: Call) -> str:
    """The op, and the shapes of its first operand and its first result."""
    spec = call.spec
    sizes = ("x".join(map(str, t.shape)) or "1" for t in (spec.operands[0], spec.results[0]))
    return f"{spec.op} {' -> '.join(sizes)}"


def _way_name(kernel: str, parameters: Mapping[str, int]) -> str:
    text = " ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
    return f"{kernel} {text or '(default)'}"


def _figure(value: float | None, progress: CallProgress) -> str:
    if value is None:
        return ""
    if progress.task.method != "time":
        return f"{value:,.0f}"
    unit, name = next((unit, name) for unit, name in SCALES if value >= unit)
    return f"{value / (unit or 1e-9):.3g} {name}"


def _summary(report: Report) -> list[str]:
    found = report.found
    by = f"{report.method}, {report.instrument}" if report.instrument else report.method
    earlier = sum(each.earlier for each in found)
    lines = [
        f"all of them: x{report.gain:.3f} by {by}" if report.gain else f"measured: {by}",
        f"{report.new_trials} trials in {report.seconds:.0f} s, {earlier} were there: "
        f"{report.database}",
    ]
    if faults := sum((each.faults for each in found), Counter[str]()):
        text = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
        lines.append(f"disqualified: {text}")
    if left_out := sum(each.call.left_out for each in found):
        lines.append(f"not tried, since a model of costs has no hope for them: {left_out}")
    if hints := sum(each.hints for each in found):
        lines.append(f"records of other tools, machines or methods: {hints}, taken as hints alone")
    again = "; the same command goes on" if report.interrupted else ""
    lines.append(f"{'interrupted' + again if again else 'next: butterflyc compile MODEL -o OUT'}")
    return lines
