"""What a compilation found and did, as tables: for ``compile --explain`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ._output import print_line, print_table

PARTS = ("rotation_in", "substrate", "rotation_out", "routing", "down")


def show_explanation(data: Mapping[str, Any], file: TextIO | None = None) -> None:
    """The layers, then what each pass changed."""
    if data["layers"] is None:
        print_line("no layer was looked for: compilation ended before recognition", file)
        return
    show_layers(data, file)
    if data["rewrites"]:
        print_line("", file)
        show_rewrites(data["rewrites"], file)


def show_layers(data: Mapping[str, Any], file: TextIO | None = None) -> None:
    """A table of the MoE layers, then each part of each with its evidence, or why it is none."""
    layers = data["layers"]
    print_line(_census(layers), file)
    if layers:
        _show_each(layers, file)
    if data.get("marks"):
        print_line("", file)
        rows = [
            (mark["what"], mark["source"] or "-", mark["layer"] or f"FALSE: {mark['reason']}")
            for mark in data["marks"]
        ]
        print_table([("marked", "source", "is the result of"), *rows], file)


def _show_each(layers: Sequence[Mapping[str, Any]], file: TextIO | None) -> None:
    header = ("layer", "recognised", "experts", "residual", "source")
    print_table([header, *map(_layer_row, layers)], file)
    for layer in layers:
        print_line(f"\n{layer['path']} ({layer['source'] or 'no source line'})", file)
        print_table(list(_facts_of(layer)), file, indent="  ", header=False)


def show_rewrites(rows: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """For each pass: the ops after it, how many of them are new or changed, and of which kind."""
    cells = [(row["pass"], row["ops"], row["changed"] or "-", _changes(row)) for row in rows]
    print_table([("pass", "ops", "changed", "what"), *cells], file)


def _census(layers: Sequence[Mapping[str, Any]]) -> str:
    if not layers:
        return "no mixture of experts: no top-k, argmax or sort of gate scores in this model"
    verdicts = [layer["recognised"] for layer in layers]
    found, choosable = (sum(layer[key] for layer in layers) for key in ("experts_found", "experts"))
    plural = "s" if len(layers) > 1 else ""
    return (
        f"{len(layers)} MoE layer{plural}: {verdicts.count('full')} recognised in full, "
        f"{verdicts.count('partial')} in part, {verdicts.count('none')} not; "
        f"{found} of {choosable} experts found"
    )


def _layer_row(layer: Mapping[str, Any]) -> tuple[str, ...]:
    residual = "-" if layer["residual"] is None else f"{layer['residual']:.1e}"
    experts = f"{layer['experts_found']} of {layer['experts']}, top-{layer['k']}"
    return layer["path"], layer["recognised"], experts, residual, layer["source"] or "-"


def _facts_of(layer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each part with its evidence, why it is not the papers' layer, and what it was compiled to."""
    parts = [(part.replace("_", " "), layer["parts"][part]) for part in PARTS if layer["parts"]]
    words = {"partial": "differs", "none": "not recognised"}
    if layer["reason"]:
        parts.append((words.get(layer["recognised"], "note"), layer["reason"]))
    compiled = layer.get("compiled") or {}
    if compiled:
        ops = (f"{op} x{count}" if count > 1 else op for op, count in compiled.items())
        parts.append(("compiled to", ", ".join(ops)))
    elif layer["recognised"] == "none":
        parts.append(("compiled to", "the ops it was captured as"))
    return parts


def _changes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{op} {was} -> {now}" for op, (was, now) in row["changes"].items()) or "-"
