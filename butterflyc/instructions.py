"""How a report shows what a model is predicted to take: instructions, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .targets.instructions import Prediction

SHOWN = 12


def instructions_of(prediction: Prediction) -> dict[str, Any]:
    """The prediction as plain data, for JSON; None where a price is not known."""
    return {
        "total": prediction.instructions,
        "milliseconds": prediction.milliseconds,
        "clock_hz": prediction.clock_hz,
        "compiler": prediction.compiler,
        "steps": [
            {
                "name": step.name,
                "ops": list(step.ops),
                "source": step.source,
                "instructions": None if step.instructions is None else round(step.instructions),
            }
            for step in prediction.steps
        ],
    }


def instructions_text(data: Mapping[str, Any]) -> str:
    """The total and the time, in a few sentences; or why there is none."""
    if not data["compiler"]:
        return "Instructions are not predicted: none were counted for this target"
    unknown = [step["name"] for step in data["steps"] if step["instructions"] is None]
    if unknown:
        return f"Instructions are not predicted: no price is known for {', '.join(unknown)}"
    text = (
        f"About {data['total']:,} instructions an inference, predicted from counts of kernels that "
        f"{data['compiler']} built with -O2"
    )
    if data["milliseconds"] is None:
        return text
    return (
        f"{text}. At one instruction a cycle of {data['clock_hz'] / 1e6:g} MHz these are "
        f"{data['milliseconds']:.1f} ms: a lower bound, without what a chip waits for its "
        "flash and for instructions of several cycles"
    )


def instructions_rows(data: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The costliest steps as a table with its head, and what all others take together."""
    known = [step for step in data["steps"] if step["instructions"] is not None]
    steps = sorted(known, key=lambda step: -step["instructions"])
    total = max(1, sum(step["instructions"] for step in steps))

    def row(name: str, instructions: int, source: str) -> tuple[str, str, str, str]:
        return name, f"{instructions:,}", f"{instructions / total:.1%}", source

    rows = [("step", "instructions", "share", "source")]
    rows += [row(s["name"], s["instructions"], s["source"]) for s in steps[:SHOWN]]
    if rest := steps[SHOWN:]:
        rows.append(row(f"{len(rest)} others", sum(s["instructions"] for s in rest), ""))
    return rows
