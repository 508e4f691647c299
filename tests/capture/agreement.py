"""What capture tests share: a function as a module, and its graph held against PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import Captured, capture
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.text import parse_graph
from butterflyc.compiler.ir.verify import verify
from butterflyc.source import eager


class Function(nn.Module):
    """A function as a module; tensors given by name are its buffers."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.buffers())


def data(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, none near zero and none near a tie."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return x + 0.1 * x.sign()


def numbers(*shape: int, below: int = 5, seed: int = 0) -> Tensor:
    """Random whole numbers from 0."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def agree(module: nn.Module, *inputs: Tensor, relative: float = 1e-5) -> Captured:
    """The captured module, once it has given the shapes, dtypes and numbers that PyTorch gives.

    Its graph is valid, and its text says all of it.
    """
    captured = capture(module, inputs)
    verify(captured.graph)
    assert parse_graph(str(captured.graph), captured.graph.constants) == captured.graph
    arrays = [x.numpy() for x in inputs]
    got, want = interpret(captured.graph, *arrays), eager(module, arrays)
    assert len(got) == len(want)
    for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        check(mine, theirs, relative, f"output {number}")
    return captured


def agree_in_double(module: nn.Module, *inputs: Tensor, relative: float = 1e-12) -> None:
    """In double precision the graph and PyTorch agree to round-off.

    The module's constants must be exact in float32, where the graph holds them.
    """
    graph = capture(module, inputs).graph
    got = interpret(graph, *(x.numpy() for x in inputs), precision="f64")
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        want = copy.deepcopy(module).double()(*wide)
    for mine, theirs in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        check(mine, theirs.numpy(), relative, "in double")


def check(mine: np.ndarray, theirs: np.ndarray, relative: float, what: str) -> None:
    """Same shape, same dtype, integers equal, floats within ``relative`` of the largest."""
    assert mine.shape == theirs.shape, f"{what}: shape {mine.shape}, PyTorch {theirs.shape}"
    assert mine.dtype == theirs.dtype, f"{what}: {mine.dtype}, PyTorch {theirs.dtype}"
    if not np.issubdtype(theirs.dtype, np.floating):
        assert np.array_equal(mine, theirs), f"{what} differs"
        return
    finite = np.isfinite(theirs)
    assert np.array_equal(np.isfinite(mine), finite), f"{what}: other elements are finite"
    same = np.array_equal(mine[~finite], theirs[~finite], equal_nan=True)
    assert same, f"{what}: infinities or NaN differ"
    scale = np.abs(theirs[finite]).max(initial=1e-30)
    error = np.abs(mine[finite].astype(np.float64) - theirs[finite]).max(initial=0) / scale
    assert error <= relative, f"{what} is off by {error:.3g} of its largest element"
