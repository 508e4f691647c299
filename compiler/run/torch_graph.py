"""A graph executed by torch on any device, with kernels of our own for nodes that have plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any, Protocol

import numpy as np
import torch

from ...kernels.gpu.launch import Plan
from ...kernels.record import Tensor
from ..errors import BadInput, Unsupported, UsageError, unknown_name
from ..ir import Graph, Node, Type, type_of
from ..ir.interpret import constant_value
from ..ir.ops import OPS, STRUCTURAL
from .torch_ops import TABLE, evaluate, tensor_of
from .torch_types import TORCH

# Triton may take the address of a buffer for a multiple of 16; scratch begins where caches do.
ALIGNED, SCRATCH_ALIGNED = 16, 256
Buffers = dict[str, torch.Tensor]
Observer = Callable[[Node, Any], None]


class Launcher(Protocol):
    """What executes plans, by the name of their node.

    ``buffers`` are contiguous, on 16 bytes: operands by their names in the op table (packed
    constants as they are stored), the result ``y``, and ``scratch0``, ``scratch1`` ...
    """

    def load(self, name: str, buffers: Buffers) -> None:
        """Does what the plan wants ``once``: adds to ``buffers`` what each run is to find there.

        They hold the constants among the operands, and scratch, which other nodes use, too.
        """

    def run(self, name: str, buffers: Buffers) -> None:
        """Does the plan's steps on the current stream, without waiting for them."""


class TorchGraph:
    """``graph`` as a function of torch tensors on ``device``.

    ``launcher`` executes the nodes in ``plans``; ``scratch`` says, by node, what tensors they need
    beside operands and results. All else is torch's. A call neither waits for the device nor
    allocates by what data says, so it can be captured in a ``torch.cuda.CUDAGraph``. What it
    returns may share memory with an input or a constant, as a reshape of one does. Calls share
    scratch, so there is one at a time.

    Raises Unsupported for ops of integer mode, UnknownName for a plan of no node.
    """

    def __init__(
        self,
        graph: Graph,
        device: torch.device | str,
        plans: Mapping[str, Plan] | None = None,
        launcher: Launcher | None = None,
        scratch: Mapping[str, tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.graph, self.device = graph, torch.device(device)
        self._plans, self._launcher = dict(plans or {}), launcher
        self._check()
        self._readers = {node: len(users) for node, users in graph.users.items()}
        self._loaded: dict[tuple[str, Type], torch.Tensor] = {}
        self._constants = {
            node: self._constant(node, constant_value(graph.constants, node))
            for node in graph.nodes
            if node.op == "constant" and self._read_by_torch(node)
        }
        # Nodes run one by one, so they share one piece of memory.
        wanted = {name: (scratch or {}).get(name, ()) for name in self._plans}
        most = max((sum(map(_place, tensors)) for tensors in wanted.values()), default=0)
        memory = torch.empty(most, dtype=torch.uint8, device=self.device)
        self._fixed = {
            node: self._constant_buffers(node) | _scratch(wanted[node.name], memory)
            for node in graph.nodes
            if self._has(node)
        }
        for node, buffers in self._fixed.items():
            if self._launcher is not None and self._plans[node.name].once:
                self._launcher.load(node.name, buffers)

    @torch.no_grad()
    def __call__(
        self, *inputs: torch.Tensor, observe: Observer | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The outputs of the graph; ``observe(node, value)`` is called after each node.

        The value of a node of several results is their tuple. Raises BadInput if an input does not
        fit.
        """
        self.check(*inputs)
        values: dict[Node, Any] = {
            **self._constants,
            **dict(zip(self.graph.inputs, inputs, strict=True)),
        }
        remaining, outputs = dict(self._readers), set(self.graph.outputs)
        with float32_sums():
            for node in self.graph.nodes:
                if node.op not in ("input", "constant"):
                    values[node] = self._evaluate(node, values)
                if observe is not None and node in values:
                    observe(node, values[node])
                for operand in node.operands:
                    remaining[operand] -= 1
                    if remaining[operand] == 0 and operand not in outputs:
                        values.pop(operand, None)
        return tuple(values[node] for node in self.graph.outputs)

    def _evaluate(self, node: Node, values: Mapping[Node, Any]) -> Any:
        if node.op == "result":
            return values[node.operands[0]][int(node["index"])]
        if not self._has(node):
            found = evaluate(node, [values[operand] for operand in node.operands])
            return found if len(node.types) > 1 else found[0]
        buffers = dict(self._fixed[node])
        for name, operand in _named_operands(node):
            if name not in buffers:
                buffers[name] = _aligned(values[operand])
        shape, dtype = node.type.shape, TORCH[node.type.dtype]
        buffers["y"] = torch.empty(shape, dtype=dtype, device=self.device)
        assert self._launcher is not None, "plans are checked to have a launcher"
        self._launcher.run(node.name, buffers)
        return buffers["y"]

    def _has(self, node: Node) -> bool:
        return node.name in self._plans

    def _read_by_torch(self, constant: Node) -> bool:
        readers = self.graph.users[constant]
        return constant in self.graph.outputs or not all(map(self._has, readers))

    def _constant_buffers(self, node: Node) -> dict[str, torch.Tensor]:
        return {
            name: self._constant(operand, self.graph.value(operand), stored=True)
            for name, operand in _named_operands(node)
            if operand.op == "constant"
        }

    def _constant(self, node: Node, array: np.ndarray, stored: bool = False) -> torch.Tensor:
        """``array`` on the device, once; ``stored``: as it is where its type has a layout."""
        logical = replace(node.type, layout=None)
        key = str(node["digest"]), node.type if stored else logical
        if key not in self._loaded:
            packed = stored and node.type.layout is not None
            type = type_of(array) if packed else logical
            self._loaded[key] = tensor_of(array, type, self.device)
        return self._loaded[key]

    def _check(self) -> None:
        named = {node.name for node in self.graph.nodes if node.op in OPS}
        for name in self._plans:
            if name not in named:
                raise unknown_name("node", name, named)
        if self._plans and self._launcher is None:
            raise UsageError(
                f"{len(self._plans)} nodes of {self.graph.name} have plans, and nothing runs them",
                help="pass a launcher, or no plans",
            )
        for node in self.graph.nodes:
            if not self._has(node) and node.op not in STRUCTURAL and node.op not in TABLE:
                raise Unsupported(
                    f"'{node.name}' is {node.op}, an op of integer mode: torch does not run it",
                    where=node.source or node.name,
                    help="compile without --mode int8, or run the graph by the interpreter",
                )

    def check(self, *inputs: torch.Tensor) -> None:
        """Raises BadInput if the graph does not take ``inputs``."""
        if len(inputs) != len(self.graph.inputs):
            raise BadInput(
                f"{self.graph.name} takes {len(self.graph.inputs)} inputs, got {len(inputs)}"
            )
        for node, x in zip(self.graph.inputs, inputs, strict=True):
            self._check_input(node, x)

    def _check_input(self, node: Node, x: torch.Tensor) -> None:
        wanted = TORCH[node.type.dtype]
        here = x.device.type == self.device.type and self.device.index in (None, x.device.index)
        if tuple(x.shape) == node.type.shape and x.dtype == wanted and here:
            return
        raise BadInput(
            f"input '{node.name}' is {x.dtype}{list(x.shape)} on {x.device}, "
            f"the graph wants {wanted}{list(node.type.shape)} on {self.device}",
            help=f"pass a tensor of shape {list(node.type.shape)}, {wanted}, on {self.device}",
        )


@contextmanager
def float32_sums() -> Iterator[None]:
    """Within, the library sums products in float32, of all their digits."""
    matmul = torch.backends.cuda.matmul
    digits = matmul.fp32_precision
    halves = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in halves}
    try:
        matmul.fp32_precision = "ieee"
        for name in halves:
            setattr(matmul, name, False)
        yield
    finally:
        matmul.fp32_precision = digits
        for name, value in before.items():
            setattr(matmul, name, value)


def _named_operands(node: Node) -> list[tuple[str, Node]]:
    return list(zip(OPS[node.op].names, node.operands, strict=False))


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """``x``, or a copy where it is not contiguous or does not begin on 16 bytes."""
    x = x.contiguous()
    return x if x.data_ptr() % ALIGNED == 0 else x.clone()


def _scratch(tensors: Iterable[Tensor], memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """``tensors``, one behind the other in ``memory``, by the names that plans give them."""
    found, start = dict[str, torch.Tensor](), 0
    for i, tensor in enumerate(tensors):
        found[f"scratch{i}"] = _view(memory[start:], tensor)
        start += _place(tensor)
    return found


def _place(tensor: Tensor) -> int:
    """The bytes of ``tensor`` up to where the next one may begin."""
    return -(-_bytes(tensor) // SCRATCH_ALIGNED) * SCRATCH_ALIGNED


def _view(memory: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    return memory[: _bytes(tensor)].view(TORCH[tensor.dtype]).view(tensor.shape)


def _bytes(tensor: Tensor) -> int:
    return prod(tensor.shape) * TORCH[tensor.dtype].itemsize
