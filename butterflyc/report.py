"""What a compiled model for a microcontroller is: ``report.json``, and ``report.md`` for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .instructions import instructions_of, instructions_rows, instructions_text

if TYPE_CHECKING:
    from .build import Lowered
    from .targets.instructions import Prediction
    from .targets.placement import Placement, Region, Step

FOLDER = "report/"  # where the sections of an artefact lie that `compile` writes out
JSON, MARKDOWN = f"{FOLDER}report.json", f"{FOLDER}report.md"
SCHEMA = "butterflyc.report/1"
SHOWN = 8


def report_sections(
    built: Lowered,
    placed: Placement,
    files: Mapping[str, bytes],
    golden: Mapping[str, np.ndarray],
    prediction: Prediction,
) -> dict[str, bytes]:
    """Both reports, by the names of their sections in the artefact."""
    data = report_of(built, placed, files, golden, prediction)
    text = json.dumps(data, indent=1) + "\n"
    return {JSON: text.encode(), MARKDOWN: markdown(data).encode()}


def report_of(
    built: Lowered,
    placed: Placement,
    files: Mapping[str, bytes],
    golden: Mapping[str, np.ndarray],
    prediction: Prediction,
) -> dict[str, Any]:
    """The report as plain data, for JSON."""
    from .targets.fit import weights_by

    weights = {
        "bytes": placed.weights,
        "padding": sum(each.place - each.bytes for each in placed.constants),
        "by_kind": weights_by(placed, "kind"),
        "by_layer": weights_by(placed, "layer"),
        "constants": [
            {"name": c.name, "kind": c.kind, "layer": c.layer, "bytes": c.bytes, "memory": "flash"}
            for c in placed.constants
        ],
    }
    return {
        "schema": SCHEMA,
        "model": built.name,
        "target": built.core.name,
        "description": built.core.description,
        "mode": built.mode,
        "memory": {each.name: _region(each) for each in placed.regions},
        "weights": weights,
        "code": {"bytes": placed.code.bytes, "measured": placed.code.measured},
        "arena": _arena(placed),
        "instructions": instructions_of(prediction),
        "experts": _experts(built, placed),
        "accuracy": _accuracy(golden),
        "files": {name: len(content) for name, content in sorted(files.items())},
        "warnings": _warnings(placed),
    }


def _region(region: Region) -> dict[str, Any]:
    usable = region.usable
    return {
        "nominal": region.memory.nominal if region.memory else None,
        "partition": region.memory.partition if region.memory else None,
        "usable": usable,
        "used": region.used,
        "free": None if usable is None else usable - region.used,
        "parts": [{"what": p.what, "bytes": p.bytes, "exact": p.exact} for p in region.parts],
    }


def _arena(placed: Placement) -> dict[str, Any]:
    arena = placed.arena
    peak = arena.peak and {
        **_step(arena.peak),
        "buffers": [{"name": h.name, "bytes": h.bytes, "source": h.source} for h in arena.held],
    }
    return {
        "bytes": arena.bytes,
        "memory": placed.arena_memory,
        "peak": peak,
        "timeline": [_step(step) for step in arena.steps],
    }


def _step(step: Step) -> dict[str, Any]:
    return {"name": step.name, "op": step.op, "source": step.source, "bytes": step.bytes}


def _experts(built: Lowered, placed: Placement) -> dict[str, Any]:
    """The census, what an expert takes, and how many a layer the flash would hold."""
    from .targets.experts import experts_of

    census = {
        "layers": [
            {"path": layer.path, "found": layer.experts_found, "experts": layer.experts}
            for layer in built.layers
        ]
    }
    found, usable = experts_of(built.last), placed.region("flash").usable
    if found is None:
        return census
    return census | {
        "experts": found.count,
        "chosen": found.chosen,
        "bytes_each": found.bytes_each,
        "would_fit": None if usable is None else found.fitting(usable - placed.code.bytes),
    }


def _accuracy(golden: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How far the first output is from eager PyTorch's, on the samples kept in the artefact."""
    keys = sorted(key for key in golden if key.endswith(".eager.0"))
    wanted = np.stack([golden[key] for key in keys]).astype(np.float64)
    found = np.stack([golden[key.replace("eager", "expected")] for key in keys]).astype(np.float64)
    same = None
    if wanted.ndim > 1 and wanted.shape[-1] > 1:
        same = float((wanted.argmax(-1) == found.argmax(-1)).mean())
    return {
        "samples": len(keys),
        "max_abs": float(np.abs(wanted - found).max(initial=0)),
        "largest": float(np.abs(wanted).max(initial=0)),
        "top1_agreement": same,
    }


def _warnings(placed: Placement) -> list[str]:
    found = []
    if placed.arena_memory == "psram":
        free = placed.region("sram")
        found.append(
            f"the arena, {placed.arena.bytes:,} bytes, goes to PSRAM, which is slower: SRAM has "
            f"{free.usable or 0:,} bytes"
        )
    if placed.code.measured is None:
        found.append("the bytes of code are a high estimate: there is no compiler to measure them")
    return found


def memory_rows(data: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """A report's memories as a table with its head: a row a memory, with what lies in it."""
    rows = [("memory", "used", "usable", "nominal", "what")]
    for name, region in data["memory"].items():
        if region["used"] or region["nominal"]:
            parts = (_part(part) for part in region["parts"])
            sizes = (_size(region[key]) for key in ("used", "usable", "nominal"))
            rows.append((name, *sizes, ", ".join(parts) or "nothing"))
    return rows


def _part(part: Mapping[str, Any]) -> str:
    return f"{part['what']} {'' if part['exact'] else 'about '}{part['bytes']:,}"


def _size(count: int | None) -> str:
    return "no limit known" if count is None else f"{count:,}"


def experts_text(experts: Mapping[str, Any]) -> str:
    """How many experts there are, what one takes, and how many would fit; empty without any."""
    if "experts" not in experts:
        return ""
    text = (
        f"{experts['experts']} experts a layer, {experts['chosen']} of them a token; one takes "
        f"{experts['bytes_each']:,} bytes over all layers"
    )
    if experts["would_fit"] is not None:
        text += f"; {experts['would_fit']:,} a layer would fit the flash"
    return text


def peak_text(arena: Mapping[str, Any]) -> str:
    """Where the arena is fullest, in one line."""
    peak = arena["peak"]
    if peak is None:
        return "nothing lies in the arena"
    source = f" ({peak['source']})" if peak["source"] else ""
    return f"{peak['bytes']:,} of {arena['bytes']:,} bytes are in use at {peak['name']}{source}"


def markdown(data: Mapping[str, Any]) -> str:
    """The report for people."""
    code, accuracy, weights = data["code"], data["accuracy"], data["weights"]
    how = f"measured on {code['measured']}, -O2" if code["measured"] else "a high estimate"
    same = accuracy["top1_agreement"]
    parts = [
        f"# {data['model']} on {data['target']}",
        f"{data['description']}, mode {data['mode']}. All sizes are bytes.",
        *(f"Warning: {warning}." for warning in data["warnings"]),
        "## Memory",
        _table(memory_rows(data)),
        f"Weights and arena are what a linker gives them; the code is {how}.",
        "## Weights",
        _table([("kind", "bytes"), *_largest(weights["by_kind"])]),
        _table([("layer", "bytes"), *_largest(weights["by_layer"])]),
        "## Arena",
        f"{peak_text(data['arena'])}. In use there:",
        _table([("buffer", "bytes", "source"), *_held(data["arena"])]),
        _table([("step", "op", "bytes in use", "source"), *_timeline(data["arena"])]),
        "## Instructions",
        f"{instructions_text(data['instructions'])}.",
        *_costliest(data["instructions"]),
        "## Experts",
        f"{experts_text(data['experts']) or 'No layer chooses experts'}.",
        *(f"- {e['path']}: {e['found']} of {e['experts']}" for e in data["experts"]["layers"]),
        "## Accuracy",
        f"On {accuracy['samples']} samples the first output is within {accuracy['max_abs']:.4g} of "
        f"eager PyTorch's, whose largest number is {accuracy['largest']:.4g}"
        + ("." if same is None else f"; the largest is at the same place in {same:.1%}."),
        "## Files",
        _table([("file", "bytes of text"), *_largest(data["files"])]),
    ]
    return "\n\n".join(parts) + "\n"


def _largest(sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{sizes[name]:,}") for name in sorted(sizes, key=lambda n: (-sizes[n], n))]


def _held(arena: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for buffer in arena["peak"]["buffers"][:SHOWN] if arena["peak"] else ():
        yield buffer["name"], f"{buffer['bytes']:,}", buffer["source"]


def _timeline(arena: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    for step in arena["timeline"]:
        yield step["name"], step["op"], f"{step['bytes']:,}", step["source"]


def _costliest(instructions: Mapping[str, Any]) -> list[str]:
    return [] if instructions["total"] is None else [_table(instructions_rows(instructions))]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *rest])
