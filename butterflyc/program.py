"""A compiled model in Python: call it, save it, look into it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .compiler import artefact
from .compiler.artefact import Artefact
from .compiler.codes import decoded, encode, takes_codes
from .compiler.errors import BadInput, Damaged, Incompatible, unknown_name
from .compiler.ir import Graph, Type, parse_graph
from .compiler.tensors import unpack_arrays

if TYPE_CHECKING:
    from .compiler.run.native import Native


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled model. ``fresh_stages`` are the graphs with all constants, if just compiled.

    ``program(*inputs)`` takes NumPy arrays or torch tensors and returns the same kind: in the order
    and under the names of the manifest's ``inputs`` and ``outputs``. Another number of rows in the
    first axis is split into runs of the compiled size.
    """

    artefact: Artefact
    fresh_stages: Mapping[str, Graph] = field(default_factory=dict)

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self.artefact.manifest

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def target(self) -> str:
        return str(self.manifest["target"])

    @property
    def mode(self) -> str:
        return str(self.manifest["mode"])

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes: ``weights``, ``arena``, ``arena_lower_bound``."""
        return dict(self.manifest["memory"])

    @property
    def placement(self) -> Mapping[str, Any] | None:
        """What goes where on a microcontroller, as in ``report.json``; None for other targets."""
        section = self.artefact.sections.get("report/report.json")
        return None if section is None else dict(json.loads(section))

    @property
    def census(self) -> Mapping[str, int]:
        """``found`` and ``choosable`` experts, over all recognised layers."""
        return dict(self.manifest["census"])

    @property
    def report(self) -> Mapping[str, Any]:
        """What recognition found, layer by layer, and the figures of the compilation."""
        return json.loads(self.artefact.section("report.json"))

    @property
    def inputs(self) -> tuple[Type, ...]:
        return tuple(map(_type_of, self.manifest["inputs"]))

    @property
    def outputs(self) -> tuple[Type, ...]:
        return tuple(map(_type_of, self.manifest["outputs"]))

    @cached_property
    def stages(self) -> Mapping[str, Graph]:
        """The graph after each pass, by the pass's name.

        Loaded from a file, only the last one can be run, unless compiled with ``keep_stages``.
        """
        if self.fresh_stages:
            return self.fresh_stages
        constants = self._constants()
        graphs = {}
        for name in self.manifest["stages"]:
            graph = parse_graph(self.ir(name))
            wanted = {str(n["digest"]) for n in graph.nodes if n.op == "constant"}
            held = {key: constants[key] for key in wanted & constants.keys()}
            graphs[name] = Graph(graph.name, graph.inputs, graph.outputs, held, graph.notes)
        return graphs

    def ir(self, stage: str) -> str:
        """The text of the IR after the pass ``stage``. Raises UnknownName if there is none."""
        names = list(self.manifest["stages"])
        if stage not in names:
            raise unknown_name("stage", stage, names)
        return self.artefact.section(stage_section(names.index(stage), stage)).decode()

    def save(self, path: str | Path) -> Path:
        """Write the ``.bfly`` file, whole or not at all. Raises CannotWrite with the reason."""
        path = Path(path)
        artefact.write(path, self.artefact)
        return path

    @cached_property
    def native(self) -> Native:
        """The library, loaded. Raises Incompatible if this CPU cannot run it."""
        from .compiler.run.native import Native

        library = f"kernels/lib{self.name}.so"
        if library not in self.artefact.sections:
            raise Incompatible(
                f"{self.name} was compiled for {self.target}, as C for a machine of its own",
                help="add the C files that `compile -o FOLDER` writes to a project for that chip; "
                "the same integers come from --target host --mode int8",
            )
        return Native(
            self.artefact.section(library),
            self.name,
            self.inputs,
            self.outputs,
            self.memory["arena"],
            self.manifest["cpu_features"],
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The outputs: one, or a tuple, in the order of the manifest's ``outputs``.

        Inputs are in the order of its ``inputs``, or by their names. Raises BadInput if one does
        not fit.
        """
        values = self._in_order(inputs, named)
        torch = sys.modules.get("torch")
        tensors = [x for x in values if torch is not None and isinstance(x, torch.Tensor)]
        outputs = self.run(*(self._array(i, x) for i, x in enumerate(values)))
        if tensors:
            assert torch is not None
            outputs = tuple(torch.from_numpy(y).to(tensors[0].device) for y in outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _in_order(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        """All inputs in their order. Raises BadInput if one is missing or one too many."""
        names = [port["name"] for port in self.manifest["inputs"]]
        for name in named:
            if name not in names:
                raise unknown_name("input", name, names)
        rest = names[len(inputs) :]
        if len(inputs) > len(names) or set(rest) != set(named):
            missing = [name for name in rest if name not in named]
            got = f"{len(inputs)} by place" + (f" and {', '.join(named)}" if named else "")
            raise BadInput(
                f"{self.name} takes {len(names)} inputs, got {got}",
                help=(f"pass {', '.join(missing)} too; " if missing else "")
                + f"inputs are tensors alone: {self._signature()}; what else forward takes was "
                "fixed when the model was compiled",
            )
        return [*inputs, *(named[name] for name in rest)]

    def _array(self, place: int, x: Any) -> np.ndarray:
        """An input as an array. Raises BadInput for what is none."""
        torch = sys.modules.get("torch")
        try:
            if torch is not None and isinstance(x, torch.Tensor):
                return x.detach().cpu().resolve_conj().resolve_neg().numpy()
            array = np.asarray(x)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise self._no_array(place, x, f": {error}") from error
        if array.dtype == object:
            raise self._no_array(place, x)
        return array

    def _no_array(self, place: int, x: Any, reason: str = "") -> BadInput:
        return BadInput(
            f"input {place} is a {type(x).__name__}, which is no array of numbers{reason}",
            help=f"{self.name} takes one dense tensor or array an input: {self._signature()}",
        )

    def _signature(self) -> str:
        names = (port["name"] for port in self.manifest["inputs"])
        pairs = zip(names, self.inputs, strict=True)
        return ", ".join(f"{name} {type}" for name, type in pairs) or "none"

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """All outputs as arrays. Rows beyond the compiled batch are run in turn.

        Where the program computes in codes, floats become codes and results floats again; codes
        that are given as codes give codes.
        """
        if len(inputs) != len(self.inputs):
            raise BadInput(f"{self.name} takes {len(self.inputs)} inputs, got {len(inputs)}")
        codes = tuple(encode(np.asarray(x), t) for x, t in zip(inputs, self.inputs, strict=True))
        outputs = self._run(codes)
        coded = [x for x, t in zip(inputs, self.inputs, strict=True) if takes_codes(t)]
        given = any(not np.issubdtype(np.asarray(x).dtype, np.floating) for x in coded)
        return outputs if given else decoded(outputs, self.outputs)

    def _run(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        runs = self._runs(inputs)
        if runs == 1:
            return self.native(*inputs)
        parts = [
            self.native(*(np.split(x, runs)[i] for x in inputs))  # views: nothing is copied
            for i in range(runs)
        ]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _runs(self, inputs: tuple[np.ndarray, ...]) -> int:
        """How many runs of the compiled batch make up ``inputs``."""
        types = self.inputs
        if all(x.shape == t.shape for x, t in zip(inputs, types, strict=True)):
            return 1
        counts = set()
        for x, t in zip(inputs, types, strict=True):
            fits = x.ndim == t.rank >= 1 and x.shape[1:] == t.shape[1:] and len(x) > 0
            if not fits or len(x) % t.shape[0] != 0:
                raise BadInput(
                    f"an input has shape {list(x.shape)}, {self.name} was compiled for "
                    f"{list(t.shape)}",
                    help="the first axis may be any multiple of the compiled one, no other may "
                    "differ; compile again with an example of this shape",
                )
            counts.add(len(x) // t.shape[0])
        if len(counts) > 1:
            raise BadInput(f"inputs have different batch sizes: {[list(x.shape) for x in inputs]}")
        if not self.manifest["splits"]:
            raise BadInput(
                f"{self.name} was compiled for a batch of {types[0].shape[0]} and its samples "
                "depend on one another",
                help="compile it again with an example of this batch size",
            )
        return counts.pop()

    def routing(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The experts that the compiled model chooses, one array [..., k] a routed layer."""
        codes = (encode(np.asarray(x), t) for x, t in zip(inputs, self.inputs, strict=True))
        outputs = self.native(*codes)
        return tuple(
            outputs[place["output"]].reshape(place["shape"])
            if "output" in place
            else self.native.peek(place["at"], Type(place["dtype"], tuple(place["shape"])))
            for place in self.manifest["routing"]
        )

    def _constants(self) -> dict[str, np.ndarray]:
        held = dict(unpack_arrays(self.artefact.section("weights.safetensors")))
        if "stages.safetensors" in self.artefact.sections:
            held |= unpack_arrays(self.artefact.section("stages.safetensors"))
        return held


def _type_of(port: Mapping[str, Any]) -> Type:
    return Type(port["dtype"], tuple(port["shape"]), port.get("scale"))


def stage_section(index: int, stage: str) -> str:
    return f"stages/{index:02}-{stage}.bfir"


def load(path: str | Path) -> Program:
    """The program in a ``.bfly`` file, or in a folder that holds one. Every byte is checked.

    Raises Damaged naming the section, Incompatible for a newer schema, UsageError if it is missing.
    """
    found = artefact.read(Path(path))
    missing = sorted(
        {"name", "target", "mode", "inputs", "outputs", "stages", "memory"} - found.manifest.keys()
    )
    if missing:
        raise Damaged(f"{path} is damaged: its manifest lacks {', '.join(missing)}")
    return Program(found)
