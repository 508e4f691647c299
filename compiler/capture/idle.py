"""A captured graph against its model, also where most experts are idle.

Half of each row of routing scores is pushed down, or all but as many as are chosen, in the model
and in the graph alike, so that the experts that belong to them get no token: what a model does only
for an expert in use is seen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import Unsupported
from ..ir.build import make, remake
from ..ir.graph import Graph, Node, constant, rebuild
from ..ir.interpret import interpret
from .arguments import Arguments
from .results import array_of, arrays_of

_DOWN = -1e4
_LIMIT = 1e-4
_TRIALS = 4
_ROUTING = frozenset({"topk", "sort", "argsort", "argmax", "max"})


def check_also_idle(model: nn.Module, graph: Graph, examples: Arguments) -> None:
    """Raises Unsupported if the graph differs from the model for natural or for pushed routing."""
    for trial in range(_TRIALS):
        given = _varied(examples.tensors, trial)
        for pushed in (False, True) if trial else (False,):
            wanted = _of_model(model, examples.filled(given), trial if pushed else None)
            if wanted is None:
                continue
            now = interpret(_with_pushed(graph, trial) if pushed else graph, *_arrays(given))
            worst = max(_difference(a, b) for a, b in zip(now, wanted, strict=True))
            if worst > _LIMIT:
                when = "where some experts get no token" if pushed else "on other inputs"
                raise Unsupported(
                    f"the model asks whether an expert has tokens, and does more than skip it: "
                    f"without the question the result differs by {worst:.1e} {when}",
                    help="keep what an idle expert adds the same as what it adds with no tokens: 0",
                )


def check_writes(model: nn.Module, graph: Graph, examples: Arguments) -> None:
    """Raises Unsupported if the graph of a model with in-place calls differs from it.

    torch.export may lose that two values share memory. One input may lie on a tie: all must differ.
    """
    worst: list[float] = []
    for trial in range(_TRIALS):
        given = _varied(examples.tensors, trial)
        wanted = _of_model(model, examples.filled(given), None)
        if wanted is None:
            continue
        now = interpret(graph, *_arrays(given))
        worst.append(max(_difference(a, b) for a, b in zip(now, wanted, strict=True)))
        if worst[-1] <= _LIMIT:
            return
    if worst:
        raise Unsupported(
            f"the model writes in place to what another value shares: captured, its result differs "
            f"by {min(worst):.1e}",
            help="write to a copy (x.clone()), or use calls that return a new tensor (x + 1)",
        )


def _of_model(
    model: nn.Module, given: Arguments, trial: int | None
) -> tuple[np.ndarray, ...] | None:
    """What the model gives; nothing where it fails, as some models do for an idle expert."""
    given = given.copied()
    try:
        with torch.no_grad(), _Pushed(trial):
            wanted = model(*given.places, **given.names)
    except Exception:
        return None
    return arrays_of(wanted)


def _arrays(given: tuple[Tensor, ...]) -> Iterator[np.ndarray]:
    return (array_of(x) for x in given)


def _difference(now: np.ndarray, was: np.ndarray) -> float:
    """The largest difference, relative to the largest element."""
    finite = np.isfinite(was)
    if not np.array_equal(finite, np.isfinite(now)):
        return float("inf")
    off = np.abs(now[finite].astype(np.float64) - was[finite]).max(initial=0)
    return float(off / max(np.abs(was[finite]).max(initial=0), 1e-30))


def _varied(inputs: tuple[Tensor, ...], trial: int) -> tuple[Tensor, ...]:
    """The example inputs, then others of their size and kind."""
    if trial == 0:
        return inputs
    source = torch.Generator().manual_seed(trial)
    varied = []
    for x in inputs:
        order = torch.randperm(x.numel(), generator=source)
        mixed = x.reshape(-1)[order].reshape(x.shape)
        noise = torch.randn(x.shape, generator=source) if x.is_floating_point() else 0
        varied.append(mixed + noise if x.is_floating_point() else mixed)
    return tuple(varied)


def _bias(count: int, trial: int, chosen: int) -> np.ndarray:
    """What is added to ``count`` scores: nothing for half of them, or for those few chosen."""
    order = np.random.default_rng((count, trial)).permutation(count)
    bias = np.zeros(count, np.float32)
    few = chosen if chosen < count else 1
    bias[order[few if trial % 2 == 0 else (count + 1) // 2 :]] = _DOWN
    return bias


class _Pushed(TorchFunctionMode):
    """While it lasts, routing calls of PyTorch see pushed scores; with no ``trial``, their own."""

    def __init__(self, trial: int | None) -> None:
        super().__init__()
        self._trial = trial

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._trial is not None and name in _ROUTING and _is_along_last(name, args, kwargs):
            x = args[0]
            chosen = (args[1] if len(args) > 1 else kwargs["k"]) if name == "topk" else 1
            args = (x + torch.from_numpy(_bias(x.shape[-1], self._trial, chosen)), *args[1:])
        return func(*args, **kwargs)


def _is_along_last(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call chooses along the last axis of floats."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
        return False
    place = 2 if name == "topk" else 1
    default = None if name in ("max", "argmax") else -1
    axis = kwargs.get("dim", args[place] if len(args) > place else default)
    return isinstance(axis, int) and axis in (-1, x.dim() - 1)


def _with_pushed(graph: Graph, trial: int) -> Graph:
    """The graph whose routing ops see pushed scores."""
    store = dict(graph.constants)

    def change(node: Node) -> Node:
        if not _routes(node):
            return node
        scores = node.operands[0]
        chosen = node["k"] if node.op == "top_k" else 1
        bias = constant(store, _bias(scores.type.shape[-1], trial, chosen), "pushed")
        return remake(node, make("add", scores, bias, name="pushed.scores"))

    changed = rebuild(graph, change)
    return replace(changed, constants=store)


def _routes(node: Node) -> bool:
    if node.op not in ("top_k", "argmax", "max") or not node.operands[0].type.is_float:
        return False
    last = node.operands[0].type.rank - 1
    axes = {"top_k": (-1,), "argmax": (node.attributes.get("axis"),)}.get(node.op)
    axes = axes or node["axes"]
    return len(axes) == 1 and axes[0] in (-1, last)
