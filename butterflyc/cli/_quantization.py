"""How ``inspect`` shows what mode int8 costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.errors import UsageError
from ._output import print_line, print_table

if TYPE_CHECKING:
    from ..program import Program

SHOWN = 20


def quantization(program: Program) -> dict[str, Any]:
    """Each value's signal to noise, worst first. Raises UsageError where none was measured."""
    found = program.report.get("quantization")
    if found is None:
        raise UsageError(
            f"{program.name} has no report on quantization: its mode is {program.mode}",
            help="compile with --mode int8; what an older version compiled, once more",
        )
    return dict(found)


def show_quantization(data: Mapping[str, Any]) -> None:
    """What became of the result and of each choice, then the table of the worst values."""
    count, nodes = data["samples"], data["nodes"]
    print_line(f"integers against floats, on {count} calibration sample{'s' if count > 1 else ''}")
    for node in nodes:
        if node["name"] == data["output"]:
            print_line(f"the first output, {node['name']}: {_decibels(node)}")
    if data["top1_agreement"] is not None:
        print_line(f"its largest number is at the same place in {data['top1_agreement']:.1%}")
    for layer in data["routing"]:
        print_line(f"{layer['name']} chooses the same experts for {layer['agreement']:.1%}")
    if data["routing"]:
        print_line("a token that goes to other experts counts as noise in what these compute")
    for line in _digits(data.get("weights", [])):
        print_line(line)
    print_line("")
    print_table([("SNR", "clipped", "codes", "scale", "value", "op", "source"), *_rows(nodes)])
    if len(nodes) > SHOWN:
        print_line(f"and {len(nodes) - SHOWN} values with less noise: --json has them all")


def _digits(weights: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each number of digits: how many matrices have them, and what is lost at most."""
    for digits in sorted({each["digits"] for each in weights}):
        alike = [each for each in weights if each["digits"] == digits]
        lossy = [each for each in alike if each["snr_db"] is not None]
        worst = min(lossy, key=lambda each: each["snr_db"], default=None)
        what = f"{len(alike)} dense matri{'ces' if len(alike) > 1 else 'x'}"
        of = f"{digits} ternary digit{'s' if digits > 1 else ''} a weight"
        kept = f"{_decibels(worst)} or more ({worst['name']})" if worst else "as they were"
        yield f"{what} of {of}: {kept}"


def _rows(nodes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for node in nodes[:SHOWN]:
        clipped = f"{node['clipped']:.2%}" if node["clipped"] else "-"
        scale = f"{node['scale']:.3g}"
        yield (
            _decibels(node),
            clipped,
            node["codes"],
            scale,
            node["name"],
            node["op"],
            node["source"],
        )


def _decibels(node: Mapping[str, Any]) -> str:
    return "no noise" if node["snr_db"] is None else f"{node['snr_db']:.1f} dB"
