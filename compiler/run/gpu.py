"""A model that was compiled for a GPU: on the GPU, or interpreted on this machine's CPU.

Layers go by their plans, all else by torch. On a GPU a call is captured once and then replayed, so
that it costs one launch however many kernels it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...kernels.gpu import library
from ...kernels.gpu.launch import Launch, Plan, Step
from ..errors import ToolMissing
from ..ir import Graph, Node
from .plans import Plans
from .torch_graph import Buffers, TorchGraph

if TYPE_CHECKING:
    from .cuda_driver import Driver

Array = np.ndarray
Tensors = tuple[torch.Tensor, ...]


class Interpreted:
    """Launches by Triton's interpreter, on CPU tensors: slow, and the same results."""

    def launch(self, step: Launch, buffers: Buffers) -> None:
        try:
            from ...kernels.gpu.interpreted import launch
        except ImportError as error:
            raise ToolMissing(
                "Triton is not installed, whose interpreter stands in for a GPU",
                help='pip install "butterflyc[gpu]"',
            ) from error
        launch(step, dict(buffers))


class Driven:
    """Launches by the driver, on the current stream."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def launch(self, step: Launch, buffers: Buffers) -> None:
        addresses = {name: tensor.data_ptr() for name, tensor in buffers.items()}
        self._driver.launch(step, addresses, torch.cuda.current_stream().cuda_stream)


class Planned:
    """A `torch_graph.Launcher`: ``plans`` step by step, launches as ``how`` does them."""

    def __init__(self, plans: Mapping[str, Plan], how: Interpreted | Driven) -> None:
        self._plans, self._how = plans, how

    def load(self, name: str, buffers: dict[str, torch.Tensor]) -> None:
        """Makes the plan's dense copies of packed weights."""
        for unpack in self._plans[name].once:
            library.unpack(unpack, buffers)

    def run(self, name: str, buffers: Buffers) -> None:
        for step in self._plans[name].steps:
            self._step(step, buffers)

    def _step(self, step: Step, buffers: Buffers) -> None:
        if isinstance(step, Launch):
            self._how.launch(step, buffers)
        else:
            library.execute(step, buffers)


class Captured:
    """A call of ``model`` as one CUDA graph, for inputs like ``inputs``."""

    def __init__(self, model: TorchGraph, inputs: Tensors) -> None:
        self._inputs = tuple(x.clone() for x in inputs)
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            model(*self._inputs)  # libraries set up what they need, which cannot be captured
        here.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = model(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return tuple(y.clone() for y in self._outputs)


class GpuModel:
    """``graph`` with ``plans``, on ``device``. Not for several threads at once."""

    def __init__(
        self, graph: Graph, plans: Plans, how: Interpreted | Driven, device: torch.device | str
    ) -> None:
        bare = {name: layer.plan for name, layer in plans.items()}
        scratch = {name: layer.scratch for name, layer in plans.items()}
        self.device = torch.device(device)
        self._graph = TorchGraph(graph, self.device, bare, Planned(bare, how), scratch)
        self._captured: Captured | None = None

    def tensors(self, *inputs: torch.Tensor) -> Tensors:
        """The outputs for tensors on the device, of the compiled size. Raises BadInput."""
        inputs = tuple(x.detach() for x in inputs)
        if self.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            # What the graph returns may be an input, or a constant.
            return tuple(y.clone() for y in self._graph(*inputs))
        self._graph.check(*inputs)  # a replay would cast, or repeat, what does not fit
        if self._captured is None:
            self._captured = Captured(self._graph, inputs)
        return self._captured(*inputs)

    def many(self, samples: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
        """The outputs for each of ``samples``, all of the compiled size. Raises BadInput."""
        return [tuple(y.cpu().numpy() for y in self.tensors(*self._given(s))) for s in samples]

    def routing(self, *inputs: Array) -> tuple[Array, ...]:
        """The experts that the model chooses, one array [..., k] a routed layer."""
        chosen: list[Array] = []

        def watch(node: Node, value: Any) -> None:
            if node.op == "top_k":
                chosen.append(value[1].cpu().numpy())

        self._graph(*self._given(inputs), observe=watch)
        return tuple(chosen)

    def _given(self, inputs: tuple[Array, ...]) -> Tensors:
        return tuple(torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in inputs)


def check_device(target: str, name: str) -> None:
    """Raises ToolMissing where torch sees no GPU."""
    if not torch.cuda.is_available():
        raise ToolMissing(
            f"{name} was compiled for {target}, and torch sees no NVIDIA GPU here",
            help="--interpret, as Program.on('interpreter'), runs it on this CPU, slowly",
        )
