"""``butterflyc inspect``: what a compiled model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.errors import UsageError, unknown_name
from ..mlir import DIALECTS, view
from ._experts import show_budget
from ._explain import show_layers
from ._instructions import instructions, show_instructions
from ._memory import show_placement
from ._output import bytes_text, print_columns, print_json
from ._quantization import quantization, show_quantization
from ._tuning import tuning_text

if TYPE_CHECKING:
    from ..program import Program


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path))
@click.argument("view", metavar="[VIEW]", default="summary")
@click.option("--stage", help="With ir: the stage to show (default: the last).")
@click.option("--diff", nargs=2, metavar="A B", help="With ir: what changed between two stages.")
@click.option("--dot", is_flag=True, help="With ir: the stage in Graphviz's language.")
@click.option(
    "--mlir",
    type=click.Choice(list(DIALECTS)),
    is_flag=False,
    flag_value="torch",
    help="ARTEFACT is a MODEL as `compile` takes it: show it in MLIR (torch).",
)
@click.option(
    "--time-limit", type=float, default=300, show_default=True, help="With --mlir: seconds."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    artefact: Path,
    view: str,
    stage: str | None,
    diff: tuple[str, str] | None,
    dot: bool,
    mlir: str | None,
    time_limit: float,
    as_json: bool,
) -> None:
    """Show what a compiled model is: a .bfly file, or the folder that holds one.

    VIEW is summary, ir, memory, instructions, kernels, experts, recognition, quantization or
    manifest.

    `inspect MODEL --mlir` shows a model that is not compiled yet, as torch-mlir sees it.
    """
    if mlir:
        _show_mlir(str(artefact), mlir, time_limit, as_json)
        return
    from ..program import load

    if view not in VIEWS and view != "ir":
        raise unknown_name("view", view, [*VIEWS, "ir"])
    if view != "ir" and (stage or diff):
        raise UsageError(
            "--stage and --diff go with the view 'ir'", help="inspect OUT ir --stage S"
        )
    program = load(artefact)
    if view == "ir":
        _show_ir(program, stage, diff, dot, as_json)
        return
    gather, show = VIEWS[view]
    data = gather(program)
    if as_json or view == "manifest":
        print_json(f"inspect.{view}", data)
    else:
        show(data)


def _show_mlir(model: str, dialect: str, seconds: float, as_json: bool) -> None:
    text = view(model, dialect, seconds)
    if as_json:
        print_json("inspect.mlir", {"model": model, "dialect": dialect, "text": text})
    else:
        click.echo(text)


def _show_ir(
    program: Program,
    stage: str | None,
    diff: tuple[str, str] | None,
    dot: bool,
    as_json: bool,
) -> None:
    if diff:
        before, after = (program.ir(name).splitlines() for name in diff)
        lines = list(unified_diff(before, after, *diff, lineterm=""))
        text = "\n".join(lines) if lines else f"{diff[0]} and {diff[1]} are the same"
    else:
        stage = stage or str(program.manifest["stages"][-1])
        text = program.ir(stage).rstrip()
        if dot:
            from ..compiler.ir.analysis import as_dot

            text = as_dot(program.stages[stage])
    if as_json:
        print_json("inspect.ir", {"stage": stage, "diff": diff, "text": text})
    else:
        click.echo(text)


def summary(program: Program) -> dict[str, Any]:
    """What matters in a manifest, in the order in which a person asks for it."""
    manifest = program.manifest
    keys = ["name", "target", "mode", "act_bits", "angles", "prefer", "inputs", "outputs", "stages"]
    keys += ["census", "memory", "tuning", "tools"]
    keys += ["threads"] if program.threads > 1 else []
    sections = {name: entry["bytes"] for name, entry in manifest["hashes"].items()}
    return {**{key: manifest.get(key) for key in keys}, "sections": sections}


def memory(program: Program) -> dict[str, Any]:
    """Bytes in all, and every buffer of the arena: offset, bytes, who writes it, source line."""
    buffers = []
    for node in program.stages[program.manifest["stages"][-1]].nodes:
        places: Any = node.notes.get("at", ())
        for type, at in zip(node.types, places, strict=False):
            if at >= 0:
                row = {"at": at, "bytes": type.bytes, "name": node.name, "source": node.source}
                buffers.append(row)
    placement = {"placement": program.placement} if program.placement else {}
    return {
        **program.memory,
        "buffers": sorted(buffers, key=lambda row: row["at"]),
        **placement,
    }


def kernels(program: Program) -> dict[str, Any]:
    """Each op that is computed, with its kernel and its types, in the order of the run."""
    from ..passes.select_kernels import spec_of

    graph = program.stages[program.manifest["stages"][-1]]
    rows = [
        {
            "name": node.name,
            "op": node.op,
            "kernel": node.notes["kernel"],
            "parameters": dict(spec_of(node).parameters),
            "operands": [str(operand.type) for operand in node.operands],
            "results": [str(type) for type in node.types],
            "source": node.source,
        }
        for node in graph.nodes
        if "kernel" in node.notes
    ]
    return {"kernels": rows}


def experts(program: Program) -> dict[str, Any]:
    """The expert census, in all and layer by layer; what they take, where layers were recognised.

    See `expert_bytes` for what is under ``budget``.
    """
    keys = ("path", "experts_found", "experts", "k")
    layers = [{key: layer[key] for key in keys} for layer in program.report["layers"]]
    found = {**program.census, "per_layer": layers}
    if not program.census.get("recognised"):
        return found
    from ..expert_bytes import expert_bytes

    return {**found, "budget": expert_bytes(program)}


def recognition(program: Program) -> dict[str, Any]:
    """What was recognised in each MoE layer, with the evidence, and what each pass changed."""
    return {key: value for key, value in program.report.items() if key != "quantization"}


def _show_summary(data: Mapping[str, Any]) -> None:
    text: dict[str, Callable[[Any], str]] = {
        "inputs": lambda tensors: ", ".join(map(_tensor, tensors)),
        "outputs": lambda tensors: ", ".join(map(_tensor, tensors)),
        "stages": " -> ".join,
        "census": _pairs,
        "memory": lambda sizes: ", ".join(f"{k} {bytes_text(v)}" for k, v in sizes.items()),
        "tuning": tuning_text,
        "tools": _pairs,
        "sections": lambda sizes: ", ".join(f"{k} {bytes_text(v)}" for k, v in sizes.items()),
    }
    print_columns([(key, text.get(key, str)(value)) for key, value in data.items() if value])


def _show_memory(data: Mapping[str, Any]) -> None:
    if placement := data.get("placement"):
        show_placement(placement, whole=True)
        click.echo()
    click.echo(
        f"weights {bytes_text(data['weights'])}, arena {bytes_text(data['arena'])} "
        f"(no plan needs less than {bytes_text(data['arena_lower_bound'])})"
    )
    rows = [(b["at"], b["bytes"], b["name"], b["source"]) for b in data["buffers"]]
    print_columns([("at", "bytes", "written by", "source"), *rows])


def _show_kernels(data: Mapping[str, Any]) -> None:
    rows = [
        (_kernel(k), k["op"], ", ".join(k["results"]), k["name"], k["source"])
        for k in data["kernels"]
    ]
    print_columns([("kernel", "op", "result", "name", "source"), *rows])


def _kernel(kernel: Mapping[str, Any]) -> str:
    """With the parameters by which it computes, if they are no default."""
    return " ".join([kernel["kernel"], *(f"{k}={v}" for k, v in kernel["parameters"].items())])


def _show_experts(data: Mapping[str, Any]) -> None:
    click.echo(f"{data['found']} of {data['choosable']} experts found")
    rows = [
        (e["path"], e["experts_found"], e["experts"], f"top-{e['k']}") for e in data["per_layer"]
    ]
    print_columns([("layer", "found", "choosable", "chosen"), *rows])
    if budget := data.get("budget"):
        show_budget(budget)


def _tensor(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']}[{'x'.join(map(str, tensor['shape']))}]"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


View = tuple[Callable[["Program"], dict[str, Any]], Callable[[Mapping[str, Any]], None]]
VIEWS: dict[str, View] = {
    "summary": (summary, _show_summary),
    "memory": (memory, _show_memory),
    "instructions": (instructions, show_instructions),
    "kernels": (kernels, _show_kernels),
    "experts": (experts, _show_experts),
    "recognition": (recognition, show_layers),
    "quantization": (quantization, show_quantization),
    "manifest": (lambda program: {"manifest": program.manifest}, lambda _: None),
}
