"""A compiled model in Python: call it, save it, look into it."""

from __future__ import annotations

import json
from collections.abc import Callable as Function
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .calling import Callable, Runner
from .compiler import artefact
from .compiler.artefact import Artefact
from .compiler.codes import encode
from .compiler.errors import Damaged, Incompatible, unknown_name
from .compiler.ir import Graph, Type, parse_graph
from .compiler.run.plans import PATH
from .compiler.tensors import unpack_arrays

if TYPE_CHECKING:
    from .compiler.run.gpu import GpuModel
    from .compiler.run.native import Native
    from .placed import Placed
    from .torch_op import CompiledModule

Progress = Function[[str], None]


@dataclass(frozen=True, eq=False)
class Program(Callable):
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
    def target(self) -> str:
        return str(self.manifest["target"])

    @property
    def mode(self) -> str:
        return str(self.manifest["mode"])

    @property
    def is_exact(self) -> bool:
        """Whether it is to compute what PyTorch does, and not what some passes rounded."""
        return self.mode == "f32" and not self.manifest.get("angles")

    @property
    def threads(self) -> int:
        """How many threads may compute at once."""
        return int(self.manifest.get("threads", 1))

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes: ``weights``, ``arena``, ``arena_lower_bound``; ``arena_mt`` of several threads."""
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

    @property
    def is_for_gpu(self) -> bool:
        """Whether it was compiled for a GPU."""
        return PATH in self.artefact.sections

    def model_on_gpu(self, interpret: bool = False) -> GpuModel:
        """It on this machine's GPU, or by Triton's interpreter on the CPU.

        Raises Incompatible if it is for none, or for another GPU, ToolMissing for what is missing.
        """
        from .on_gpu import loaded

        graph = self.stages[list(self.stages)[-1]]
        return loaded(graph, self.manifest["core"], self.artefact.sections, self.name, interpret)

    @cached_property
    def gpu(self) -> GpuModel:
        """The model on this machine's GPU. Raises what `model_on_gpu` does."""
        return self.model_on_gpu()

    @cached_property
    def native(self) -> Native:
        """The library, loaded. Raises Incompatible if this CPU cannot run it."""
        from .compiler.run.native import Native

        library = f"kernels/lib{self.name}.so"
        if library not in self.artefact.sections:
            raise Incompatible(
                f"{self.name} was compiled for {self.target}, as C for a machine of its own",
                help="`run` and `verify` emulate it with --on qemu, as Program.on does; a project "
                "for that chip takes the C files that `compile -o FOLDER` writes; the same "
                "integers come from --target host --mode int8",
            )
        return Native(
            self.artefact.section(library),
            self.name,
            self.inputs,
            self.outputs,
            self.memory.get("arena_mt", self.memory["arena"]),
            self.manifest["cpu_features"],
            self.threads,
        )

    def routing(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The experts that the compiled model chooses, one array [..., k] a routed layer."""
        if self.is_for_gpu:
            return self.gpu.routing(*inputs)
        codes = (encode(np.asarray(x), t) for x, t in zip(inputs, self.inputs, strict=True))
        outputs = self.native(*codes)
        return tuple(
            outputs[place["output"]].reshape(place["shape"])
            if "output" in place
            else self.native.peek(place["at"], Type(place["dtype"], tuple(place["shape"])))
            for place in self.manifest["routing"]
        )

    @property
    def runner(self) -> Runner:
        return self.gpu if self.is_for_gpu else self.native

    def on(self, place: str, progress: Progress = lambda _: None) -> Placed:
        """The program where ``place`` says: here (``native``), in ``qemu``, at ``ssh:user@host``.

        ``interpreter`` stands in for a GPU, on this CPU.

        Raises UnknownName for another place, UsageError for a host that is none, Incompatible if
        the program cannot run there, ToolMissing with what to install.
        """
        from .placed import placed

        return placed(self, place, progress)

    def module(self) -> CompiledModule:
        """The program as a torch module, which torch.compile and torch.export do not look into."""
        from .torch_op import CompiledModule

        return CompiledModule(self)

    def _constants(self) -> dict[str, np.ndarray]:
        held = dict(unpack_arrays(self.artefact.section("weights.safetensors")))
        if "stages.safetensors" in self.artefact.sections:
            held |= unpack_arrays(self.artefact.section("stages.safetensors"))
        return held


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
