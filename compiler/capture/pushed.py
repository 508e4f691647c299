"""Scores that a model and its graph route by, changed alike in both.

Half of each row of scores is pushed down, or all but as many as are chosen, so that the experts
that belong to them get no token; or all are moved by a little, each expert's by another little, so
that scores that were equal but for their rounding no longer are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ir.build import make, remake
from ..ir.graph import Graph, Node, constant, rebuild

_DOWN = -1e4
_TIES = 0.1  # what scores of 0 are moved by, of the factor that moves the others


@dataclass(frozen=True)
class Push:
    """How scores are changed: which ones are pushed ``down``, by a seed; None is none of them.

    ``apart`` is by how much of itself each score is moved.
    """

    down: int | None = None
    apart: float = 0.0

    def changes(self, count: int, chosen: int) -> tuple[np.ndarray, np.ndarray]:
        """A factor and a summand for each of ``count`` scores, of which ``chosen`` are taken."""
        factor, summand = np.ones(count, np.float32), np.zeros(count, np.float32)
        if self.apart and count > 1:
            source = np.random.default_rng(count)
            factor += np.float32(self.apart) * source.standard_normal(count, np.float32)
            summand += np.float32(self.apart * _TIES) * source.standard_normal(count, np.float32)
        if self.down is not None:
            order = np.random.default_rng((count, self.down)).permutation(count)
            few = chosen if chosen < count else 1
            # Scores far down are rounded to fewer digits and may be equal: none should be chosen.
            kept = few if self.down % 2 == 0 else max(few, (count + 1) // 2)
            summand[order[kept:]] = _DOWN
        return factor, summand


_UNCHANGED = Push()
# (scores, axis or None for all, how many are taken, whether the smallest are)
_Choice = tuple[Tensor, int | None, int, bool]


def _top_k(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, *_: Any, **__: Any
) -> _Choice:
    return input, dim, k, not largest


def _sort(input: Tensor, dim: int = -1, descending: bool = False, **_: Any) -> _Choice:
    return input, dim, input.shape[dim], not descending


def _kth_value(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> _Choice:
    return input, dim, k, True


def _median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> _Choice:
    count = input.numel() if dim is None else input.shape[dim]
    return input, dim, (count + 1) // 2, True


def _largest(input: Tensor, dim: int | None = None, keepdim: bool = False) -> _Choice:
    return input, dim, 1, False


def _smallest(input: Tensor, dim: int | None = None, keepdim: bool = False) -> _Choice:
    return input, dim, 1, True


# As the lowerings do it: the smallest are the largest of the negated scores.
_CALLS: dict[str, Callable[..., _Choice]] = {
    "topk": _top_k,
    "sort": _sort,
    "argsort": _sort,
    "kthvalue": _kth_value,
    "median": _median,
    "argmax": _largest,
    "argmin": _smallest,
    "max": _largest,
    "min": _smallest,
}


class PushedCalls(TorchFunctionMode):
    """While it lasts, routing calls of PyTorch see the scores that ``push`` makes of theirs."""

    def __init__(self, push: Push) -> None:
        super().__init__()
        self._push = push

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if not args and "input" in named:
            args = (named.pop("input"),)
        name = getattr(func, "__name__", "")
        choice = None if self._push == _UNCHANGED else _choice(name, args, named)
        if choice is None:
            return func(*args, **named)
        found = func(self._pushed(*choice), *args[1:], **named)
        if name in ("max", "min"):
            # In the graph this value is the largest number's, whatever was chosen.
            return type(found)((func(*args, **named).values, found.indices))
        return found

    def _pushed(self, scores: Tensor, axis: int | None, chosen: int, smallest: bool) -> Tensor:
        flat = scores.reshape(-1) if axis is None else scores.movedim(axis, -1)
        changes = self._push.changes(flat.shape[-1], chosen)
        factor, summand = (torch.from_numpy(x).to(flat) for x in changes)
        flat = flat * factor + (-summand if smallest else summand)
        return flat.reshape(scores.shape) if axis is None else flat.movedim(-1, axis)


def _choice(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> _Choice | None:
    """What a call chooses, of floats; None where it chooses nothing."""
    if name not in _CALLS or not args or not isinstance(args[0], Tensor):
        return None
    if not args[0].is_floating_point() or not args[0].dim():
        return None
    axis = named.get("dim", (*args, None)[1])
    if name in ("max", "min") and not isinstance(axis, int):
        return None  # of two tensors, or no place is asked for
    return _CALLS[name](*args, **named)


def with_pushed(graph: Graph, push: Push) -> Graph:
    """The graph whose routing ops see pushed scores."""
    if push == _UNCHANGED:
        return graph
    store = dict(graph.constants)

    def change(node: Node) -> Node:
        if node.op not in ("top_k", "argmax") or not node.operands[0].type.is_float:
            return node
        scores = node.operands[0]
        axis = -1 if node.op == "top_k" else node["axis"]
        shape = [1] * scores.type.rank
        shape[axis] = scores.type.shape[axis]
        changes = push.changes(shape[axis], node["k"] if node.op == "top_k" else 1)
        factor, summand = (constant(store, x.reshape(shape), "pushed") for x in changes)
        scaled = make("mul", scores, factor, name="scaled.scores")
        return remake(node, make("add", scaled, summand, name="pushed.scores"))

    changed = rebuild(graph, change)
    return replace(changed, constants=store)
