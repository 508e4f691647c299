"""A small model as a tuner meets it, and tasks that nothing has to be compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from butterflyc.build import Lowered, lower
from butterflyc.compiler.run.kernel import spec_for
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.source import open_model
from butterflyc.targets.registry import load_core
from butterflyc.tuning.calls import Call, calls_of
from butterflyc.tuning.database import Database
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import Task, Tools

# What the command line takes.
ONE_LAYER = f"{Path(__file__).parents[2] / 'examples' / 'one_layer.py'}:make"
X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
TOOLS = Tools("llvm 22.1", 4)


class Net(nn.Module):
    """Dense layers that ask for the same, and experts between them. x: [4, 32]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = ButterflyConfig(d_model=32, d_ff=64, experts=4, top_k=2, angle_std=1.0)
        self.before = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.experts, self.after = ButterflyMoE(config), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.after(self.experts(self.before(x)))
        return result


@cache
def net() -> Net:
    return Net().eval()


def expected() -> np.ndarray:
    """What PyTorch makes of `X`."""
    with torch.no_grad():
        return net()(X).numpy()


@cache
def lowered(target: str = "host", mode: str = "f32") -> Lowered:
    """The model for a core, before anything is built."""
    return lower(open_model(net(), (X,)), load_core(target), mode, "bfly")


@cache
def calls(target: str = "host", mode: str = "f32") -> tuple[Call, ...]:
    built = lowered(target, mode)
    return calls_of(built.unselected, built.passes)


def tensor(text: str) -> Tensor:
    """``"f32 2 3"`` as a type and a shape."""
    dtype, *sizes = text.split()
    return Tensor(dtype, tuple(map(int, sizes)))


def spec(op: str, given: str, made: str, **attributes: Any) -> Spec:
    """An op on operands like ``"f32 4 32, f32 8 32"``, which makes ``"f32 4 8"``."""
    types = [[tensor(text) for text in side.split(", ")] for side in (given, made)]
    return spec_for(op, *types, **attributes)


LINEAR = spec("linear", "f32 4 32, f32 16 32", "f32 4 16", activation="none")


def call_of(name: str, ways: int, count: int = 1, left_out: int = 0) -> Call:
    """A made-up call: way 0 is the default one."""
    found = tuple(Way("k", {"tile": tile}) for tile in range(ways))
    return Call(name, LINEAR, (f"{name}.node",), count, found, left_out)


def task_for(call: Call, method: str = "instructions") -> Task:
    return Task(call.key, "a-core", (), method, "a meter 1.0")


def rows(path: Path) -> list[tuple[Any, ...]]:
    """All of the database, with the numbers of the rows."""
    with Database(path) as database:
        return database._execute("SELECT rowid, * FROM trials ORDER BY rowid")


def names(found: Sequence[Any]) -> list[str]:
    """The attribute ``op`` of each call's spec."""
    return [each.spec.op for each in found]
